"""A training run of seconds: its data, its body, one process, and its configuration."""

from __future__ import annotations

from typing import Any

import torch

from training.loop.world import World
from training.settings import presets
from training.settings.config import RunConfig

BODY = "swin_t/stages=2/1.dim=8/1.heads=2/2.dim=16/2.heads=2/1.depth=1/2.depth=2/drop_path=0.5"
DATA = "order:train=64,test=40"
ALONE = World(0, 1, torch.device("cpu"))


def config(**fields: Any) -> RunConfig:
    """12 steps of 8 images by the recipe micro, or what the fields say instead."""
    stated: dict[str, Any] = {
        "backbone": BODY, "seed": 0, "data": DATA, "budget": "12steps", "batch": 8,
        "recipe": presets.read("micro"),
    }  # fmt: skip
    return RunConfig(**{**stated, **fields})
