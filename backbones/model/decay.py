"""Which parameters of a backbone are never decayed, and the layers that rates are graded by."""

from __future__ import annotations

import re
from typing import Any

POSITION = re.compile(
    r".*(table|logit_scale|position|\.bias\.mlp\.(0\.weight|0\.bias|2\.weight))$"
)  # fmt: skip
STEM = r"^stem"
STAGES = r"^stages[._](\d+)"  # timm's wrappers call stages.0 stages_0
LAST = (99999,)  # in timm's matchers: one layer with what stands before


def is_position(name: str) -> bool:
    """Whether a backbone's parameter is a bias table, log-CPB, logit scale or absolute position."""
    return POSITION.match(name) is not None


def matcher(coarse: bool = False) -> dict[str, Any]:
    """timm's layers of a backbone: the stem, then every stage, or every block.

    What matches nothing (heads, norms per level) is a last layer of its own.
    """
    blocks: Any = STAGES
    if not coarse:
        blocks = [
            (STAGES + r"\.downsample", (0,)),
            (STAGES + r"\.blocks\.(\d+)", None),
            (r"^norm\.", LAST),
        ]
    return {"stem": STEM, "blocks": blocks}
