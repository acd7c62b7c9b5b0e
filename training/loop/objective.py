"""What a step minimises, and how: the losses and optimizers of timm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.splits import Data
from training.loop import augment
from training.settings.recipe import Recipe
from transom.errors import SpecError, cause_of, one_line


def check(recipe: Recipe, data: Data, size: tuple[int, int]) -> None:
    """Raises SpecError for an optimizer or a policy of augmentation that timm does not know."""
    try:
        field = f"opt={recipe.opt}, such as adamw or lamb"
        make_optimizer(nn.Linear(1, 1), recipe, rate=1.0)
        if augment.needs_pictures(recipe):
            field = f"auto_augment={recipe.auto_augment}, such as rand-m9-mstd0.5-inc1"
            augment.picture_transform(recipe, data, size)
    except Exception as error:  # timm raises whatever a text leads it to
        reason = f"timm cannot make {one_line(field)} ({one_line(cause_of(error))})"
        raise SpecError(f"--recipe {one_line(recipe.name)}: {reason}") from None


def make_optimizer(model: nn.Module, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """timm's optimizer, which decays neither norms and biases nor `no_weight_decay`."""
    from timm.optim import create_optimizer_v2

    moments = "adam" in recipe.opt or recipe.opt == "lamb"
    betas: dict[str, Any] = {"betas": (0.9, recipe.beta2)} if moments else {}
    return create_optimizer_v2(
        model, opt=recipe.opt, lr=rate, weight_decay=recipe.weight_decay, **betas
    )


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
