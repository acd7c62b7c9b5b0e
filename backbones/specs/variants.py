"""The named variants: a row of backbones/families/ each.

params and macs (multiply-adds of convolutions, linear layers and matrix products, one image at
img_size) are stated here and counted by the tests; drop_path is the rate of the paper's training,
which the spec leaves at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backbones.families import cswin, dat, maxvit, nat, ours, pale, pvt, shuffle, swin, twins, vit
from backbones.families.family import Facts, Row
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec
from transom.errors import SpecError, nearest, one_line


@dataclass(frozen=True, kw_only=True)
class Variant(Facts):
    """A named spec with its exact parameters and MACs, and its source."""

    spec: BackboneSpec

    def __post_init__(self) -> None:
        for field in ("params", "macs"):
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise ValueError(f"{self.spec.name}: {field}={value!r}: expected the exact count")
        if not self.source.strip():
            raise ValueError(f"{self.spec.name}: source={self.source!r}: expected where it is from")


ALIASES = {
    "swinv2_t": "swinv2_t_w8",
    "swinv2_s": "swinv2_s_w8",
    "swinv2_b": "swinv2_b_w8",
    "swinv2_l": "swinv2_l_w12to16",
    "swin_mlp_t": "swin_mlp_t_c24",
}


def _variant(row: Row) -> Variant:
    stages = tuple(StageSpec(**stage) for stage in row.fields["stages"])
    return Variant(spec=BackboneSpec(**{**row.fields, "stages": stages}), **row.facts)


FAMILIES = (swin, cswin, pale, shuffle, maxvit, pvt, twins, nat, dat, vit, ours)
_rows = {row.fields["name"]: _variant(row) for family in FAMILIES for row in family.ROWS}


def names() -> tuple[str, ...]:
    """Names of all variants, in the order of the families."""
    return tuple(_rows)


def known(name: str) -> bool:
    return name in _rows or name in ALIASES


def get(name: str, also: Sequence[str] = ()) -> Variant:
    """The row of a variant or an alias.

    also: more names that an error may suggest.  Raises SpecError for an unknown name.
    """
    key = ALIASES.get(name, name)
    if key not in _rows:
        hint = nearest(name, (*_rows, *ALIASES, *also))
        raise SpecError(f"no backbone is called {one_line(name)!r}{hint}", name)
    return _rows[key]
