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
from attention.position import SHORTEST, cosine_normalize, cosine_stretch

SCORES = 8 << 20  # bytes of a part's


def attend(qkv: Tensor, mask: Tensor | None, scale: float, gain: Tensor | None = None) -> Tensor:
    """qkv: (rows, l, 3, m, d); mask: (n, m, l, l), n dividing the rows, or None; gain: (m,), the
    length that queries are given where scores are cosines, keys then being given 1.
    Returns (rows, l, m * d)."""
    if mask is None and gain is None:  # torch's own kernel keeps no scores then, either
        q, k, v = qkv.unbind(2)
        return fast.attend(q, k, v, None, scale).flatten(2)
    if torch.compiler.is_compiling():
        return torch.ops.transom.attend(qkv, mask, scale, gain)
    return _Attention.apply(qkv, mask, scale, gain)


def _plain_attend(
    qkv: Tensor, mask: Tensor | None, scale: float, gain: Tensor | None
) -> Tensor:  # fmt: skip
    q, k, v = qkv.transpose(1, 3).unbind(2)
    if gain is not None:
        q, k = cosine_normalize(q, gain[:, None, None]), cosine_normalize(k)
    scores = (q * scale) @ k.mT
    if mask is not None:
        scores = (scores.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@differentiable("attend", "(Tensor qkv, Tensor? mask, float scale, Tensor? gain) -> Tensor")
class _Attention(Function):
    """Keeps queries, keys and values as they came."""

    @staticmethod
    def forward(qkv: Tensor, mask: Tensor | None, scale: float, gain: Tensor | None) -> Tensor:
        # torch's fused kernel takes no mask that learns
        added = None if mask is None else mask.detach()

        def run(qkv: Tensor) -> Tensor:
            q, k, v = qkv.unbind(2)
            if gain is not None:
                q, k = cosine_normalize(qkv[:, :, :2], _lengths(gain)).unbind(2)
            return fast.attend(q, k, v, added, scale).flatten(2).contiguous()

        parts = [slice(0, len(qkv))] if gain is None else _rows(qkv, mask)
        return fast.each(qkv.detach(), parts, run)

    @staticmethod
    def fake(qkv: Tensor, mask: Tensor | None, scale: float, gain: Tensor | None) -> Tensor:
        rows, length, _, heads, d = qkv.shape
        return qkv.new_empty(rows, length, heads * d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        qkv, mask, ctx.scale, gain = inputs
        ctx.save_for_backward(qkv, mask, gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        qkv, mask, gain = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plainly(_plain_attend, (qkv, mask, ctx.scale, gain), grad)
        learns = ctx.needs_input_grad[1]
        dqkv, dmask, dgain = _attend_grads(grad, qkv, mask, ctx.scale, gain, learns)
        return dqkv, dmask if learns else None, None, None if gain is None else dgain


@operator(
    "attend_backward",
    "(Tensor grad, Tensor qkv, Tensor? mask, float scale, Tensor? gain, bool learns)"
    " -> (Tensor, Tensor, Tensor)",
)
def _attend_grads(
    grad: Tensor, qkv: Tensor, mask: Tensor | None, scale: float, gain: Tensor | None, learns: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """learns: does the mask, whose gradient is the second answer?  Nothing, if not; and nothing
    for a gain that is not there."""
    heads, d = qkv.shape[3:]
    grad, result = grad.unflatten(-1, (heads, d)), torch.empty_like(qkv)
    bias, gains = (torch.zeros_like(t) for t in _learning(qkv, mask, gain, learns))
    for part in _rows(qkv, mask):
        own, into = (t[part].permute(2, 0, 3, 1, 4) for t in (qkv, result))
        if gain is None:
            n, stretch = 1, torch.tensor(scale, dtype=qkv.dtype)
        else:
            n, stretch = 2, cosine_stretch(own[:2], _lengths(gain)[:, None, :, None])
        whole, grads = (own.new_empty(own.shape) for _ in range(2))
        torch.mul(own[:n], stretch, out=whole[:n])
        whole[n:] = own[n:]
        q, k, v = whole.flatten(1, 2)
        dq, dk, dv = grads.flatten(1, 2)
        dy = grad[part].transpose(1, 2).reshape(q.shape)
        weights = _scores(q, k, mask, heads).softmax(-1)
        ds = torch.ops.aten._softmax_backward_data(dy @ v.mT, weights, -1, weights.dtype)
        if learns:
            bias += ds.view(-1, *bias.shape).sum(0)
        torch.bmm(ds, k, out=dq)
        torch.bmm(ds.mT, q, out=dk)
        torch.bmm(weights.mT, dy, out=dv)
        if gain is not None:
            gains += _straighten(grads[:2], whole[:2], stretch, gain)
        torch.mul(grads[:n], stretch, out=into[:n])
        into[n:] = grads[n:]
    return result, bias, gains


@register_fake("transom::attend_backward")
def _(
    grad: Tensor, qkv: Tensor, mask: Tensor | None, scale: float, gain: Tensor | None, learns: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    bias, lengths = (torch.empty_like(t) for t in _learning(qkv, mask, gain, learns))
    return torch.empty_like(qkv), bias, lengths


def _learning(
    qkv: Tensor, mask: Tensor | None, gain: Tensor | None, learns: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The mask and the gain, or for what has no gradient an empty tensor."""
    none = qkv.new_empty(0)
    return mask if learns and mask is not None else none, none if gain is None else gain


def _lengths(gain: Tensor) -> Tensor:
    """(2, m, 1): of queries and keys."""
    return torch.stack([gain, torch.ones_like(gain)])[..., None]


def _straighten(grad: Tensor, x: Tensor, stretch: Tensor, gain: Tensor) -> Tensor:
    """x: queries and keys (2, rows, m, l, d) as they were stretched; grad: theirs.  Takes out of
    grad, in place, what points along them: no stretched vector becomes longer.  Returns the
    gradient of gain."""
    lengths = _lengths(gain)[:, None, :, None]
    along = (x * grad).sum(-1, keepdim=True)
    free = stretch >= lengths / SHORTEST  # too short for their length: they do
    grad.addcmul_(x, (along / lengths.square()).masked_fill_(free, 0), value=-1)
    return along[0].sum((0, 2, 3)) / gain


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """(rows * heads, l, l)."""
    scores = q @ k.mT
    if mask is not None:
        scores.view(-1, len(mask), heads, *scores.shape[1:]).add_(mask)
    return scores


def _rows(qkv: Tensor, mask: Tensor | None) -> Iterator[slice]:
    """Rows whose scores stay in the cache: whole images where each group has its own mask."""
    unit = 1 if mask is None else len(mask)
    numbers = unit * qkv.shape[3] * qkv.shape[1] ** 2
    step = unit * max(SCORES // (numbers * qkv.element_size()), 1)
    return fast.slices(len(qkv), step)
