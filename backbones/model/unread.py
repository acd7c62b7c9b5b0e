"""Parameters that a forward does not read, made part of its graph for distributed training.

DistributedDataParallel waits for a gradient of every parameter: one that nothing reads stops it in
the second step.  Without a process group nothing is added, and such a parameter has no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Joined(torch.autograd.Function):
    """The map, unchanged; the gradients of the parameters are zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *unread: Tensor) -> Tensor:
        ctx.save_for_backward(*unread)
        return x.clone()  # of a view, which torch lets nobody write in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (*grads, *map(torch.zeros_like, ctx.saved_tensors))


def joined(x: Tensor, unread: Iterable[nn.Parameter]) -> Tensor:
    """x with the same values; its graph reaches `unread` where a process group trains them.

    Zeros are gradients: an optimizer decays these parameters, which it would pass over elsewhere.

    Args:
        x: any tensor.
        unread: parameters that nothing else in the graph reads; frozen ones are passed over.

    Returns:
        x itself without gradients or without a process group, otherwise a copy.

    Example:
        >>> maps[-1] = joined(maps[-1], model.head.parameters())
    """
    ranks = distributed.is_available() and distributed.is_initialized()
    if not (ranks and torch.is_grad_enabled()):
        return x
    waiting = [parameter for parameter in unread if parameter.requires_grad]
    return _Joined.apply(x, *waiting) if waiting else x
