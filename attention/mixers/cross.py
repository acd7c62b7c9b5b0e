"""Cross-shaped windows (CSWin Transformer, section 3.2)."""

from attention.catalogue import CrossConfig
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.registry import register
from attention.softmax.layers import ProjectFirst


@register("cross", config=CrossConfig)
class CrossMixer(ProjectFirst):
    """Half the heads attend in vertical stripes, half in horizontal ones.

    Maps that stripes do not divide are padded evenly, each branch on its own axis, as in the
    authors' dense backbone.
    """

    config: CrossConfig

    def cuts(self, h: int, w: int) -> tuple[Groups, ...]:
        sh, sw = self.config.size
        vertical = Groups(axis(h, h), axis(w, sw, even=True))
        horizontal = Groups(axis(h, sh, even=True), axis(w, w))
        return vertical, horizontal
