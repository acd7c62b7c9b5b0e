"""Global self-attention: one group, the whole map."""

from attention.catalogue import FullConfig
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.registry import register
from attention.softmax.layers import ProjectFirst


@register("full", config=FullConfig)
class FullMixer(ProjectFirst):
    """Every token meets every token (MSA); with position=lepe, CSWin's last stage."""

    def cuts(self, h: int, w: int) -> tuple[Groups, ...]:
        return (Groups(axis(h, h), axis(w, w)),)
