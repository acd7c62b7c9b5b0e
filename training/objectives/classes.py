"""Classes, by the losses of timm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.splits import Data
from training.objectives.objective import Read
from training.settings.recipe import Recipe


class Classification:
    """Classes by the losses of timm: (binary) cross entropy, smoothed and mixed as the recipe says.

    Args:
        recipe: of the run.
        data: of the run.
    """

    probed = False

    def __init__(self, recipe: Recipe, data: Data) -> None:
        self.recipe, self.data, self.classes = recipe, data, data.classes

    def check(self, backbone: nn.Module, name: str) -> None:
        pass  # any backbone

    def wrap(self, backbone: nn.Module) -> nn.Module:
        return backbone

    def backbone_of(self, model: nn.Module) -> nn.Module:
        return model

    def loss(
        self, trained: nn.Module, images: Tensor, targets: Tensor, step: int, first: int
    ) -> Tensor:
        return summed_loss(trained(images).float(), targets, self.recipe)

    def correct(self, read: Read) -> Tensor:
        everyone = torch.arange(len(self.data.test))
        return read(self.data.test, everyone, lambda logits, y: logits.argmax(-1) == y)


def summed_loss(logits: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
    """Sum of the losses of images: logits (b, classes), targets (b,) or, mixed, (b, classes)."""
    mixed = targets.ndim == 2  # smoothed where they were mixed
    if recipe.loss == "ce":
        smoothing = 0.0 if mixed else recipe.smoothing
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    if not mixed:
        ones = F.one_hot(targets, logits.shape[-1]).to(logits.dtype)
        targets = ones * (1 - recipe.smoothing) + recipe.smoothing / logits.shape[-1]
    if recipe.bce_threshold:
        targets = (targets > recipe.bce_threshold).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / logits.shape[-1]
