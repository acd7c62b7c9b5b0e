"""How other repositories name what we have: one table per source, first match wins.

A row is (pattern of their key, our name or None to drop, how the tensor changes).  Their files
also hold what we compute (index tables, masks): it is dropped by name, never by default.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Size, Tensor

# (their tensor, our shape) -> our tensor; raises IndexError or RuntimeError on another layout
WAYS = ("bicubic", "timm")
Change: TypeAlias = "Callable[[Tensor, Size], Tensor]"


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

# transformers names Swin's parts in two ways (files of 4.x and modules of 5.x); queries, keys and
# values are joined before the rules are read, see weights.prepare
_HF = r"(?:swin\.|swinv2\.)?"
_HF_BLOCK = _HF + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
HF_PART = re.compile(
    f"({_HF_BLOCK}attention\\.)(?:self\\.)?(query|key|value|[qkv]_proj)\\.(weight|bias)"
)
_TRANSFORMERS = [
    _rule(_HF + r"embeddings\.patch_embeddings\.projection\.(\w+)", r"stem.conv.\1"),
    _rule(_HF + r"embeddings\.norm\.(\w+)", r"stem.norm.\1"),
    _rule(_HF + r"embeddings\.position_embeddings", "stem.position", tokens_to_map),
    _rule(_HF + r"embeddings\.mask_token", None),
    _rule(_HF_BLOCK + r"attention\.(qkv\.\w+)", _OURS + r"mixer.\3"),
    _rule(_HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(\w+)", _OURS + r"mixer.proj.\3"),
    _rule(
        _HF_BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
        _OURS + "mixer.branch.bias.table",
    ),
    _rule(_HF_BLOCK + r"attention\.(?:\w+\.)?relative_(position_index|coords_table)", None),
    _rule(_HF_BLOCK + r"attention\.self\.logit_scale", _OURS + "mixer.branch.logit_scale"),
    _rule(
        _HF_BLOCK + r"attention\.self\.continuous_position_bias_mlp\.(\d\.\w+)",
        _OURS + r"mixer.branch.bias.mlp.\3",
    ),
    _rule(_HF_BLOCK + r"layernorm_before\.(\w+)", _OURS + r"norm1.\3"),
    _rule(_HF_BLOCK + r"layernorm_after\.(\w+)", _OURS + r"norm2.\3"),
    _rule(_HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", _OURS + r"mlp.fc1.\3"),
    _rule(_HF_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(\w+)", _OURS + r"mlp.fc2.\3"),
    _rule(_HF + r"encoder\.layers\.(\d+)\.downsample\.(.+)", _next_stage(r"downsample.\2")),
    _rule(_HF + r"layernorm\.(\w+)", r"norm.\1"),
    _rule(r"classifier\.(\w+)", r"head.\1"),
]

SOURCES: dict[str, list[Rule]] = {
    "swin": [*_COMMON, *_ATTENTION, *_MERGE_AFTER, *_HEAD],
    "swinv2": [*_COMMON, *_ATTENTION, *_MERGE_AFTER, *_HEAD],
    "swinmlp": [*_COMMON, *_SPATIAL, *_MERGE_AFTER, *_HEAD],
    "cswin": _CSWIN,
    "timm": [*_COMMON, *_ATTENTION, *_MERGE_BEFORE, *_TIMM_HEAD],
    "torchvision": _TORCHVISION,
    "transformers": _TRANSFORMERS,
    "transom": [_rule(r"(.+)", r"\1")],
}

# The way back, our names to theirs; what they compute themselves is made by their own model.
_OWN = r"stages\.(\d+)\.blocks\.(\d+)\."
_THEIRS = r"layers.\1.blocks.\2."
_BACK = [
    _rule(r"stem\.conv\.(\w+)", r"patch_embed.proj.\1"),
    _rule(r"stem\.norm\.(\w+)", r"patch_embed.norm.\1"),
    _rule(_OWN + r"(norm[12]\.\w+|mlp\.fc[12]\.\w+)", _THEIRS + r"\3"),
    _rule(_OWN + r"mixer\.(qkv\.(?:weight|bias)|proj\.\w+)", _THEIRS + r"attn.\3"),
    _rule(_OWN + r"mixer\.qkv\.([qv]_bias)", _THEIRS + r"attn.\3"),
    _rule(_OWN + r"mixer\.branch\.logit_scale", _THEIRS + r"attn.logit_scale"),
    _rule(_OWN + r"mixer\.branch\.bias\.table", _THEIRS + "attn.relative_position_bias_table"),
    _rule(_OWN + r"mixer\.branch\.bias\.mlp\.(\d\.\w+)", _THEIRS + r"attn.cpb_mlp.\3"),
    _rule(r"norm\.(\w+)", r"norm.\1"),
]
_MERGED = r"stages\.(\d+)\.downsample\.(.+)"
TARGETS: dict[str, list[Rule]] = {
    "timm": [
        *_BACK,
        _rule(_MERGED, r"layers.\1.downsample.\2"),
        _rule(r"head\.(\w+)", r"head.fc.\1"),
    ],
    "swin": [
        *_BACK,
        _rule(_MERGED, lambda match: f"layers.{int(match[1]) - 1}.downsample.{match[2]}"),
        *_HEAD,
    ],
}
TARGETS["swinv2"] = TARGETS["swin"]
