"""Whether a mixer or a network does what it must."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.facade.arguments import Size, factory_of, shown, size_of, whole
from transom.answer import Table
from transom.errors import SpecError, cause_of, printable

if TYPE_CHECKING:
    from torch import nn

    from analysis.checking.subjects import Named


def check(
    subject: str | nn.Module, *, dim: int | None = None, heads: int = 4, index: int | None = None,
    against: str = "", img_size: Size | None = None, only: str | Sequence[str] | None = None,
) -> Table:  # fmt: skip
    """Properties of a mixer or a network, with a verdict for each, as ``transom check``.

    Source: the properties are in analysis/checking/properties.py.

    Args:
        subject: a mixer's notation, ``my_module:MyMixer``, a backbone, ``timm:NAME``; or a module,
            of which a copy is checked: a `TokenMixer`, a module (b, h, w, dim) to (b, h, w, dim),
            or without dim a network of images.
        dim: channels of a mixer; by default a TokenMixer's own, and 64 for a name.
        heads: heads of a mixer that is named.
        index: 0 or 1, even or odd block of a mixer that is named; by default both.
        against: a registered mixer that the subject must equal.
        img_size: pixels of a network of others, 224 or (height, width).
        only: names of properties; by default all.

    Returns:
        A row per property; ``extra["failed"]`` is the number of those that fail.

    Raises:
        SpecError: the subject or a property is unknown, or the subject cannot be built.

    Example:
        >>> import transom
        >>> table = transom.check("window:size=2", dim=8, heads=2, index=0, only="any size")
        >>> table["verdict"], table.extra
        (['pass'], {'failed': 0})
    """
    from analysis import check as command
    from analysis.checking import subjects

    properties = [only] if isinstance(only, str) else None if only is None else list(only)
    if index not in (None, 0, 1):
        raise SpecError(f"index={shown(index)}: expected 0 for even blocks or 1 for odd ones")
    width = None if dim is None else whole(dim, "dim")
    named: list[Named]
    if isinstance(subject, str):
        named = list(subjects.find(
            subject, dim=width or 64, heads=whole(heads, "heads"), against=against,
            indices=() if index is None else (index,), img_size=size_of(img_size),
        ))  # fmt: skip
    else:
        named = [_checked(subject, width, against, size_of(img_size))]
    rows = [
        row for title, found in named
        for row in command.rows(title, command.check(found, properties))
    ]  # fmt: skip
    failed = sum(row["verdict"] == "FAIL" for row in rows)
    verdict = f"{failed} of {len(rows)} fail" if failed else f"none of {len(rows)} fails"
    return Table(tuple(rows), notes=(verdict,), title="Properties", extra={"failed": failed})


def _checked(model: nn.Module, dim: int | None, against: str, size: Any) -> Named:
    """A copy of a user's module as a subject: the checks draw its parameters anew."""
    from analysis.checking import subjects
    from attention.configs.notation import parse
    from attention.mixer import TokenMixer
    from backbones.model.backbone import HierarchicalBackbone
    from backbones.specs.writing import to_notation

    factory = factory_of(model)
    if isinstance(model, HierarchicalBackbone):
        return subjects.named_network(to_notation(model.spec), None)  # narrowed, as by its name
    mixer = isinstance(model, TokenMixer)
    dim = dim or (model.dim if isinstance(model, TokenMixer) else None)
    name = type(model).__name__
    try:
        module = copy.deepcopy(model)
        if dim:
            reference = parse(against) if against else None
            heads = getattr(model, "heads", 1)
            return f"{name}, dim {dim}", subjects.mixer(module, dim, heads, reference)
        size = size or factory.img_size
        return f"{name} at {size[0]}x{size[1]}", subjects.network(module, size)
    except SpecError:
        raise
    except Exception as error:  # whatever a user's module raises
        kind = "mixer" if mixer else "module"
        raise SpecError(f"the {kind} {name}: {printable(cause_of(error))}") from None
