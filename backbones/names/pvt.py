"""PVT, PVT v2 of its authors and of timm, and Twins, whose names are the same in both."""

from __future__ import annotations

from backbones.names.layouts import CELLS, TOKENS
from backbones.names.swin import HEAD, MLP, STEM
from backbones.names.template import Rule, in_blocks, rule

_REDUCED = [
    *MLP,
    ("attn.q.{x}", "mixer.q.{x}"),
    ("attn.kv.{x}", "mixer.kv.{x}"),
    ("attn.norm.{x}", "mixer.norm.{x}"),
    ("attn.proj.{x}", "mixer.proj.{x}"),
]


def _in_blocks(start: str, *rows: tuple[str, str]) -> list[Rule]:
    """Rules for the tensors of every block, with the convolution that makes the keys."""
    ours = "stages.{i}.blocks.{j}.mixer.reduction."
    convolution = rule(start + "attn.sr.weight", ours + "weight", CELLS)
    return [convolution, rule(start + "attn.sr.bias", ours + "bias"), *in_blocks(start, *rows)]


_PVT = [
    rule("patch_embed1.proj.{x}", "stem.conv.{x}"),
    rule("patch_embed1.norm.{x}", "stem.norm.{x}"),
    rule("patch_embed{i+1}.proj.{x}", "stages.{i}.downsample.conv.{x}"),
    rule("patch_embed{i+1}.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    # with what weights/prepare.py separates
    rule("cls_token", "stages.3.beside.tokens"),
    rule("pos_embed{i+1}.tokens", "stages.{i}.beside.position"),
    rule("pos_embed{i+1}", "stages.{i}.position", TOKENS),
    *_in_blocks("block{i+1}.{j}.", *_REDUCED),
    *HEAD,
]
_PVT_V2 = [
    rule("patch_embed1.proj.{x}", "stem.conv.{x}"),
    rule("patch_embed1.norm.{x}", "stem.norm.{x}"),
    rule("patch_embed{i+1}.proj.{x}", "stages.{i}.downsample.conv.{x}"),
    rule("patch_embed{i+1}.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    *_in_blocks("block{i+1}.{j}.", *_REDUCED, ("mlp.dwconv.dwconv.{x}", "mlp.conv.{x}")),
    rule("norm{i+1}.{x}", "stages.{i}.norm.{x}"),
    rule("head.{x}", "head.{x}"),
]
_PVT_V2_TIMM = [
    *STEM,
    rule("stages.{i}.downsample.proj.{x}", "stages.{i}.downsample.conv.{x}"),
    rule("stages.{i}.downsample.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    *_in_blocks("stages.{i}.blocks.{j}.", *_REDUCED, ("mlp.dwconv.{x}", "mlp.conv.{x}")),
    rule("stages.{i}.norm.{x}", "stages.{i}.norm.{x}"),
    rule("head.{x}", "head.{x}"),
]
_TWINS = [
    rule("patch_embeds.0.proj.{x}", "stem.conv.{x}"),
    rule("patch_embeds.0.norm.{x}", "stem.norm.{x}"),
    rule("patch_embeds.{i}.proj.{x}", "stages.{i}.downsample.conv.{x}"),
    rule("patch_embeds.{i}.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    *_in_blocks("blocks.{i}.{j}.", *_REDUCED, ("attn.qkv.{x}", "mixer.qkv.{x}")),
    rule("pos_block.{i}.proj.0.{x}", "stages.{i}.cpe.{x}"),
    *HEAD,
]

SOURCES = {"pvt": _PVT, "pvt_v2": _PVT_V2, "pvt_v2_timm": _PVT_V2_TIMM, "twins": _TWINS}
FAMILIES = {
    "pvt": ("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"), "pvt_v2": "pvt_v2",
    "pvt_v2_timm": "pvt_v2", "twins": "twins",
}  # fmt: skip
MARKS = {
    "pvt": ("patch_embed1.proj.weight", "pos_embed1"),
    "pvt_v2": ("patch_embed1.proj.weight", "block1.0.mlp.dwconv.dwconv.weight"),
    "pvt_v2_timm": ("patch_embed.proj.weight", "stages.0.blocks.0.mlp.dwconv.weight"),
    "twins": ("patch_embeds.0.proj.weight", "pos_block.0.proj.0.weight"),
}
