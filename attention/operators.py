"""How a function of ours becomes an operator of torch's, `torch.ops.transom.NAME`.

A graph that torch.compile traces on a CPU, with gradients or without, holds our products and our
masked attention as operators: the compiler would take BLAS's products and keep scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, register_autograd, register_fake


def operator(name: str, schema: str) -> Callable[..., Any]:
    return custom_op(f"transom::{name}", mutates_args=(), device_types="cpu", schema=schema)


def differentiable(name: str, schema: str) -> Callable[[Any], Any]:
    """The function as an operator, too: for graphs.  In eager it takes less time to call."""

    def register(function: Any) -> Any:
        operator(name, schema)(function.forward)
        register_fake(f"transom::{name}")(function.fake)
        register_autograd(
            f"transom::{name}", function.backward, setup_context=function.setup_context
        )
        return function

    return register


def plainly(run: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor) -> tuple[Any, ...]:
    """Gradients that can be differentiated again."""
    needed = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    grads = torch.autograd.grad(
        run(*inputs), [inputs[i] for i in needed], grad, create_graph=True, allow_unused=True
    )
    found = dict(zip(needed, grads, strict=True))
    return tuple(found.get(i) for i in range(len(inputs)))
