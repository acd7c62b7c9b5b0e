"""Commands that time and measure; sessions, statistics and tables are in `analysis`."""

from transom.packages import require as _require

_require("attention", "backbones", "analysis")
