"""The objective of a recipe."""

from __future__ import annotations

from training.data.splits import Data
from training.objectives.classes import Classification
from training.objectives.objective import Objective
from training.objectives.simmim import MaskedModelling
from training.settings.recipe import Recipe


def make(recipe: Recipe, data: Data, *, batch: int = 1, seed: int = 0) -> Objective:
    """The objective of a recipe, for the data, the size of the global batch and a run's seed."""
    if recipe.objective == "simmim":
        return MaskedModelling(recipe, data, batch=batch, seed=seed)
    return Classification(recipe, data)
