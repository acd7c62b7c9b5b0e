"""The check of the input of mixers and backbones, which explains a refusal in one line.

Rank, channels and dtype are checked always, because every graph holds them fixed; height and
width in eager only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transom.errors import SpecError, one_line

MAP, IMAGES = -1, 1  # the axis of the channels in (b, h, w, c) and in (b, c, h, w)


def check(x: Any, module: object, axis: int, channels: int) -> None:
    """Refuses an input that is no batch of maps or images.

    Args:
        x: the input; its batch may be empty.  An object with `__torch_function__` passes.
        module: the config or spec of the module that is called; its text begins the message.
        axis: MAP for (b, h, w, channels), IMAGES for (b, channels, h, w).
        channels: number of channels that the module takes.

    Raises:
        SpecError: with the given and the expected layout, and the conversion where it is clear.

    Example:
        >>> check(torch.zeros(2, 96, 14, 14), "window:size=7", MAP, 96)
        Traceback (most recent call last):
        transom.errors.SpecError: window:size=7 takes (b, h, w, 96); given (2, 96, 14, 14), \
which looks like channels first: x.permute(0, 2, 3, 1)
    """
    if not _fits(x, axis, channels):
        raise SpecError(_fault(x, one_line(str(module)), axis, channels))


def in_graph() -> bool:
    """True where sizes may be free, or are tensors whose comparison is recorded."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def check_tokens(tokens: Any, x: Tensor, module: object, channels: int) -> None:
    """Refuses tokens beside a map that are none of its batch and width.

    Args:
        tokens: (b, t, channels), any t.
        x: the map, (b, h, w, channels), which has been checked.
        module: the config of the mixer.
        channels: number of channels that the mixer takes.

    Raises:
        SpecError: with the given and the expected shape.
    """
    if isinstance(tokens, Tensor) and tokens.dim() == 3:
        if in_graph():
            return
        if (tokens.shape[0], tokens.shape[2]) == (x.shape[0], channels):
            return
    shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
    raise SpecError(
        f"{one_line(str(module))} takes tokens ({x.shape[0]}, t, {channels}) beside this map; "
        f"given {shape}"
    )


def _fits(x: Any, axis: int, channels: int) -> bool:
    if not isinstance(x, Tensor):
        return hasattr(x, "__torch_function__")
    if x.dim() != 4 or not x.is_floating_point():
        return False
    if torch.jit.is_tracing():  # sizes are tensors there, and comparing them is recorded
        return True
    sides = torch.compiler.is_compiling() or 0 not in x.shape[1:]
    return x.shape[axis] == channels and sides


def _fault(x: Any, module: str, axis: int, channels: int) -> str:
    layout = f"(b, h, w, {channels})" if axis == MAP else f"(b, {channels}, h, w)"
    if not isinstance(x, Tensor):
        return f"{module} takes a tensor {layout}; given {type(x).__name__}"
    if not x.is_floating_point():
        cast = "x.float() / 255" if x.dtype == torch.uint8 else "x.float()"
        return f"{module} takes floating point; given {x.dtype}: {cast}"
    hint = _conversion(tuple(x.shape), axis, channels)
    return f"{module} takes {layout}; given {tuple(x.shape)}{hint}"


def _conversion(shape: tuple[int, ...], axis: int, channels: int) -> str:
    """The conversion to the expected layout, if the shape looks like another known layout."""
    if len(shape) == 4 and shape[axis] == channels:
        return ": height and width from 1"
    if axis == MAP:
        if len(shape) == 4 and shape[1] == channels:
            return ", which looks like channels first: x.permute(0, 2, 3, 1)"
        if len(shape) == 3 and shape[-1] == channels:
            return ", which looks like tokens: x.unflatten(1, (h, w)), or one map: x[None]"
        return ""
    if len(shape) == 4 and shape[-1] == channels:
        return ", which looks like channels last: x.permute(0, 3, 1, 2)"
    if len(shape) == 3 and shape[0] == channels:
        return ", which looks like one image: x[None]"
    return f": in_channels={shape[1]} takes it" if len(shape) == 4 else ""
