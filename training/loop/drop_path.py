"""Stochastic depth that is drawn for the global batch.

A rank or a micro-batch that draws for its own images would make the result depend on how a batch
is divided.  Here an image's draw depends on the seed, the step and its place in the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.data.batches import stream

CLASSES = ("DropPath", "StochasticDepth")  # of ours and timm, and of torchvision
CALLS = 2  # at most: of one module in one forward, as a block's two residuals share it


class GlobalDropPath(nn.Module):
    """Drops an image's residual at a rate (Huang et al. 2016), by draws that are set from outside.

    Args:
        rate: probability of a drop.
    """

    draws: Tensor | None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.draws = None  # (CALLS, b) uniform numbers for the images of the next forward
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        if self.draws is None:
            raise RuntimeError("the draws of this step are not set")
        uniform = self.draws[self.calls % CALLS]  # (b,)
        self.calls += 1
        keep = uniform.to(x.device) >= self.rate
        return x * keep.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate:g}"


def replace(model: nn.Module) -> list[GlobalDropPath]:
    """Puts a `GlobalDropPath` in the place of every module of stochastic depth.

    Args:
        model: of ours, timm or torchvision; the modules are found by the names of their classes.

    Returns:
        The new modules in the order of the model.
    """
    placed: dict[int, GlobalDropPath] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in CLASSES:
                new = placed.setdefault(id(child), GlobalDropPath(_rate(child)))
                new.train(child.training)
                setattr(parent, name, new)
    return list(placed.values())


def _rate(module: nn.Module) -> float:
    for name in ("rate", "drop_prob", "p"):
        rate = getattr(module, name, None)
        if rate is not None:
            return float(rate)
    return 0.0


def set_draws(
    modules: list[GlobalDropPath], *, seed: int, step: int, batch: int, first: int, count: int
) -> None:
    """Sets the draws of one forward in training.

    Args:
        modules: of `replace`.
        seed, step: of the run.
        batch: images of the global batch.
        first, count: the images of this forward, by their place in the global batch.
    """
    active = [module for module in modules if module.rate]
    if not active:
        return
    generator = stream(seed, "drop_path", step)
    draws = torch.rand(len(active), CALLS, batch, generator=generator)
    for module, uniform in zip(active, draws, strict=True):
        module.draws = uniform[:, first : first + count]
        module.calls = 0
