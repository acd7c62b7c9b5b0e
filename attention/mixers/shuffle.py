"""Windows and dilated windows in turn (Shuffle Transformer, section 3.2)."""

from attention.configs.registry import register
from attention.configs.windows import ShuffleConfig
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.softmax.layers import PadFirst


@register("shuffle", config=ShuffleConfig)
class ShuffleMixer(PadFirst):
    """Attention in windows in even blocks, among tokens at equal distances in odd blocks."""

    config: ShuffleConfig

    def groups(self, h: int, w: int) -> Groups:
        gh, gw = self.config.size
        interlaced = bool(self.index % 2)
        return Groups(axis(h, gh, interlaced=interlaced), axis(w, gw, interlaced=interlaced))
