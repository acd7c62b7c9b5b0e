"""The rules of every source of weights, read both ways: their key to our name, and back."""

from __future__ import annotations

from backbones.names import (
    cswin,
    dat,
    maxvit,
    nat,
    openmmlab,
    pvt,
    shuffle,
    swin,
    transformers,
    vit,
)
from backbones.names.template import Rule, rule

METHODS = ("bicubic", "timm")  # of resizing relative bias tables
PARTIAL = ("replaced", "fitting")  # of loading a part of the weights

SOURCES: dict[str, list[Rule]] = {
    **swin.SOURCES, **cswin.SOURCES, **transformers.SOURCES, **openmmlab.SOURCES,
    **shuffle.SOURCES,
    **dat.SOURCES, **maxvit.SOURCES, **nat.SOURCES, **pvt.SOURCES,
    **vit.SOURCES,
    "transom": [rule("{rest}", "{rest}")],
}  # fmt: skip
# Sources of one family alone: the start of its variants' names (several where weights do not tell
# which), and keys that only it has.
FAMILIES: dict[str, str | tuple[str, ...]] = {}
MARKS: dict[str, tuple[str, ...]] = {}
for module in (swin, cswin, transformers, openmmlab, shuffle, maxvit, nat, pvt, dat, vit):
    FAMILIES.update(getattr(module, "FAMILIES", {}))
    MARKS.update(getattr(module, "MARKS", {}))
# of these, sources whose weights do not tell the mixers, which are then those of a given backbone
AS_GIVEN = ("dat", "nat")
TARGETS = tuple(source for source in SOURCES if source != "transom")


def find(source: str, key: str) -> tuple[Rule, str | None] | None:
    """The rule for a key of the source, and our name for it or None for a dropped tensor.

    None if no rule matches.
    """
    for each in SOURCES[source]:
        values = each.theirs.values(key)
        if values is not None:
            name = None if each.ours is None else each.ours.fill(values)
            if name is not None or each.ours is None:
                return each, name
    return None


def find_back(target: str, name: str) -> tuple[Rule, str] | None:
    """The rule for our name, and the target's key for it; None if no rule matches."""
    for each in SOURCES[target]:
        values = None if each.ours is None else each.ours.values(name)
        key = None if values is None else each.theirs.fill(values)
        if key is not None:
            return each, key
    return None
