"""Optimizers of a run, timm's, and whether timm knows what a recipe asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.data.splits import Data
from training.loop import augment
from training.settings.recipe import Recipe
from transom.errors import SpecError, cause_of, one_line

Size = tuple[int, int]


def make_optimizer(model: nn.Module, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """timm's optimizer, which decays neither norms and biases nor `no_weight_decay`."""
    from timm.optim import create_optimizer_v2

    moments = "adam" in recipe.opt or recipe.opt == "lamb"
    betas: dict[str, Any] = {"betas": (0.9, recipe.beta2)} if moments else {}
    return create_optimizer_v2(
        model, opt=recipe.opt, lr=rate, weight_decay=recipe.weight_decay, **betas
    )


def check(recipe: Recipe, data: Data, size: Size) -> None:
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
