"""The fast path with gradients: products and permutations that keep less for backward.

What is cheap is computed again (GELU; in `attention.scores` the softmax), and gradients of weights
are summed part by part while the part is in the cache.  A second derivative goes through the plain
operators, recorded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.library import register_fake

from attention import fast, products
from attention.groups import Groups
from attention.operators import differentiable, operator, plainly
from attention.ordering import Order, order

# Bytes of a part's hidden layer.  More than forward's: every part also reads and writes the sums
# of the weights' gradients.
HIDDEN = 8 << 20


# -- a linear layer ----------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.ops.transom.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


@differentiable("linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
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
            return plainly(F.linear, (x, weight, bias), grad)
        need = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _linear_back(rows, weight).view(x.shape) if need[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if need[1] else None,
            _total(rows) if bias is not None and need[2] else None,
        )


def _total(rows: Tensor) -> Tensor:
    """`rows.sum(0)`, as a product, which takes half the time."""
    return (rows.new_ones(1, rows.shape[0]) @ rows)[0]


@operator("linear_back", "(Tensor grad, Tensor weight) -> Tensor")
def _linear_back(grad: Tensor, weight: Tensor) -> Tensor:
    return products.back(grad, weight)


@register_fake("transom::linear_back")
def _(grad: Tensor, weight: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[1])


# -- an MLP ------------------------------------------------------------------------------------


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """(..., dim) -> (..., dim): two linear layers with GELU between them."""
    rows = x.reshape(-1, x.shape[-1])
    if not torch.is_grad_enabled():
        out = _mlp(rows, w1, b1, w2, b2)
    elif torch.compiler.is_compiling():
        out, _ = torch.ops.transom.mlp_learn(rows, w1, b1, w2, b2)
    else:
        out, _ = _MLP.apply(rows, w1, b1, w2, b2)
    return out.view(x.shape)


@operator("mlp", "(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> Tensor")
def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return products.mlp(x, products.kept(w1), b1, products.kept(w2), b2)


@register_fake("transom::mlp")
def _(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w2.shape[0])  # len() would be one number in a graph


def _plain_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def _parts(x: Tensor, w1: Tensor) -> Iterator[slice]:
    """Rows whose hidden layer stays in the cache, as many in each part."""
    step = max(HIDDEN // (len(w1) * x.element_size()), 1)
    parts = max(-(-len(x) // step), 1)
    return fast.slices(len(x), max(-(-len(x) // parts), 1))


@differentiable(
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
        return x.new_empty(x.shape[0], w2.shape[0]), x.new_empty(x.shape[0], w1.shape[0])

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
            return plainly(_plain_mlp, inputs, grad)
        x, w1, _, w2, _ = inputs
        return tuple(_mlp_grads(grad, x, w1, w2, hidden))


@operator(
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
        dy, h = grad[part], hidden[part]
        dh = torch.ops.aten.gelu_backward(products.back(dy, w2), h)
        d2.addmm_(dy.t(), F.gelu(h), beta=int(part.start > 0))  # 0: what was there does not count
        d1.addmm_(dh.t(), x[part], beta=int(part.start > 0))
        s2 += _total(dy)
        s1 += _total(dh)
        products.back(dh, w1, out=dx[part])
    return dx, d1, s1, d2, s2


@register_fake("transom::mlp_backward")
def _(grad: Tensor, x: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    like = torch.empty_like
    return like(x), like(w1), w1.new_empty(len(w1)), like(w2), w2.new_empty(len(w2))


# -- the map in the order of its groups --------------------------------------------------------


class _Move(Function):
    """To the order of the groups, or back; its gradient moves the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order, inward: bool) -> Tensor:
        ctx.order, ctx.inward = order, inward
        return order.take(x, slice(0, order.groups.tokens)) if inward else order.back(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _Move.apply(grad, ctx.order, not ctx.inward), None, None


def moves(groups: Groups, device: torch.device) -> tuple[Callable[[Tensor], Tensor], ...]:
    """`groups.inward` and `groups.outward`, in one copy each."""
    if torch.compiler.is_compiling():  # which makes one of them, too
        return groups.inward, groups.outward
    there = fast.remember(("order", groups, device), lambda: order(groups, device))

    def inward(x: Tensor) -> Tensor:
        return cast(Tensor, _Move.apply(x.flatten(1, 2), there, True))

    def outward(y: Tensor) -> Tensor:
        size = groups.rows.length, groups.cols.length
        return cast(Tensor, _Move.apply(y, there, False)).unflatten(1, size)

    return inward, outward
