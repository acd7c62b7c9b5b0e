"""The fast path with gradients: products, permutations and attention that keep less for backward.

What is cheap is computed again (GELU, the softmax, from its logarithm sums), and gradients of
weights are summed part by part while the part is in the cache.  A second derivative goes through
the plain operators, recorded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from attention import fast, products

# Bytes of a part's hidden layer and of its scores.  More than forward's: every part also reads
# and writes the sums of the weights' gradients.
HIDDEN = 8 << 20
SCORES = 8 << 20


def _plainly(run: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor) -> tuple[Any, ...]:
    """Gradients that can be differentiated again."""
    needed = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    grads = torch.autograd.grad(
        run(*inputs), [inputs[i] for i in needed], grad, create_graph=True, allow_unused=True
    )
    found = dict(zip(needed, grads, strict=True))
    return tuple(found.get(i) for i in range(len(inputs)))


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return products.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _plainly(F.linear, (x, weight, bias), grad)
        need = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            products.linear(grad.contiguous(), weight.t(), None) if need[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if need[1] else None,
            rows.sum(0) if bias is not None and need[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _Linear.apply(x, weight, bias)


def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def _parts(x: Tensor, w1: Tensor) -> Iterator[slice]:
    """Rows whose hidden layer stays in the cache."""
    step = max(HIDDEN // (len(w1) * x.element_size()), 1)
    return fast.slices(len(x), step)


class _MLP(Function):
    """Keeps its input and the hidden layer before GELU, but not after it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> Tensor:  # fmt: skip
        hidden = products.linear(x, w1, b1)
        ctx.save_for_backward(x, w1, b1, w2, b2, hidden)
        out = x.new_empty(len(x), len(w2))
        for part in _parts(x, w1):
            out[part] = products.linear(F.gelu(hidden[part]), w2, b2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *inputs, hidden = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _plainly(_mlp, inputs, grad)
        x, w1, b1, w2, b2 = inputs
        dx = torch.empty_like(x)
        d1, d2 = torch.zeros_like(w1), torch.zeros_like(w2)
        s1, s2 = torch.zeros_like(b1), torch.zeros_like(b2)
        for part in _parts(x, w1):
            dy, h = grad[part].contiguous(), hidden[part]
            dh = torch.ops.aten.gelu_backward(products.linear(dy, w2.t(), None), h)
            d2.addmm_(dy.t(), F.gelu(h))
            d1.addmm_(dh.t(), x[part])
            s2 += dy.sum(0)
            s1 += dh.sum(0)
            dx[part] = products.linear(dh, w1.t(), None)
        return dx, d1, s1, d2, s2


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """(rows, dim) -> (rows, dim): two linear layers with GELU between them."""
    return _MLP.apply(x, w1, b1, w2, b2)


class _Permute(Function):
    """index_select along axis 1 whose gradient is the inverse one, not a scattered sum; places
    of -1 are zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return _select(x, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        index, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, index), None, None


def _select(x: Tensor, index: Tensor) -> Tensor:
    pads = (index < 0).nonzero()[:, 0]
    y = x.index_select(1, index.clamp(min=0))
    return y.index_fill_(1, pads, 0) if len(pads) else y


def permute(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """(b, n, c) -> (b, len(index), c); `inverse` says where each of the n tokens went."""
    return _Permute.apply(x, index, inverse)


def _attend(qkv: Tensor, mask: Tensor, scale: float) -> Tensor:
    q, k, v = qkv.transpose(1, 3).unbind(2)
    scores = (q * scale) @ k.mT
    scores = (scores.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class _Attention(Function):
    """Keeps q, k and v; the scores are made again, part by part."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(qkv, mask)
        ctx.scale = scale
        q, k, v = qkv.detach().unbind(2)  # torch's fused kernel takes no mask that learns
        return fast.attend(q, k, v, mask.detach(), scale).flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        qkv, mask = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _plainly(_attend, (qkv, mask, ctx.scale), grad)
        heads, d = qkv.shape[3:]
        grad, result = grad.unflatten(-1, (heads, d)), torch.empty_like(qkv)
        bias = torch.zeros_like(mask) if ctx.needs_input_grad[1] else None
        for part in _rows(qkv, mask):
            own = qkv[part].permute(2, 0, 3, 1, 4)
            q, k, v = own.reshape(3, -1, qkv.shape[1], d)
            dy = grad[part].transpose(1, 2).reshape(q.shape)
            q = q * ctx.scale
            weights = _scores(q, k, mask, heads).softmax(-1)
            ds = torch.ops.aten._softmax_backward_data(dy @ v.mT, weights, -1, weights.dtype)
            if bias is not None:
                bias += ds.view(-1, *bias.shape).sum(0)
            grads = q.new_empty(3, *q.shape)
            torch.bmm(ds, k, out=grads[0])
            torch.bmm(ds.mT, q, out=grads[1])
            torch.bmm(weights.mT, dy, out=grads[2])
            grads[0] *= ctx.scale
            result[part] = grads.view(own.shape).permute(1, 3, 0, 2, 4)
        return result, bias, None


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


def attend(qkv: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """qkv: (rows, l, 3, m, d); mask: (n, m, l, l), n dividing the rows, or None.
    Returns (rows, l, m * d)."""
    if mask is None:  # torch's own kernel keeps no scores then, and has a backward that makes none
        q, k, v = qkv.unbind(2)
        return fast.attend(q, k, v, None, scale).flatten(2)
    return _Attention.apply(qkv, mask, scale)
