"""Counting, comparing and checking of backbones and mixers.

    report = analysis.count(model, 224)      # three counts of one model, and whether they agree
"""

from typing import TYPE_CHECKING

from transom.packages import lazy as _lazy
from transom.packages import require as _require

_require("attention", "backbones")

if TYPE_CHECKING:
    from analysis.counting.count import count
    from analysis.counting.report import Report

__all__ = ["Report", "count"]

__getattr__ = _lazy(
    __name__, {"Report": "analysis.counting.report", "count": "analysis.counting.count"}
)
