"""MACs of the backward pass, counted twice: by its operators, and as the forward foretells them."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from analysis.counting.counters import VECTORS, Observer, quiet_eval, without_data


class Backward(NamedTuple):
    """MACs of the backward pass of one image: as its operators are counted, and as the operands of
    the forward's products that need gradients foretell."""

    counted: int
    foretold: int
    uncounted: tuple[str, ...]


def _convolution_gradients(
    grad: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, out_padding: Any, groups: int, mask: list[bool], **kwargs: Any,
) -> int:  # fmt: skip
    """A product of the forward's size for each of the input's and the weight's gradient.

    torch's own rule takes a grouped convolution's for one of all channels.
    """
    return 2 * math.prod(x if transposed else grad) * math.prod(weight[1:]) * sum(mask[:2])


GRADIENTS = {torch.ops.aten.convolution_backward: _convolution_gradients}


def on_meta(model: nn.Module, shape: tuple[int, ...]) -> Backward:
    """Counts the backward pass of all trainable parameters; images need no gradient.

    Fused attention is taken apart on the meta device, so that no score is computed twice.
    shape: as in `on_meta`.
    """
    importlib.import_module("torch._dynamo")
    with without_data(model) as state, quiet_eval(model, gradients=True):
        dtype = next((t.dtype for t in state if t.is_floating_point()), torch.float32)
        x = torch.empty(shape, device="meta", dtype=dtype)
        forward = Observer([x, *state])
        with forward:
            out = model(x)
        outputs = [
            leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        counter = FlopCounterMode(display=False, custom_mapping=GRADIENTS | VECTORS)
        backward = Observer([x, *state])
        if outputs:
            with counter, backward:
                torch.autograd.backward(outputs, [torch.empty_like(leaf) for leaf in outputs])
    unknown = tuple(sorted(forward.unknown | backward.unknown))
    return Backward(counter.get_total_flops() // 2, forward.foretold, unknown)
