"""Windows and dilated windows in turn (Shuffle Transformer, section 3.2; CrossFormer, 3.2)."""

from attention.configs.registry import register
from attention.configs.windows import ShuffleConfig
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.softmax.layers import PadFirst


@register("shuffle", config=ShuffleConfig)
class ShuffleMixer(PadFirst):
    """Attention in windows in even blocks, among tokens at equal distances in odd blocks.

    The distance is that at which a group reaches over the map, or `interval`, with groups inside
    larger windows of interval * size tokens a side.
    """

    config: ShuffleConfig

    def groups(self, h: int, w: int) -> Groups:
        gh, gw = self.config.size
        if not self.index % 2:
            return Groups(axis(h, gh), axis(w, gw))
        if self.config.interval is None:
            return Groups(axis(h, gh, interlaced=True), axis(w, gw, interlaced=True))
        interval = self.config.interval
        return Groups(axis(h, gh, interval=interval), axis(w, gw, interval=interval))
