"""MaxViT: timm's models with the authors' weights (maxvit_*_tf), and torchvision's.

Their block is an inverted bottleneck, windows and a grid; ours are two blocks, and the bottleneck
is the downsampling of a stage or stands in the first of the two.
"""

from __future__ import annotations

from backbones.names.layouts import KEY_FIRST
from backbones.names.template import Rule, rule

_FIRST = "stages.{i}.downsample."
_PAIR = "stages.{i}.blocks.{2j}.", "stages.{i}.blocks.{2j+1}."
_TABLE = "mixer.branch.bias.table"
_TIMM_CONV = {
    "pre_norm": "norm", "conv1_1x1": "expand", "norm1": "norm1", "conv2_kxk": "depthwise",
    "norm2": "norm2", "se.fc1": "squeeze", "se.fc2": "excite", "conv3_1x1": "project",
    "shortcut.expand": "shortcut",
}  # fmt: skip
_TIMM_BLOCK = {
    "norm1": "norm1", "attn.qkv": "mixer.qkv", "attn.proj": "mixer.proj", "norm2": "norm2",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_VISION_CONV = {
    "layers.pre_norm": "norm", "layers.conv_a.0": "expand", "layers.conv_a.1": "norm1",
    "layers.conv_b.0": "depthwise", "layers.conv_b.1": "norm2",
    "layers.squeeze_excitation.fc1": "squeeze", "layers.squeeze_excitation.fc2": "excite",
    "layers.conv_c": "project", "proj.1": "shortcut",
}  # fmt: skip
_VISION_BLOCK = {
    "attn_layer.0": "norm1", "attn_layer.1.to_qkv": "mixer.qkv", "attn_layer.1.merge": "mixer.proj",
    "mlp_layer.0": "norm2", "mlp_layer.1": "mlp.fc1", "mlp_layer.3": "mlp.fc2",
}  # fmt: skip


def _under(theirs: str, ours: str, names: dict[str, str]) -> list[Rule]:
    return [rule(f"{theirs}{a}.{{x}}", f"{ours}{b}.{{x}}") for a, b in names.items()]


def _timm_block(theirs: str, ours: str) -> list[Rule]:
    table = rule(theirs + "attn.rel_pos.relative_position_bias_table", ours + _TABLE, KEY_FIRST)
    return [*_under(theirs, ours, _TIMM_BLOCK), table]


def _vision_block(theirs: str, ours: str) -> list[Rule]:
    return [
        *_under(theirs, ours, _VISION_BLOCK),
        rule(theirs + "attn_layer.1.relative_position_bias_table", ours + _TABLE),
        rule(theirs + "attn_layer.1.relative_position_index", None),
    ]


_TIMM = [
    rule("stem.conv1.{x}", "stem.conv.{x}"),
    rule("stem.norm1.{x}", "stem.norm1.{x}"),
    rule("stem.conv2.{x}", "stem.conv2.{x}"),
    *_under("stages.{i}.blocks.0.conv.", _FIRST, _TIMM_CONV),
    *_under("stages.{i}.blocks.{j}.conv.", _PAIR[0] + "conv.", _TIMM_CONV),
    *_timm_block("stages.{i}.blocks.{j}.attn_block.", _PAIR[0]),
    *_timm_block("stages.{i}.blocks.{j}.attn_grid.", _PAIR[1]),
    rule("head.norm.{x}", "norm.{x}"),
    rule("head.pre_logits.fc.{x}", "pre_head.fc.{x}"),
    rule("head.fc.{x}", "head.{x}"),
]
_LAYER = "blocks.{i}.layers.{j}.layers."
_TORCHVISION = [
    rule("stem.0.0.{x}", "stem.conv.{x}"),
    rule("stem.0.1.{x}", "stem.norm1.{x}"),
    rule("stem.1.0.{x}", "stem.conv2.{x}"),
    *_under("blocks.{i}.layers.0.layers.MBconv.", _FIRST, _VISION_CONV),
    *_under(_LAYER + "MBconv.", _PAIR[0] + "conv.", _VISION_CONV),
    *_vision_block(_LAYER + "window_attention.", _PAIR[0]),
    *_vision_block(_LAYER + "grid_attention.", _PAIR[1]),
    rule("classifier.2.{x}", "norm.{x}"),
    rule("classifier.3.{x}", "pre_head.fc.{x}"),
    rule("classifier.5.{x}", "head.{x}"),
]

SOURCES = {"maxvit_timm": _TIMM, "maxvit_torchvision": _TORCHVISION}
FAMILIES = {"maxvit_timm": "maxvit", "maxvit_torchvision": "maxvit"}
MARKS = {
    "maxvit_timm": ("stem.conv1.weight", "stem.norm1.weight", "stem.conv2.weight"),
    "maxvit_torchvision": ("stem.0.0.weight", "stem.0.1.weight", "stem.1.0.weight"),
}
