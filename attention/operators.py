"""How a function of ours becomes an operator of torch's, `torch.ops.transom.NAME`.

A graph that torch.compile traces on a CPU, with gradients or without, holds our products and our
masked attention as operators: the compiler would take BLAS's products and keep scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import custom_op, register_autograd, register_fake

from attention import fast


def operator(name: str, schema: str) -> Callable[[Any], Any]:
    """The function as an operator where somebody looks at operators, a graph or a mode; itself
    in eager, which takes less time to call."""

    def register(function: Any) -> Any:
        made = _made(name, schema, function)

        @wraps(function)
        def call(x: Tensor, *rest: Any) -> Any:
            return (made if _seen(x) else function)(x, *rest)

        return call

    return register


def _seen(x: Tensor) -> bool:
    return (
        torch.compiler.is_compiling()
        or fast.watched()
        or torch._C._functorch.is_legacy_batchedtensor(x)  # autograd.grad(is_grads_batched=True)
    )


def _made(name: str, schema: str, function: Any) -> Any:
    return custom_op(
        f"transom::{name}", function, mutates_args=(), device_types="cpu", schema=schema
    )


def differentiable(name: str, schema: str) -> Callable[[type[Function]], type[Function]]:
    """A torch.autograd.Function, which has also a `fake`, as an operator; and the same for eager,
    with a single forward: where the context is set up apart, torch binds the arguments by their
    signature at every call, which takes longer than a small product.  Only function transforms
    need it apart, and they see the plain path."""

    def register(function: Any) -> type[Function]:
        _made(name, schema, function.forward)
        register_fake(f"transom::{name}")(function.fake)
        register_autograd(
            f"transom::{name}", function.backward, setup_context=function.setup_context
        )

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        own = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
        return type(function.__name__, (Function,), own)  # whose name profilers show

    return register


def plainly(run: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor) -> tuple[Any, ...]:
    """Gradients that can be differentiated again."""
    needed = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    grads = torch.autograd.grad(
        run(*inputs), [inputs[i] for i in needed], grad, create_graph=True, allow_unused=True
    )
    found = dict(zip(needed, grads, strict=True))
    return tuple(found.get(i) for i in range(len(inputs)))
