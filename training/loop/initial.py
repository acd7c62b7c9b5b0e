"""Start of a run: parameters drawn by name, so that backbones that share a part start it equally.

Two backbones of ours that differ in one stage have most parameters in common: name, shape, and by
`draw` values too.  What they do differently then comes from the stage that differs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones import HierarchicalBackbone
from training.data.batches import stream

PAPER_STD = 0.02  # of the truncated normal distribution of linear layers (Swin's code)


@torch.no_grad()
def draw(model: nn.Module, seed: int, init: str) -> None:
    """Draws the weights of a model anew, every parameter from a stream of its own name.

    In a backbone of ours every parameter that starts at random is drawn.  In a foreign model its
    constructor has drawn them by a rule that cannot be read, so with ``paper`` they stay as they
    are and with ``xavier`` its linear layers are drawn.

    Args:
        model: on the CPU, as its constructor left it.
        seed: of the run.
        init: ``paper`` or ``xavier``, see `Recipe`.

    Example:
        >>> import backbones
        >>> from training.loop import initial
        >>> models = [backbones.create(f"swin_t/stages=2/2={m}") for m in ("window", "axial")]
        >>> for model in models:
        ...     initial.draw(model, seed=0, init="paper")
        >>> left, right = (model.stages[1].blocks[0].mlp.fc1.weight for model in models)
        >>> bool((left == right).all())
        True
    """
    ours = isinstance(model, HierarchicalBackbone)
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            rule = _rule(module, name, parameter, init, ours)
            if rule:
                generator = stream(seed, "init", f"{place}.{name}", *parameter.shape)
                _fill(parameter, rule, generator)


def _rule(module: nn.Module, name: str, parameter: Tensor, init: str, ours: bool) -> str:
    """How a parameter is drawn; "" where it keeps its value."""
    layer = isinstance(module, (nn.Linear, nn.Conv2d))
    if _is_constant(parameter) and not (layer and name == "weight"):
        return ""  # norms, biases, scales
    if init == "xavier" and name == "weight" and isinstance(module, nn.Linear):
        return "xavier"
    if not ours:
        return ""
    if isinstance(module, nn.Conv2d):
        return "conv" if name == "weight" else f"conv_bias:{_fan_in(module.weight)}"
    if init == "xavier" and parameter.ndim == 3:  # a matrix over tokens per head
        return "xavier"
    return "paper"


def _is_constant(parameter: Tensor) -> bool:
    return bool((parameter == parameter.flatten()[0]).all())


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def _fill(parameter: Tensor, rule: str, generator: torch.Generator) -> None:
    """Draws values; the conv rules are those of torch's own reset_parameters."""
    if rule == "xavier":
        bound = (6 / (parameter.shape[-1] + parameter.shape[-2])) ** 0.5
        parameter.uniform_(-bound, bound, generator=generator)
    elif rule == "conv":
        bound = _fan_in(parameter) ** -0.5
        parameter.uniform_(-bound, bound, generator=generator)
    elif rule.startswith("conv_bias"):
        bound = int(rule.partition(":")[2]) ** -0.5
        parameter.uniform_(-bound, bound, generator=generator)
    else:
        nn.init.trunc_normal_(parameter, std=PAPER_STD, generator=generator)
