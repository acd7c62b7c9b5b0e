"""Swin, Swin V2 and Swin-MLP: the authors' repository, timm and torchvision."""

from __future__ import annotations

from backbones.names.layouts import ROWS, TOKENS
from backbones.names.template import in_blocks, rule

_BLOCK = "layers.{i}.blocks.{j}."
STEM = [
    rule("patch_embed.proj.{x}", "stem.conv.{x}"),
    rule("patch_embed.norm.{x}", "stem.norm.{x}"),
]
MLP = [("norm{k}.{x}", "norm{k}.{x}"), ("mlp.fc{k}.{x}", "mlp.fc{k}.{x}")]
SCORES = [
    ("attn.q_bias", "mixer.q_bias"),
    ("attn.v_bias", "mixer.v_bias"),
    ("attn.qkv.{x}", "mixer.qkv.{x}"),
    ("attn.proj.{x}", "mixer.proj.{x}"),
    ("attn.relative_position_bias_table", "mixer.branch.bias.table"),
    ("attn.logit_scale", "mixer.branch.logit_scale"),
    ("attn.cpb_mlp.{k}.{x}", "mixer.branch.bias.mlp.{k}.{x}"),
    ("attn.relative_position_index", None),
    ("attn.relative_coords_table", None),
]
ATTENTION = in_blocks(_BLOCK, *MLP, *SCORES, ("attn_mask", None))
_SPATIAL = [
    *in_blocks(_BLOCK, *MLP, ("attn_mask", None)),
    rule(_BLOCK + "spatial_mlp.{x}", "stages.{i}.blocks.{j}.mixer.{x}", ROWS),
]
HEAD = [rule("norm.{x}", "norm.{x}"), rule("head.{x}", "head.{x}")]
_AUTHORS = [  # their stages end with the merging, with which ours begin
    *STEM,
    rule("absolute_pos_embed", "stem.position", TOKENS),
    rule("mask_token", None),  # of SimMIM's encoders
    rule("layers.{i-1}.downsample.{rest}", "stages.{i}.downsample.{rest}"),
    rule("norm{k}.{x}", "out_norms.{k}.{x}"),  # of their dense backbones
    *HEAD,
]
_TIMM = [
    *STEM, *ATTENTION, rule("layers.{i}.downsample.{rest}", "stages.{i}.downsample.{rest}"),
    rule("norm.{x}", "norm.{x}"), rule("head.fc.{x}", "head.{x}"),
]  # fmt: skip
# features: stem, stage 1, merge, stage 2, merge, ...
_TORCHVISION = [
    rule("features.0.0.{x}", "stem.conv.{x}"),
    rule("features.0.2.{x}", "stem.norm.{x}"),
    *in_blocks(
        "features.{2i+1}.{j}.",
        ("norm{k}.{x}", "norm{k}.{x}"),
        ("mlp.0.{x}", "mlp.fc1.{x}"),
        ("mlp.3.{x}", "mlp.fc2.{x}"),
        *SCORES,
    ),
    rule("features.{2i}.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    rule("features.{2i}.reduction.{x}", "stages.{i}.downsample.reduction.{x}"),
    *HEAD,
]

SOURCES = {
    "swin": [*_AUTHORS, *ATTENTION],
    "swinv2": [*_AUTHORS, *ATTENTION],
    "swinmlp": [*_AUTHORS, *_SPATIAL],
    "timm": _TIMM,
    "torchvision": _TORCHVISION,
}
