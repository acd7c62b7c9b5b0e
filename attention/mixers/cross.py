"""Cross-shaped windows (CSWin Transformer, section 3.2)."""

from attention.configs.lines import CrossConfig
from attention.configs.registry import register
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.softmax.layers import ProjectFirst


@register("cross", config=CrossConfig)
class CrossMixer(ProjectFirst):
    """Attention of half the heads in vertical stripes, of half in horizontal stripes.

    Each branch pads the axis across its stripes evenly on both sides, as in the authors' dense
    backbone.
    """

    config: CrossConfig

    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        sh, sw = self.config.size
        vertical = Groups(axis(h, h), axis(w, sw, even=True))
        horizontal = Groups(axis(h, sh, even=True), axis(w, w))
        return vertical, horizontal
