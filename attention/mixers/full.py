"""Global self-attention: one group, the whole map."""

from attention.configs.lines import FullConfig
from attention.configs.registry import register
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.softmax.layers import ProjectFirst


@register("full", config=FullConfig)
class FullMixer(ProjectFirst):
    """Attention of every token to every token (MSA); CSWin's last stage with position=lepe."""

    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        return (Groups(axis(h, h), axis(w, w)),)
