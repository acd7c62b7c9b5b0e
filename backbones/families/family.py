"""The rows of one family, which share their source and most fields of their spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

TINY, SMALL = (2, 2, 6, 2), (2, 2, 18, 2)
T_HEADS, B_HEADS, L_HEADS = (3, 6, 12, 24), (4, 8, 16, 32), (6, 12, 24, 48)

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a variant beside its spec.

    params, macs: the exact counts.  source: the paper and the file.  official: name of its config
    in the authors' repository.  drop_path: rate of the paper's training.  note: what a reader has
    to know.
    """

    params: int
    macs: int
    source: str
    official: str | None = None
    drop_path: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row(Facts):
    """A variant as plain data: the fields of `BackboneSpec`, stages as dicts of `StageSpec`."""

    fields: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of `Facts` by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Facts)}


class Family:
    """Collects the rows of a family.

    Args:
        source: the paper and the file that the rows are from.
        body: the fields of `BackboneSpec` that all rows share.
    """

    def __init__(self, source: str, **body: Any) -> None:
        self.source, self.body, self.rows = source, body, list[Row]()

    def __call__(
        self, name: str, size: int, dims: int | Sequence[int], depths: Sequence[int],
        heads: Sequence[int], mixers: Sequence[str], params: int, macs: int, *,
        mlp_ratio: float | Sequence[float] = 4.0, tokens: int | Sequence[int] = 0,
        official: str | None = None, drop_path: float | None = None, note: str = "", **fields: Any,
    ) -> None:  # fmt: skip
        """Adds a row.

        Args:
            name: of the variant.
            size: side of its images, in pixels.
            dims: channels of every stage, or of the first, which double from stage to stage.
            depths, heads, mixers: of every stage.
            params, macs: the exact counts.
            mlp_ratio: of every stage, or of all.
            tokens: beside the map of every stage, or of all.
            official: name of its config in the authors' repository.
            drop_path: rate of the paper's training.
            note: what a reader has to know.
            fields: further fields of `BackboneSpec`.
        """
        doubled = isinstance(dims, int)
        stages = [
            {
                "dim": dims * 2**i if doubled else dims[i], "depth": depth, "heads": head,  # type: ignore[index]
                "mixers": mixer, "mlp_ratio": _at(mlp_ratio, i), "tokens": _at(tokens, i),
            }
            for i, (depth, head, mixer) in enumerate(zip(depths, heads, mixers, strict=True))
        ]  # fmt: skip
        spec = {"name": name, "stages": stages, "img_size": (size, size), **self.body, **fields}
        self.rows.append(Row(
            fields=spec, params=params, macs=macs, source=self.source, official=official,
            drop_path=drop_path, note=note,
        ))  # fmt: skip


def _at(value: Value | Sequence[Value], i: int) -> Value:
    return value[i] if isinstance(value, (list, tuple)) else value  # type: ignore[return-value]
