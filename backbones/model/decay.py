"""Parameters of a backbone that are never decayed, and the layers of layer-wise learning rates."""

from __future__ import annotations

import re
from typing import Any

POSITION = re.compile(
    r".*(table|logit_scale|position|beside\.tokens|messenger_bias|\.bias\.mlp\.(0\.weight|0\.bias|2\.weight))$"
)  # fmt: skip
STEM = r"^stem"
STAGES = r"^stages[._](\d+)"  # timm's wrappers call stages.0 stages_0
LAST = (99999,)  # in timm's matchers: the layer of the pattern before


def is_position(name: str) -> bool:
    """True if a parameter is a bias table, log-CPB, logit scale or absolute position."""
    return POSITION.match(name) is not None


def matcher(coarse: bool = False) -> dict[str, Any]:
    """timm's layers of a backbone: the stem, then every stage, or every block.

    Parameters that match no layer (heads, norms per level) form the last one.
    """
    blocks: Any = STAGES
    if not coarse:
        blocks = [
            (STAGES + r"\.(?:downsample|cpe|position|beside)", (0,)),
            (STAGES + r"\.blocks\.(\d+)", None),
            (STAGES + r"\.norm", LAST),
            (r"^norm\.", LAST),
        ]
    return {"stem": STEM, "blocks": blocks}
