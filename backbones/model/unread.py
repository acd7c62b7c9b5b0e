"""Parameters that a forward does not read, made part of its graph for distributed training.

DistributedDataParallel waits for a gradient of every parameter: a parameter that nothing reads
stops it in the second step.  Without a process group nothing is added, and such a parameter has
no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn


class _JoinGraph(torch.autograd.Function):
    """Copy of a tensor, whose backward gives the parameters gradients of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *unread: Tensor) -> Tensor:
        ctx.save_for_backward(*unread)
        return x.clone()  # returned as it is, x would be a view that torch refuses to write to

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (*grads, *map(torch.zeros_like, ctx.saved_tensors))


def join_graph(x: Tensor, unread: Iterable[nn.Parameter]) -> Tensor:
    """Adds parameters to the graph of a tensor where a process group trains them.

    Their gradients are zeros, so that an optimizer decays them; a parameter without a gradient it
    passes over.

    Args:
        x: any tensor.
        unread: parameters that nothing else in the graph reads; frozen ones are left out.

    Returns:
        x itself without gradients or without a process group, otherwise a copy with equal values.

    Example:
        >>> import torch
        >>> x, head = torch.zeros(2), torch.nn.Linear(2, 1)
        >>> join_graph(x, head.parameters()) is x
        True
    """
    ranks = distributed.is_available() and distributed.is_initialized()
    if not (ranks and torch.is_grad_enabled()):
        return x
    waiting = [parameter for parameter in unread if parameter.requires_grad]
    return _JoinGraph.apply(x, *waiting) if waiting else x
