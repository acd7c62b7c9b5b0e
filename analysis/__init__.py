"""Counting, comparing and checking of backbones and mixers.

    report = analysis.count(model, 224)      # three counts of one model, and whether they agree
"""

from typing import TYPE_CHECKING, Any

from transom.packages import require as _require

_require("attention", "backbones")

if TYPE_CHECKING:
    from analysis.counting.report import Report, count

__all__ = ["Report", "count"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # these need torch
        import importlib

        return getattr(importlib.import_module("analysis.counting.report"), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
