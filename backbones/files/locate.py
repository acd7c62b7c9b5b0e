"""Finds the state dict of a backbone in a checkpoint by structure, at any depth and any name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from backbones.files.standins import StandIn, kind
from backbones.files.storage import WeightsError
from transom.errors import nearest, one_line

DEEPEST, MOST = 8, 4096  # levels of nested tables, and tables in all
# The stem's kernel, which every source has exactly once, and what stands before its name.
STEM = re.compile(
    r"((?:.*?\.)??)(?:stem\.(?:conv1?|proj|0\.0)|conv_proj|stage1_conv_embed\.0|features\.0\.0|"
    r"patch_embed(?:1|s\.0)?\.proj(?:ection)?|"
    r"(?:swin(?:v2)?\.)?embeddings\.patch_embeddings\.projection)\.weight"
)
COPY = re.compile(r"(.+)_k\.")  # MoCo's and MoBY's name for the momentum copy of an encoder
STATED = ("qk_scale",)  # settings that a configuration beside the weights tells and no shape does


def bodies(state: Mapping[Any, Any]) -> list[str]:
    """Prefixes of the keys of every backbone in a state dict, such as "" or ``module.backbone.``.

    Momentum copies (``encoder_k.`` beside ``encoder.``) are left out.
    """
    found = []
    for key, value in state.items():
        match = STEM.fullmatch(key) if isinstance(key, str) else None
        if match is not None and getattr(value, "ndim", 0) == 4:
            found.append(match[1])
    copies = {prefix for prefix in found if (m := COPY.fullmatch(prefix)) and m[1] + "." in found}
    return [prefix for prefix in found if prefix not in copies]


class Located(NamedTuple):
    """A state dict and what lies beside it in its checkpoint.

    state: tensors by name.  beside: types of all other values, by name.  stated: values of the
    STATED settings in a configuration, as text.
    """

    state: dict[str, Tensor]
    beside: dict[str, str]
    stated: dict[str, str]


def locate(checkpoint: Any, entry: str | None = None) -> Located:
    """Finds the state dict in a checkpoint, such as ``{"ema": {"module": {...}}}``.

    A state dict is a table that has tensors under names.

    Args:
        checkpoint: the object that torch.load returned.
        entry: names on the way to one of several state dicts, ``ema.module``.

    Returns:
        The state dict and what lies beside it.

    Raises:
        WeightsError: the checkpoint has no state dict, or several.

    Example:
        >>> import torch
        >>> found = locate({"ema": {"module": {"w": torch.ones(2)}}, "epoch": 3})
        >>> list(found.state), found.beside
        (['w'], {'epoch': 'int'})
    """
    if not isinstance(checkpoint, Mapping):
        way_out = "; save its state_dict()" if isinstance(checkpoint, StandIn) else ""
        raise WeightsError(f"holds a {kind(checkpoint)}, not a table of tensors{way_out}")
    tables = list(_tables(checkpoint, (), set()))
    if entry is not None:
        chosen = [(path, table) for path, table in tables if _leads(entry, path)]
        if not chosen:
            known = [".".join(path) for path, _ in tables if path]
            raise WeightsError(f"no state dict called {entry!r}{nearest(entry, known)}")
        tables = chosen
    tables = [found for found in tables if bodies(found[1])] or tables
    if not tables:
        raise WeightsError("holds no tensors under names")
    if len(tables) > 1:
        held = ", ".join(one_line(".".join(path)) or "the outermost" for path, _ in tables)
        raise WeightsError(f"holds {held}; say which one by --entry")
    path, table = tables[0]
    state = {key: value for key, value in table.items() if _is_named(key, value)}
    beside = {key: kind(value) for key, value in table.items() if key not in state}
    outer = checkpoint
    for i, name in enumerate(path):
        others = {k: v for k, v in outer.items() if k != name}
        beside = {".".join([*path[:i], str(k)]): kind(v) for k, v in others.items()} | beside
        outer = outer[name]
    return Located(state, beside, dict(_stated(checkpoint, 0)))


def _is_named(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _leads(entry: str, path: tuple[str, ...]) -> bool:
    return any(".".join(path[:i]) == entry for i in range(1, len(path) + 1))


def _tables(
    table: Mapping[Any, Any], path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Paths and tables that hold tensors, each once.

    Tables under numbers, as optimizers have them, are left out.
    """
    if id(table) in seen or len(seen) >= MOST or len(path) > DEEPEST:
        return
    seen.add(id(table))
    if any(_is_named(key, value) for key, value in table.items()):
        yield path, table
    for key, value in table.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _tables(value, (*path, key), seen)


def _stated(value: Any, depth: int) -> Iterator[tuple[str, str]]:
    """(name, text) of every STATED setting, in tables and stand-ins."""
    inner = value.content if isinstance(value, StandIn) else value
    if not isinstance(inner, Mapping) or depth > DEEPEST or len(inner) > MOST:
        return
    for key, item in inner.items():
        if isinstance(key, str) and key.lower() in STATED and isinstance(item, (int, float)):
            yield key.lower(), repr(item)
        else:
            yield from _stated(item, depth + 1)
