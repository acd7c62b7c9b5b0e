"""Which mixers and backbones there are, and one that meets a budget."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis.facade.arguments import Size, one_of, size_of
from transom.answer import Table
from transom.errors import SpecError

if TYPE_CHECKING:
    from backbones.specs.spec import BackboneSpec


def fit(
    spec: str | Mapping[str, Any] | BackboneSpec, *, macs: int | float | str | None = None,
    params: int | float | str | None = None, by: str = "width", img_size: Size | None = None,
) -> Table:  # fmt: skip
    """A backbone scaled to a budget of MACs or parameters, as ``transom fit``.

    Source: the search is that of backbones/fit.py.

    Args:
        spec: a variant, a notation, a .toml file, a dict or a spec.
        macs: the budget in multiply-adds of one image, 4_500_000_000 or "4.5G".
        params: the budget in parameters, 28_000_000 or "28M".
        by: width, depth or mlp.
        img_size: pixels, 224 or (height, width); by default the backbone's own.

    Returns:
        One row: the notation of the nearest backbone, which `create` takes, and its error.

    Raises:
        SpecError: no budget or two are given, or nothing can be built near it.

    Example:
        >>> import transom
        >>> table = transom.fit("swin_t/stages=2", params="3M")
        >>> table["dims"], table["found"]
        (['192 256'], [2939428])
    """
    from backbones import fit as command
    from backbones.model.sizes import stage_sizes, total
    from backbones.specs.notation import parse

    if (macs is None) == (params is None):
        raise SpecError("give one budget: macs or params")
    what, value = ("macs", macs) if macs is not None else ("params", params)
    one_of(by, ("width", "depth", "mlp"), "by")
    stated = parse(spec)
    if size := size_of(img_size):
        stated = replace(stated, img_size=size)
    try:
        target = command.amount(str(value))
    except argparse.ArgumentTypeError as error:
        raise SpecError(f"{what}={error}") from None
    command.check_unit(str(value), getattr(total(stage_sizes(stated)), what), what)
    found, cost = command.fit(stated, by=by, **{what: target})
    return Table((command.row_of(found, by, what, target, cost),))


def mixers() -> Table:
    """The token mixers and their options, as ``transom mixers``; torch is not imported.

    Source: attention/configs/catalogue.py, whose papers are in the column "source".

    Returns:
        A row per option of a mixer, and one for a mixer without options.

    Example:
        >>> import transom
        >>> table = transom.mixers()
        >>> "pale" in table["mixer"], table.columns
        (True, ('mixer', 'option', 'default', 'allowed', 'doc', 'source'))
    """
    from attention.__main__ import options

    return Table(tuple(options()), title="Token mixers")


def variants() -> Table:
    """The named backbones, as ``transom variants``; torch is not imported.

    Source: backbones/specs/variants.py, whose papers are in the column "source".

    Returns:
        A row per variant, with its exact parameters and MACs at its own image size.

    Example:
        >>> import transom
        >>> [row["params"] for row in transom.variants() if row["backbone"] == "swin_t"]
        [28288354]
    """
    from backbones.__main__ import rows

    return Table(tuple(rows()), title="Named backbones")
