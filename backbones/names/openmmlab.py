"""Swin and Swin V2 of OpenMMLab: mmpretrain, mmdet, mmseg."""

from __future__ import annotations

from backbones.names.layouts import TOKENS, UNFOLDED
from backbones.names.swin import SCORES
from backbones.names.template import in_blocks, rule

# OpenMMLab (mmpretrain, mmdet, mmseg).  A single norm is that of a classifier, see
# weights/prepare.py.
_MM = [
    rule("patch_embed.projection.{x}", "stem.conv.{x}"),
    rule("patch_embed.norm.{x}", "stem.norm.{x}"),
    rule("absolute_pos_embed", "stem.position", TOKENS),
    rule("mask_token", None),
    *in_blocks(
        "stages.{i}.blocks.{j}.",
        ("norm{k}.{x}", "norm{k}.{x}"),
        ("ffn.layers.0.0.{x}", "mlp.fc1.{x}"),
        ("ffn.layers.1.{x}", "mlp.fc2.{x}"),
        *((theirs.replace("attn.", "attn.w_msa."), ours) for theirs, ours in SCORES),
    ),
    rule("norm{k}.{x}", "out_norms.{k}.{x}"),
    rule("norm.{x}", "norm.{x}"),
    rule("head.fc.{x}", "head.{x}"),
]
_MM_V1 = [  # merging at the end of a stage, norm first
    rule("stages.{i-1}.downsample.{rest}", "stages.{i}.downsample.{rest}", UNFOLDED),
    *_MM,
]
_MM_V2 = [  # merging at the start of a stage, norm last
    rule("stages.{i}.downsample.reduction.{x}", "stages.{i}.downsample.reduction.{x}", UNFOLDED),
    rule("stages.{i}.downsample.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    *_MM,
]

SOURCES = {"openmmlab": _MM_V1, "openmmlab_v2": _MM_V2}
