"""Which tensor goes where: all of it found out before any of it is copied."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attention.options import nearest, one_line
from attention.table import Row
from backbones import resize
from backbones.detect import prepare
from backbones.resize import Adapt
from backbones.rules import SOURCES, Change, find
from backbones.storage import WeightsError


def convert(
    model: nn.Module, state: Mapping[str, Tensor], source: str = "transom"
) -> dict[str, Tensor]:
    """`state`, in the names of `source`, as a full state dict of `model`.

    Raises WeightsError, one line that lists every key without a rule, every tensor of another
    shape or not finite, and everything that is missing.
    """
    return plan(model, state, source)[0]


def plan(
    model: nn.Module, state: Mapping[str, Tensor], source: str, how: Adapt | None = None
) -> tuple[dict[str, Tensor], list[Row]]:
    """(our tensors by name, a row per tensor) without touching the model, which may be on meta.

    how: what may differ; without it nothing may.  Raises WeightsError as `convert`.
    """
    if source not in SOURCES:
        raise WeightsError(f"no source is called {source!r}{nearest(source, SOURCES)}")
    how = how or Adapt()
    wanted, found, wrong = model.state_dict(), dict[str, Tensor](), list[str]()
    rows: list[Row] = []

    fresh = {name for name in wanted if how.new_head and name.startswith("head.")}
    for key, tensor in prepare(state, source).items():
        match = find(source, key)
        if match is None:
            wrong.append(f"no rule for {one_line(key)}")
            continue
        rule, name = match
        if name is None or (how.new_head and name.startswith("head.")):
            rows.append(row("dropped", None, key, tensor))
            continue
        if name not in wanted:
            wrong.append(f"{one_line(key)} would be {one_line(name)}, which the model has not")
            continue
        if name in found:
            wrong.append(f"{one_line(key)} and another key are both {name}")
        found[name] = tensor
        try:
            found[name], status = _fit(tensor, rule.change, name, wanted[name], model, how)
            rows.append(row(status, name, key, found[name]))
        except ValueError as error:
            wrong.append(f"{key} {error}")
    for name in wanted:
        if name in fresh:
            rows.append(row("missing", name, None, wanted[name]))
        elif name not in found:
            wrong.append(f"nothing for {name}")
    if wrong:
        raise WeightsError(f"{len(wrong)} tensors do not fit: " + "; ".join(wrong))
    return found, rows


def row(status: str, name: str | None, key: str | None, tensor: Any) -> Row:
    """What became of one tensor."""
    text = "x".join(map(str, getattr(tensor, "shape", ())))
    return {"status": status, "tensor": name, "from": key, "shape": text}


def _fit(
    tensor: Tensor, change: Change | None, name: str, wanted: Tensor, model: nn.Module, how: Adapt
) -> tuple[Tensor, str]:
    """(the tensor in our layout, loaded or resized).  Raises ValueError, the end of a sentence
    about it."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"is a {type(tensor).__name__}, not a tensor")
    if tensor.is_meta:
        raise ValueError("has no values (it is on the meta device)")
    ours, status = tensor, "loaded"
    if change is not None:
        with contextlib.suppress(IndexError, RuntimeError):  # not the source's layout
            ours = change.read(tensor, wanted.shape)
    floats = wanted.is_floating_point()
    if ours.shape != wanted.shape and ours.is_floating_point() and ours.isfinite().all():
        changed = resize.adapt(ours, name, wanted, model, how)
        if changed is not None:
            ours, status = changed, "resized"
    if ours.shape != wanted.shape:
        hint = resize.hint(name)
        raise ValueError(f"has shape {tuple(tensor.shape)}, {name} {tuple(wanted.shape)}{hint}")
    if ours.is_floating_point() != floats or (ours.dtype == torch.bool) != (
        wanted.dtype == torch.bool
    ):
        raise ValueError(f"holds {ours.dtype}, {name} {wanted.dtype}")
    if floats and not ours.isfinite().all():
        raise ValueError("is not finite")
    return ours, status
