"""Windows, every second block shifted by half a window (Swin Transformer, section 3.2)."""

from attention.configs.registry import register
from attention.configs.windows import CosineConfig, WindowConfig
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.softmax.layers import PadFirst


@register("window", config=WindowConfig)
class WindowMixer(PadFirst):
    """(S)W-MSA: pad, roll, split, in this order, so that opposite edges never meet.

    With a finite mask_value, as Swin V2's weights were trained, pairs separated by the shift are
    penalised and not masked; `region` leaves them out all the same.
    """

    config: WindowConfig

    def groups(self, h: int, w: int) -> Groups:
        gh, gw = self.config.size
        shifted = self.config.shift and self.index % 2
        return Groups(
            axis(h, gh, shift=gh // 2 if shifted else 0),
            axis(w, gw, shift=gw // 2 if shifted else 0),
        )


@register("cosine", config=CosineConfig)
class CosineMixer(WindowMixer):
    """The mixer `window:scores=cosine,position=log_cpb` under a name, with equal parameters.

    Source: Swin Transformer V2, sections 3.2 and 3.3.
    """
