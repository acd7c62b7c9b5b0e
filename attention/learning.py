"""The fast path with gradients: products, permutations and attention that keep less for backward.

What is cheap is computed again (GELU, the softmax, from its logarithm sums), and gradients of
weights are summed part by part while the part is in the cache.  A second derivative goes through
the plain operators, recorded when it is asked for.

A graph that torch.compile traces on a CPU, with gradients or without, holds the same products and
masked attention as operators (`torch.ops.transom`): the compiler would take BLAS's products and
keep scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.library import custom_op, register_autograd, register_fake

from attention import fast, products
from attention.groups import Groups

# Bytes of a part's hidden layer and of its scores.  More than forward's: every part also reads
# and writes the sums of the weights' gradients.
HIDDEN = 8 << 20
SCORES = 8 << 20


def _operator(name: str, schema: str) -> Callable[..., Any]:
    return custom_op(f"transom::{name}", mutates_args=(), device_types="cpu", schema=schema)


def _differentiable(name: str, schema: str) -> Callable[[Any], Any]:
    """The function as an operator, too: for graphs.  In eager it takes less time to call."""

    def register(function: Any) -> Any:
        _operator(name, schema)(function.forward)
        register_fake(f"transom::{name}")(function.fake)
        register_autograd(
            f"transom::{name}", function.backward, setup_context=function.setup_context
        )
        return function

    return register


def _plainly(run: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor) -> tuple[Any, ...]:
    """Gradients that can be differentiated again."""
    needed = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    grads = torch.autograd.grad(
        run(*inputs), [inputs[i] for i in needed], grad, create_graph=True, allow_unused=True
    )
    found = dict(zip(needed, grads, strict=True))
    return tuple(found.get(i) for i in range(len(inputs)))


# -- a linear layer ----------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.ops.transom.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


@_differentiable("linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
class _Linear(Function):
    """A graph holds weights as they are; the copies of a folded model are looked up here."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return products.linear(x, products.kept(weight), bias)

    @staticmethod
    def fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x.new_empty(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _plainly(F.linear, (x, weight, bias), grad)
        need = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            torch.ops.transom.linear(grad.contiguous(), weight.t(), None) if need[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if need[1] else None,
            rows.sum(0) if bias is not None and need[2] else None,
        )


# -- an MLP ------------------------------------------------------------------------------------


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """(..., dim) -> (..., dim): two linear layers with GELU between them."""
    rows = x.reshape(-1, x.shape[-1])
    if not torch.is_grad_enabled():
        out = torch.ops.transom.mlp(rows, w1, b1, w2, b2)
    elif torch.compiler.is_compiling():
        out, _ = torch.ops.transom.mlp_learn(rows, w1, b1, w2, b2)
    else:
        out, _ = _MLP.apply(rows, w1, b1, w2, b2)
    return out.view(x.shape)


@_operator("mlp", "(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> Tensor")
def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return products.mlp(x, products.kept(w1), b1, products.kept(w2), b2)


@register_fake("transom::mlp")
def _(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return x.new_empty(len(x), len(w2))


def _plain_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def _parts(x: Tensor, w1: Tensor) -> Iterator[slice]:
    """Rows whose hidden layer stays in the cache."""
    step = max(HIDDEN // (len(w1) * x.element_size()), 1)
    return fast.slices(len(x), step)


@_differentiable(
    "mlp_learn", "(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> (Tensor, Tensor)"
)
class _MLP(Function):
    """Of rows.  The second answer is for backward: the hidden layer before GELU, but not after
    it."""

    @staticmethod
    def forward(
        x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        hidden = products.linear(x, w1, b1)
        out = x.new_empty(len(x), len(w2))
        for part in _parts(x, w1):
            out[part] = products.linear(F.gelu(hidden[part]), w2, b2)
        return out, hidden

    @staticmethod
    def fake(
        x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return x.new_empty(len(x), len(w2)), x.new_empty(len(x), len(w1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.set_materialize_grads(False)  # nobody has one for the hidden layer

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
        *inputs, hidden = ctx.saved_tensors
        if grad is None:
            return (None,) * len(inputs)
        if torch.is_grad_enabled():
            return _plainly(_plain_mlp, inputs, grad)
        x, w1, _, w2, _ = inputs
        return tuple(torch.ops.transom.mlp_backward(grad, x, w1, w2, hidden))


@_operator(
    "mlp_backward",
    "(Tensor grad, Tensor x, Tensor w1, Tensor w2, Tensor hidden)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _mlp_grads(
    grad: Tensor, x: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor
) -> tuple[Tensor, ...]:  # fmt: skip
    dx, d1, d2 = torch.empty_like(x), torch.empty_like(w1), torch.empty_like(w2)
    s1, s2 = w1.new_zeros(len(w1)), w2.new_zeros(len(w2))
    for part in _parts(x, w1):
        dy, h = grad[part].contiguous(), hidden[part]
        dh = torch.ops.aten.gelu_backward(products.linear(dy, w2.t(), None), h)
        d2.addmm_(dy.t(), F.gelu(h), beta=int(part.start > 0))  # 0: what was there does not count
        d1.addmm_(dh.t(), x[part], beta=int(part.start > 0))
        s2 += dy.sum(0)
        s1 += dh.sum(0)
        dx[part] = products.linear(dh, w1.t(), None)
    return dx, d1, s1, d2, s2


@register_fake("transom::mlp_backward")
def _(grad: Tensor, x: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    like = torch.empty_like
    return like(x), like(w1), w1.new_empty(len(w1)), like(w2), w2.new_empty(len(w2))


# -- the map in the order of its groups --------------------------------------------------------


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


def inward(x: Tensor, groups: Groups) -> Tensor:
    """`groups.inward`, in one copy."""
    if torch.compiler.is_compiling():  # which makes one of it, too
        return groups.inward(x)
    there, back = groups.order(x.device)
    return _Permute.apply(x.flatten(1, 2), there, back)


def outward(y: Tensor, groups: Groups) -> Tensor:
    """`groups.outward`, in one copy."""
    if torch.compiler.is_compiling():
        return groups.outward(y)
    there, back = groups.order(y.device)
    return _Permute.apply(y, back, there).unflatten(1, (groups.rows.length, groups.cols.length))


# -- attention inside groups -------------------------------------------------------------------


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


@_differentiable("attend", "(Tensor qkv, Tensor mask, float scale) -> Tensor")
class _Attention(Function):
    """Keeps queries, keys and values; the scores are made again, part by part."""

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
            return _plainly(_plain_attend, (qkv, mask, ctx.scale), grad)
        learns = ctx.needs_input_grad[1]
        dqkv, dmask = torch.ops.transom.attend_backward(grad, qkv, mask, ctx.scale, learns)
        return dqkv, dmask if learns else None, None


@_operator(
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
