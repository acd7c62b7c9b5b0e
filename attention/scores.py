"""Attention inside groups with gradients: no scores are kept, backward makes them again, part by
part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import register_fake

from attention import fast
from attention.operators import differentiable, operator, plainly

SCORES = 8 << 20  # bytes of a part's


def attend(qkv: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """qkv: (rows, l, 3, m, d); mask: (n, m, l, l), n dividing the rows, or None.
    Returns (rows, l, m * d)."""
    if mask is None:  # torch's own kernel keeps no scores then, and has a backward that makes none
        q, k, v = qkv.unbind(2)
        return fast.attend(q, k, v, None, scale).flatten(2)
    if torch.compiler.is_compiling():
        return torch.ops.transom.attend(qkv, mask, scale)
    return _Attention.apply(qkv, mask, scale)


def _plain_attend(qkv: Tensor, mask: Tensor, scale: float) -> Tensor:
    q, k, v = qkv.transpose(1, 3).unbind(2)
    scores = (q * scale) @ k.mT
    scores = (scores.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@differentiable("attend", "(Tensor qkv, Tensor mask, float scale) -> Tensor")
class _Attention(Function):
    """Keeps queries, keys and values."""

    @staticmethod
    def forward(qkv: Tensor, mask: Tensor, scale: float) -> Tensor:
        q, k, v = qkv.detach().unbind(2)  # torch's fused kernel takes no mask that learns
        return fast.attend(q, k, v, mask.detach(), scale).flatten(2).contiguous()

    @staticmethod
    def fake(qkv: Tensor, mask: Tensor, scale: float) -> Tensor:
        rows, length, _, heads, d = qkv.shape
        return qkv.new_empty(rows, length, heads * d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        qkv, mask, ctx.scale = inputs
        ctx.save_for_backward(qkv, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        qkv, mask = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plainly(_plain_attend, (qkv, mask, ctx.scale), grad)
        learns = ctx.needs_input_grad[1]
        dqkv, dmask = torch.ops.transom.attend_backward(grad, qkv, mask, ctx.scale, learns)
        return dqkv, dmask if learns else None, None


@operator(
    "attend_backward",
    "(Tensor grad, Tensor qkv, Tensor mask, float scale, bool learns) -> (Tensor, Tensor)",
)
def _attend_grads(
    grad: Tensor, qkv: Tensor, mask: Tensor, scale: float, learns: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """learns: does the mask, whose gradient is the second answer?  Nothing, if not."""
    heads, d = qkv.shape[3:]
    grad, result = grad.unflatten(-1, (heads, d)), torch.empty_like(qkv)
    bias = torch.zeros_like(mask if learns else mask[:0])
    for part in _rows(qkv, mask):
        own = qkv[part].permute(2, 0, 3, 1, 4)
        q, k, v = own.reshape(3, -1, qkv.shape[1], d)
        dy = grad[part].transpose(1, 2).reshape(q.shape)
        q = q * scale
        weights = _scores(q, k, mask, heads).softmax(-1)
        ds = torch.ops.aten._softmax_backward_data(dy @ v.mT, weights, -1, weights.dtype)
        if learns:
            bias += ds.view(-1, *bias.shape).sum(0)
        grads = q.new_empty(3, *q.shape)
        torch.bmm(ds, k, out=grads[0])
        torch.bmm(ds.mT, q, out=grads[1])
        torch.bmm(weights.mT, dy, out=grads[2])
        grads[0] *= scale
        result[part] = grads.view(own.shape).permute(1, 3, 0, 2, 4)
    return result, bias


@register_fake("transom::attend_backward")
def _(
    grad: Tensor, qkv: Tensor, mask: Tensor, scale: float, learns: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(qkv), torch.empty_like(mask if learns else mask[:0])


def _scores(q: Tensor, k: Tensor, mask: Tensor, heads: int) -> Tensor:
    """(rows * heads, l, l)."""
    added = mask.expand(-1, heads, -1, -1).flatten(0, 1)
    return torch.baddbmm(added.repeat(len(q) // len(added), 1, 1), q, k.mT)


def _rows(qkv: Tensor, mask: Tensor) -> Iterator[slice]:
    """Rows whose scores stay in the cache: whole images where each group has its own mask."""
    unit = len(mask)
    numbers = unit * qkv.shape[3] * qkv.shape[1] ** 2
    step = unit * max(SCORES // (numbers * qkv.element_size()), 1)
    return fast.slices(len(qkv), step)
