"""CSWin Transformer: the authors' repository."""

from __future__ import annotations

from backbones.names.swin import HEAD, MLP
from backbones.names.template import in_blocks, rule

_CSWIN = [
    rule("stage1_conv_embed.0.{x}", "stem.conv.{x}"),
    rule("stage1_conv_embed.2.{x}", "stem.norm.{x}"),
    *in_blocks(
        "stage{i+1}.{j}.",
        *MLP,
        ("qkv.{x}", "mixer.qkv.{x}"),
        ("proj.{x}", "mixer.proj.{x}"),
        ("attns.{k}.get_v.{x}", "mixer.branches.{k}.lepe.conv.{x}"),
    ),
    rule("merge{i}.{rest}", "stages.{i}.downsample.{rest}"),
    rule("norm{k+1}.{x}", "out_norms.{k}.{x}"),
    *HEAD,
]

SOURCES = {"cswin": _CSWIN}
