"""How other repositories name what we have: one table per source, first match wins.

A row is (pattern of their key, our name or None to drop, how the tensor changes).  Their files
also hold what we compute (index tables, masks): it is dropped by name, never by default.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Size, Tensor

# (their tensor, our shape) -> our tensor; raises IndexError or RuntimeError on another layout
Change = Callable[[Tensor, Size], Tensor]


def rows_to_heads(tensor: Tensor, shape: Size) -> Tensor:
    """Conv1d's (heads * l, l, 1) or (heads * l) -> (heads, l, l) or (heads, l)."""
    tensor = tensor.unflatten(0, shape[:2])
    return tensor.squeeze(-1) if len(shape) == 3 else tensor


def tokens_to_map(tensor: Tensor, shape: Size) -> Tensor:
    """(1, tokens, c) -> (1, c, h, w)."""
    return tensor.transpose(1, 2).unflatten(2, shape[2:])


class Rule(NamedTuple):
    pattern: re.Pattern[str]
    target: str | Callable[[re.Match[str]], str] | None
    change: Change | None = None

    def name(self, match: re.Match[str]) -> str | None:
        return self.target(match) if callable(self.target) else (
            None if self.target is None else match.expand(self.target)
        )  # fmt: skip


def _rule(pattern: str, target, change: Change | None = None) -> Rule:
    return Rule(re.compile(pattern), target, change)


def _next_stage(rest: str) -> Callable[[re.Match[str]], str]:
    """The authors merge at the end of a stage, we at the start of the next."""
    return lambda match: f"stages.{int(match[1]) + 1}.{match.expand(rest)}"


def _stage_before(rest: str) -> Callable[[re.Match[str]], str]:
    """Names that count stages from 1."""
    return lambda match: f"stages.{int(match[1]) - 1}.{match.expand(rest)}"


_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_OURS = r"stages.\1.blocks.\2."

_COMMON = [
    _rule(r"patch_embed\.proj\.(\w+)", r"stem.conv.\1"),
    _rule(r"patch_embed\.norm\.(\w+)", r"stem.norm.\1"),
    _rule(r"absolute_pos_embed", "stem.position", tokens_to_map),
    _rule(_BLOCK + r"(norm[12]\.\w+|mlp\.fc[12]\.\w+)", _OURS + r"\3"),
    _rule(r"norm\.(\w+)", r"norm.\1"),
]
_ATTENTION = [
    _rule(_BLOCK + r"attn\.(qkv\.\w+|proj\.\w+)", _OURS + r"mixer.\3"),
    _rule(_BLOCK + r"attn\.relative_position_bias_table", _OURS + "mixer.branch.bias.table"),
    _rule(_BLOCK + r"attn\.([qv]_bias)", _OURS + r"mixer.qkv.\3"),
    _rule(_BLOCK + r"attn\.logit_scale", _OURS + "mixer.branch.logit_scale"),
    _rule(_BLOCK + r"attn\.cpb_mlp\.(\d\.\w+)", _OURS + r"mixer.branch.bias.mlp.\3"),
    _rule(_BLOCK + r"attn\.relative_(position_index|coords_table)", None),
    _rule(_BLOCK + r"attn_mask", None),
]
_SPATIAL = [_rule(_BLOCK + r"spatial_mlp\.(\w+)", _OURS + r"mixer.\3", rows_to_heads)]
_MERGE_AFTER = [_rule(r"layers\.(\d+)\.downsample\.(.+)", _next_stage(r"downsample.\2"))]
_MERGE_BEFORE = [_rule(r"layers\.(\d+)\.downsample\.(.+)", r"stages.\1.downsample.\2")]
_HEAD = [_rule(r"head\.(weight|bias)", r"head.\1")]
_TIMM_HEAD = [_rule(r"head\.fc\.(\w+)", r"head.\1")]

_CSWIN_BLOCK = r"stage(\d)\.(\d+)\."
_CSWIN = [
    _rule(r"stage1_conv_embed\.0\.(\w+)", r"stem.conv.\1"),
    _rule(r"stage1_conv_embed\.2\.(\w+)", r"stem.norm.\1"),
    _rule(_CSWIN_BLOCK + r"(norm[12]\.\w+|mlp\.fc[12]\.\w+)", _stage_before(r"blocks.\2.\3")),
    _rule(_CSWIN_BLOCK + r"(qkv\.\w+|proj\.\w+)", _stage_before(r"blocks.\2.mixer.\3")),
    _rule(
        _CSWIN_BLOCK + r"attns\.(\d)\.get_v\.(\w+)",
        _stage_before(r"blocks.\2.mixer.branches.\3.lepe.conv.\4"),
    ),
    _rule(r"merge(\d)\.(conv|norm)\.(\w+)", r"stages.\1.downsample.\2.\3"),
    _rule(r"norm([1-4])\.(\w+)", lambda match: f"out_norms.{int(match[1]) - 1}.{match[2]}"),
    _rule(r"norm\.(\w+)", r"norm.\1"),
    *_HEAD,
]


def _vision(rest: str, *, offset: int) -> Callable[[re.Match[str]], str]:
    """torchvision's features: stem, stage 1, merge, stage 2, merge, ..."""
    return lambda match: f"stages.{(int(match[1]) - offset) // 2}.{match.expand(rest)}"


_VISION_BLOCK = r"features\.([1357])\.(\d+)\."
_TORCHVISION = [
    _rule(r"features\.0\.0\.(\w+)", r"stem.conv.\1"),
    _rule(r"features\.0\.2\.(\w+)", r"stem.norm.\1"),
    _rule(_VISION_BLOCK + r"(norm[12]\.\w+)", _vision(r"blocks.\2.\3", offset=1)),
    _rule(_VISION_BLOCK + r"mlp\.0\.(\w+)", _vision(r"blocks.\2.mlp.fc1.\3", offset=1)),
    _rule(_VISION_BLOCK + r"mlp\.3\.(\w+)", _vision(r"blocks.\2.mlp.fc2.\3", offset=1)),
    _rule(
        _VISION_BLOCK + r"attn\.(qkv\.\w+|proj\.\w+)", _vision(r"blocks.\2.mixer.\3", offset=1)
    ),
    _rule(
        _VISION_BLOCK + r"attn\.relative_position_bias_table",
        _vision(r"blocks.\2.mixer.branch.bias.table", offset=1),
    ),
    _rule(
        _VISION_BLOCK + r"attn\.logit_scale",
        _vision(r"blocks.\2.mixer.branch.logit_scale", offset=1),
    ),
    _rule(
        _VISION_BLOCK + r"attn\.cpb_mlp\.(\d\.\w+)",
        _vision(r"blocks.\2.mixer.branch.bias.mlp.\3", offset=1),
    ),
    _rule(_VISION_BLOCK + r"attn\.relative_(position_index|coords_table)", None),
    _rule(r"features\.([246])\.(\w+\.\w+)", _vision(r"downsample.\2", offset=0)),
    _rule(r"norm\.(\w+)", r"norm.\1"),
    *_HEAD,
]

SOURCES: dict[str, list[Rule]] = {
    "swin": [*_COMMON, *_ATTENTION, *_MERGE_AFTER, *_HEAD],
    "swinv2": [*_COMMON, *_ATTENTION, *_MERGE_AFTER, *_HEAD],
    "swinmlp": [*_COMMON, *_SPATIAL, *_MERGE_AFTER, *_HEAD],
    "cswin": _CSWIN,
    "timm": [*_COMMON, *_ATTENTION, *_MERGE_BEFORE, *_TIMM_HEAD],
    "torchvision": _TORCHVISION,
    "transom": [_rule(r"(.+)", r"\1")],
}
