"""Attention inside groups as one GPU kernel: where it applies, and its place in autograd.

`attend` is `Groups.roll`, `split`, masks, bias, softmax, `merge` and `unroll` without a copy: the
kernels compute from the integers of the partition where each token lies.  It is a custom operator
(`torch.ops.transom.group_attention`), so that compile and export see one node.

The kernel is deterministic: every sum has one order, in registers, without atomic additions.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attention.execution.backends import backend
from attention.geometry.groups import Groups
from attention.kernels.launch import TILE_TOKENS, Call, groups_of

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's switch: kernels on a CPU
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HEAD_DIMS = range(16, 65)
LARGEST_GROUP = 4096  # tokens
OLDEST = 8  # major compute capability: bfloat16 products


def supported(q: Tensor, groups: Groups, *, heads: int) -> str | None:
    """The reason why the kernel cannot run on queries q (..., heads * d); None if it can."""
    d, length = q.shape[-1] // heads, math.prod(groups.extent)
    if not HAS_TRITON:
        return "Triton is not installed"
    if q.device.type != "cuda" and not (INTERPRETED and q.device.type == "cpu"):
        return f"the tensors are on {q.device.type}, not on a CUDA GPU"
    if q.device.type == "cuda" and torch.cuda.get_device_properties(q.device).major < OLDEST:
        return f"the GPU is older than compute capability {OLDEST}.0"
    if q.dtype not in DTYPES:
        return f"{q.dtype} is none of float16, bfloat16, float32"
    if d not in HEAD_DIMS:
        return f"{d} channels a head are outside {HEAD_DIMS[0]} to {HEAD_DIMS[-1]}"
    if length > LARGEST_GROUP:
        return f"a group of {length} tokens is larger than {LARGEST_GROUP}"
    return None


def kernel() -> AbstractContextManager[None]:
    """Context in which mixers attend by the GPU kernel: `attention.backend("kernel")`.

    Source: for groups of many tiles FlashAttention (Dao et al. 2022, arXiv 2205.14135), softmax
    over tiles of keys that backward computes again.  Code and geometry are ours.

    Returns:
        A context manager.  Inside, a call that the kernel cannot compute raises ValueError.

    Example:
        >>> import attention, torch
        >>> from attention.fused import kernel
        >>> mixer = attention.create("full", dim=8, heads=2).double()
        >>> with kernel():  # doctest: +ELLIPSIS
        ...     mixer(torch.zeros(1, 4, 4, 8).double())
        Traceback (most recent call last):
        ValueError: fused attention: ...
    """
    return backend("kernel")


def require(q: Tensor, groups: Groups, *, heads: int) -> None:
    """Raises ValueError, in one line, if the kernel cannot run on queries q (..., heads * d)."""
    reason = supported(q, groups, heads=heads)
    if reason:
        raise ValueError(f"fused attention: {reason}; the reference backend runs anywhere")


def attend(
    q: Tensor, k: Tensor, v: Tensor, groups: Groups, *, heads: int, scale: float = 1.0,
    bias: Tensor | None = None, logit_scale: Tensor | None = None, mask_value: float | None = None,
    mask_padding: bool = False,
) -> Tensor:  # fmt: skip
    """Softmax attention inside `groups` for every head, differentiable once.

    Args:
        q, k, v: (b, hp, wp, heads * d), the padded map, not rolled; strided views are not copied.
        groups: the partition of the map.
        heads: number of heads.
        scale: factor of the products q k.
        bias: (heads, l, l), added to the scores of every group.
        logit_scale: (heads,), the scale of cosine scores; with it q and k are normalised.
        mask_value: added to pairs that the shift separated; None masks them.
        mask_padding: whether a pad is masked as a key of every token but itself.

    Returns:
        (b, hp, wp, heads * d), contiguous.

    Raises:
        ValueError: with the reason that `supported` gives.
    """
    require(q, groups, heads=heads)
    return _attend([q, k, v], groups, heads, scale, bias, logit_scale, mask_value, mask_padding)


def attend_packed(
    qkv: Tensor, groups: Groups, *, heads: int, scale: float = 1.0, bias: Tensor | None = None,
    logit_scale: Tensor | None = None, mask_value: float | None = None, mask_padding: bool = False,
) -> Tensor:  # fmt: skip
    """`attend` of qkv.chunk(3, -1), with the gradient of qkv written as one tensor.

    Args:
        qkv: (b, hp, wp, 3 * heads * d).
    """
    require(qkv.chunk(3, -1)[0], groups, heads=heads)
    return _attend([qkv], groups, heads, scale, bias, logit_scale, mask_value, mask_padding)


def _attend(
    parts: list[Tensor], groups: Groups, heads: int, scale: float, bias: Tensor | None,
    logit_scale: Tensor | None, mask_value: float | None, mask_padding: bool,
) -> Tensor:  # fmt: skip
    axes = [int(number) for axis in groups for number in axis]
    op = torch.ops.transom.group_attention
    return op(parts, bias, logit_scale, axes, heads, scale, mask_value, mask_padding)[0]


# -- the operator ------------------------------------------------------------------------------

# An exported program stores a schema's argument names: `gain` is the logit scale, and `hidden`
# says that padding is masked.
_OPTIONS = "int[] axes, int heads, float scale, float? mask_value, bool hidden"


@torch.library.custom_op(
    "transom::group_attention", mutates_args=(),
    schema=f"(Tensor[] parts, Tensor? bias, Tensor? gain, {_OPTIONS}) -> (Tensor, Tensor)",
)  # fmt: skip
def group_attention(
    parts: Sequence[Tensor], bias: Tensor | None, logit_scale: Tensor | None, axes: Sequence[int],
    heads: int, scale: float, mask_value: float | None, mask_padding: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention inside groups.

    Returns:
        The output (b, hp, wp, heads * d), and the log-sum of every row of scores
        (b * n, heads, l) where a group takes several tiles, else an empty tensor.
    """
    call = Call(parts, bias, logit_scale, axes, heads, scale, mask_value, mask_padding)
    out, lse = _outputs(parts, axes, heads)
    if call.items:
        call.forward(out, lse)
    return out, lse


@torch.library.custom_op(
    "transom::group_attention_backward", mutates_args=(),
    schema="(Tensor gout, Tensor out, Tensor lse, Tensor[] parts, Tensor? bias, Tensor? gain, "
    f"{_OPTIONS}) -> Tensor[]",
)  # fmt: skip
def group_attention_backward(
    gout: Tensor, out: Tensor, lse: Tensor, parts: Sequence[Tensor], bias: Tensor | None,
    logit_scale: Tensor | None, axes: Sequence[int], heads: int, scale: float,
    mask_value: float | None, mask_padding: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the parts, then of the bias and of the logit scale where they are given."""
    call = Call(parts, bias, logit_scale, axes, heads, scale, mask_value, mask_padding)
    grads = _gradients(parts, bias, logit_scale)
    if call.items:
        call.backward(gout.contiguous(), out, lse, grads)
    else:
        for grad in grads:
            grad.zero_()
    return grads


def _outputs(parts: Sequence[Tensor], axes: Sequence[int], heads: int) -> tuple[Tensor, Tensor]:
    like, groups = parts[0], groups_of(axes)
    b, hp, wp, channels = like.shape
    length = math.prod(groups.extent)
    out = like.new_empty(b, hp, wp, channels // 3 if len(parts) == 1 else channels)
    sums = (b * groups.n, heads, length) if length > TILE_TOKENS else (0, 0, 0)
    return out, like.new_empty(sums, dtype=torch.float32)


def _gradients(parts: Sequence[Tensor], *tables: Tensor | None) -> list[Tensor]:
    inputs = [*parts, *(t for t in tables if t is not None)]
    return [t.new_empty(t.shape) for t in inputs]


@group_attention.register_fake
def _(parts, bias, logit_scale, axes, heads, scale, mask_value, mask_padding):
    return _outputs(parts, axes, heads)


@group_attention_backward.register_fake
def _(gout, out, lse, parts, bias, logit_scale, axes, heads, scale, mask_value, mask_padding):
    return _gradients(parts, bias, logit_scale)


def _save_for_backward(ctx, inputs, output) -> None:
    parts, bias, logit_scale, *ctx.options = inputs
    out, lse = output
    ctx.present = bias is not None, logit_scale is not None
    saved = out if lse.numel() else lse  # groups of one tile compute everything again
    ctx.save_for_backward(saved, lse, *parts, *(t for t in (bias, logit_scale) if t is not None))
    ctx.parts = len(parts)
    ctx.set_materialize_grads(False)


def _gradient(ctx, gout, _):
    if gout is None:
        return (None,) * 8
    out, lse, *tensors = ctx.saved_tensors
    parts, tables = tensors[: ctx.parts], iter(tensors[ctx.parts :])
    bias, logit_scale = (next(tables) if present else None for present in ctx.present)
    op = torch.ops.transom.group_attention_backward
    grads = op(gout, out, lse, parts, bias, logit_scale, *ctx.options)
    remaining = iter(grads[ctx.parts :])
    table_grads = (next(remaining) if present else None for present in ctx.present)
    return list(grads[: ctx.parts]), *table_grads, *(None,) * 5


group_attention.register_autograd(_gradient, setup_context=_save_for_backward)


def _flops(products: int, parts, axes, heads) -> int:
    b, *_, channels = parts[0]
    pairs = groups_of(axes).pairs
    return 2 * products * b * pairs * (channels // 3 if len(parts) == 1 else channels)


@register_flop_formula(torch.ops.transom.group_attention)
def _(parts, bias, logit_scale, axes, heads, *options, out_shape=None, **ignored) -> int:
    return _flops(2, parts, axes, heads)


@register_flop_formula(torch.ops.transom.group_attention_backward)
def _(
    gout, out, lse, parts, bias, logit_scale, axes, heads, *options, out_shape=None, **ignored
) -> int:  # fmt: skip
    return _flops(5, parts, axes, heads)
