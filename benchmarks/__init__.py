"""Commands that time and measure; what they share with the tables lives in `analysis`."""

from transom.packages import require as _require

_require("attention", "backbones", "analysis")
