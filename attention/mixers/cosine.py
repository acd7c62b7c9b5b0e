"""Windows with scaled cosine scores and log-spaced positions (Swin V2, sections 3.2, 3.3)."""

from attention.configs.registry import register
from attention.configs.windows import CosineConfig
from attention.mixers.window import WindowMixer


@register("cosine", config=CosineConfig)
class CosineMixer(WindowMixer):
    """The mixer `window:scores=cosine,position=log_cpb` under a name, with equal parameters."""
