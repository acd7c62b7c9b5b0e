"""Weights into a backbone and out of it: their source, their spec, and the match of their names.

    weights.load("swin_t", "swin.pth").model
    weights.load("swin_t/3=pale", "swin.pth", partial="replaced").model
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbones.weights.loading import (
        Adapt,
        Loaded,
        WeightsError,
        convert,
        export,
        from_pretrained,
        load,
        plan,
        read,
        read_weights,
        save,
        save_pretrained,
    )

__all__ = [
    "Adapt", "Loaded", "WeightsError", "convert", "export", "from_pretrained", "load", "plan",
    "read", "read_weights", "save", "save_pretrained",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:  # these need torch
        return getattr(importlib.import_module("backbones.weights.loading"), name)
    raise AttributeError(f"module 'backbones.weights' has no attribute {name!r}")
