"""Global self-attention: one group, the whole map."""

from attention.attend import ProjectFirst
from attention.configs import FullConfig
from attention.groups import Groups, axis
from attention.registry import register


@register("full", config=FullConfig)
class FullMixer(ProjectFirst):
    """Every token meets every token (MSA); with position=lepe, CSWin's last stage."""

    def cuts(self, h: int, w: int) -> tuple[Groups, ...]:
        return (Groups(axis(h, h), axis(w, w)),)
