"""Matches tensors with parameters of a model, before anything is copied."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbones.files.storage import WeightsError
from backbones.names.key_rules import SOURCES, find
from backbones.names.template import Change
from backbones.weights import resize
from backbones.weights.prepare import prepare
from backbones.weights.resize import Adapt
from transom.errors import nearest, one_line
from transom.table import Row


def convert(
    model: nn.Module, state: Mapping[str, Tensor], source: str = "transom"
) -> dict[str, Tensor]:
    """Translates a state dict of another library to our names and layout.

    Args:
        model: the model that the tensors are for; it is not changed and may be on meta.
        state: tensors under the names of `source`.
        source: a key of `key_rules.SOURCES`.

    Returns:
        A full state dict of `model`.

    Raises:
        WeightsError: one line lists every key without a rule, every tensor of another shape or
            not finite, and every parameter without a tensor.

    Example:
        >>> import backbones
        >>> from backbones import weights
        >>> model = backbones.create("swin_t/stages=2")
        >>> theirs = weights.export(model, "timm")
        >>> set(weights.convert(model, theirs, "timm")) == set(model.state_dict())
        True
    """
    return plan(model, state, source)[0]


def plan(
    model: nn.Module, state: Mapping[str, Tensor], source: str, how: Adapt | None = None, *,
    fresh: Sequence[str] = (), fitting: bool = False, beside: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], list[Row]]:  # fmt: skip
    """Matches the tensors of a state dict with the parameters of a model, which is not changed.

    Args:
        model: the model that the tensors are for; it may be on meta.
        state: tensors under the names of `source`.
        source: a key of `key_rules.SOURCES`.
        how: differences that are resolved; by default none may be.
        fresh: beginnings of our names whose parameters stay as the model has them.
        fitting: parameters for which the weights have no tensor of their shape stay, too.
        beside: kinds of values that stand under names of weights and are no tensors.

    Returns:
        Our tensors by name, and a row per tensor as in `Loaded.report`.

    Raises:
        WeightsError: one line lists everything that does not fit, as `convert` does.

    Example:
        >>> import backbones
        >>> from backbones import weights
        >>> model = backbones.create("swin_t/stages=2")
        >>> tensors, report = weights.plan(model, model.state_dict(), "transom", fresh=["head."])
        >>> [row["tensor"] for row in report if row["status"] == "fresh"]
        ['head.weight', 'head.bias']
    """
    check_source(source)
    how = how or Adapt()
    if how.new_head:
        fresh = (*fresh, "head.")
    wanted, fitted, rows, wrong = model.state_dict(), dict[str, Tensor](), list[Row](), list[str]()
    tried = set[str]()
    fresh = tuple(fresh)

    def leave_out(key: str, tensor: Any) -> None:
        rows.append(row("left out", None, key, tensor))

    own = wanted.get("stem.position")
    grid = how.grid if how.grid or own is None else (own.shape[2], own.shape[3])
    for key, tensor in prepare(state, source, grid).items():
        match = find(source, key)
        name = None if match is None else match[1]
        if match is None or (name is not None and name not in wanted):
            needless = name is not None and name.startswith((*fresh, *_absent(wanted)))
            if fitting or needless or _is_counter(key, tensor):
                leave_out(key, tensor)
            elif name is None:
                wrong.append(f"no rule for {one_line(key)}")
            else:
                wrong.append(f"{one_line(key)} would be {one_line(name)}, which the model has not")
            continue
        if name is None or name.startswith(fresh):
            leave_out(key, tensor)
            continue
        if name in tried:
            wrong.append(f"{one_line(key)} and another key are both {name}")
        tried.add(name)
        try:
            fitted[name], status = _fit(tensor, match[0].change, name, wanted[name], model, how)
            rows.append(row(status, name, key, fitted[name]))
        except ValueError as error:
            if fitting and isinstance(error, ShapeMismatch):
                leave_out(key, tensor)
            else:
                wrong.append(f"{one_line(key)} {error}")
    others = {rule[1]: key for key in beside or () if (rule := find(source, key))}
    for name in [name for name in wanted if name not in fitted]:
        if fitting or name.startswith(fresh):
            rows.append(row("fresh", name, None, wanted[name]))
        elif name in others:
            wrong.append(f"{others[name]} is a {beside[others[name]]}, not a tensor")  # type: ignore[index]
        elif name not in tried:
            wrong.append(f"nothing for {name}")
    if not fitted:
        wrong.append("nothing in the weights is the model's")
    if wrong:
        way_out = "" if fitting else _fitting_hint(model, state, source, how, fresh)
        raise WeightsError(f"{len(wrong)} tensors do not fit: " + "; ".join(wrong) + way_out)
    return fitted, rows


def _fitting_hint(
    model: nn.Module, state: Mapping[str, Tensor], source: str, how: Adapt, fresh: Sequence[str]
) -> str:
    """The end of an error: how many tensors partial="fitting" takes, which has been tried."""
    try:
        found, _ = plan(model, state, source, how, fresh=fresh, fitting=True)
    except WeightsError:
        return ""
    return f"; --partial fitting (partial='fitting') takes {len(found)} and leaves the rest"


def _absent(wanted: Mapping[str, Tensor]) -> list[str]:
    """Beginnings of the names of parts after the stages that this model has not."""
    parts = ("head.", "pre_head.", "norm.", "out_norms.")
    return [part for part in parts if not any(name.startswith(part) for name in wanted)]


def _is_counter(key: str, tensor: Any) -> bool:
    """True for a counter of a wrapper (n_averaged, num_updates), or of thop in any module."""
    last = key.rpartition(".")[2]
    if not isinstance(tensor, Tensor) or tensor.numel() != 1:
        return False
    return last in ("total_ops", "total_params") or (tensor.ndim == 0 and last == key)


def check_source(source: str) -> None:
    """Raises WeightsError for a name that is no key of `key_rules.SOURCES`."""
    if source not in SOURCES:
        raise WeightsError(f"no source is called {source!r}{nearest(source, SOURCES)}")


def row(status: str, name: str | None, key: str | None, tensor: Any) -> Row:
    """A row of the report: the status of one tensor, our name, its key and its shape."""
    text = "x".join(map(str, getattr(tensor, "shape", ())))
    return {"status": status, "tensor": name, "from": key, "shape": text}


class ShapeMismatch(ValueError):
    """A tensor has another shape than the parameter."""


def _fit(
    tensor: Tensor, change: Change | None, name: str, wanted: Tensor, model: nn.Module, how: Adapt
) -> tuple[Tensor, str]:
    """(tensor in our layout, "loaded" or "resized").

    Raises ValueError, whose message continues a sentence that begins with the key.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"is a {type(tensor).__name__}, not a tensor")
    if tensor.is_meta:
        raise ValueError("has no values (it is on the meta device)")
    ours, status = tensor, "loaded"
    if change is not None and not resize.of_another_grid(name, wanted, how):
        with contextlib.suppress(IndexError, RuntimeError):  # not the source's layout
            ours = change.read(tensor, wanted.shape)
    floats = wanted.is_floating_point()
    finite = not ours.is_floating_point() or bool(ours.isfinite().all())
    if ours.shape != wanted.shape and ours.is_floating_point() and finite:
        changed = resize.adapt(ours, name, wanted, model, how)
        if changed is not None:
            ours, status = changed, "resized"
    if ours.shape != wanted.shape:
        hint = resize.hint(ours, name, wanted, model, how) if finite else ""
        raise ShapeMismatch(f"has shape {tuple(tensor.shape)}, {name} {tuple(wanted.shape)}{hint}")
    if ours.is_floating_point() != floats or (ours.dtype == torch.bool) != (
        wanted.dtype == torch.bool
    ):
        raise ValueError(f"holds {ours.dtype}, {name} {wanted.dtype}")
    if not finite:
        raise ValueError("is not finite")
    return ours, status
