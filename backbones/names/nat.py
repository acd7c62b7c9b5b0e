"""NAT and DiNAT: the authors' repository, whose keys and sizes do not tell one from the other."""

from __future__ import annotations

from backbones.names.layouts import KEY_FIRST
from backbones.names.swin import HEAD, MLP
from backbones.names.template import in_blocks, rule

_NAT = [
    rule("patch_embed.proj.0.{x}", "stem.conv.{x}"),
    rule("patch_embed.proj.1.{x}", "stem.conv2.{x}"),
    rule("patch_embed.norm.{x}", "stem.norm.{x}"),
    *in_blocks(
        "levels.{i}.blocks.{j}.",
        *MLP,
        ("attn.qkv.{x}", "mixer.qkv.{x}"),
        ("attn.proj.{x}", "mixer.proj.{x}"),
        ("gamma{k}", "scale{k}.gamma"),
    ),
    rule("levels.{i}.blocks.{j}.attn.rpb", "stages.{i}.blocks.{j}.mixer.branch.bias.table",
         KEY_FIRST),
    rule("levels.{i-1}.downsample.reduction.{x}", "stages.{i}.downsample.conv.{x}"),
    rule("levels.{i-1}.downsample.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    *HEAD,
]  # fmt: skip

SOURCES = {"nat": _NAT}
FAMILIES = {"nat": ("nat_", "dinat_")}
MARKS = {"nat": ("patch_embed.proj.1.weight", "levels.0.blocks.0.norm1.weight")}
