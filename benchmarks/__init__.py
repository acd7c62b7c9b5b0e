"""Commands that time and measure; what they share with the tables lives in `analysis`."""

from backbones.siblings import require as _require

_require("attention", "backbones", "analysis")
