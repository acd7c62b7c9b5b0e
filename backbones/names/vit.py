"""ViT, DeiT and DeiT III of timm, the authors and torchvision; MLP-Mixer of timm."""

from __future__ import annotations

from backbones.names.layouts import ONE_HEAD, TOKENS
from backbones.names.swin import HEAD, MLP
from backbones.names.template import Rule, rule

_OURS = "stages.0.blocks.{j}."


def _in_blocks(start: str, *rows: tuple[str, str]) -> list[Rule]:
    return [rule(start + theirs, _OURS + ours) for theirs, ours in rows]


def _beside(token: str, position: str) -> list[Rule]:
    """Rules for what weights/prepare.py joins, to names of several tensors, and separates."""
    return [
        rule(token, "stages.0.beside.tokens"),
        rule("{x} and {rest}", "stages.0.beside.tokens"),
        rule(f"{position}.tokens", "stages.0.beside.position"),
        rule(position, "stem.position", TOKENS),
    ]


_VIT = [
    *_beside("cls_token", "pos_embed"),
    rule("patch_embed.proj.{x}", "stem.conv.{x}"),
    *_in_blocks(
        "blocks.{j}.",
        *MLP,
        ("attn.qkv.{x}", "mixer.qkv.{x}"),
        ("attn.proj.{x}", "mixer.proj.{x}"),
        ("ls{k}.gamma", "scale{k}.gamma"),
        ("gamma_{k}", "scale{k}.gamma"),  # the authors'
    ),
    *HEAD,
]
_TORCHVISION = [
    *_beside("class_token", "encoder.pos_embedding"),
    rule("conv_proj.{x}", "stem.conv.{x}"),
    *_in_blocks(
        "encoder.layers.encoder_layer_{j}.",
        ("ln_{k}.{x}", "norm{k}.{x}"),
        ("self_attention.in_proj_{x}", "mixer.qkv.{x}"),
        ("self_attention.out_proj.{x}", "mixer.proj.{x}"),
        ("mlp.0.{x}", "mlp.fc1.{x}"),
        ("mlp.3.{x}", "mlp.fc2.{x}"),
        ("mlp.linear_{k}.{x}", "mlp.fc{k}.{x}"),  # of its older files
    ),
    rule("encoder.ln.{x}", "norm.{x}"),
    rule("heads.head.{x}", "head.{x}"),
]
_MIXER = [
    rule("stem.proj.{x}", "stem.conv.{x}"),
    *_in_blocks("blocks.{j}.", ("norm{k}.{x}", "norm{k}.{x}"),
                ("mlp_channels.fc{k}.{x}", "mlp.fc{k}.{x}")),
    *(rule(f"blocks.{{j}}.mlp_tokens.fc{n}.{x}", f"{_OURS}mixer.{x}{end}", ONE_HEAD)
      for n, end in ((1, ""), (2, "2")) for x in ("weight", "bias")),
    *HEAD,
]  # fmt: skip

SOURCES = {"vit": _VIT, "vit_torchvision": _TORCHVISION, "mixer": _MIXER}
FAMILIES = {
    "vit": ("vit_", "deit_", "deit3_"), "vit_torchvision": ("vit_",), "mixer": "mixer_",
}  # fmt: skip
MARKS = {
    "vit": ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    "vit_torchvision": ("conv_proj.weight", "encoder.pos_embedding"),
    "mixer": ("stem.proj.weight", "blocks.0.mlp_tokens.fc1.weight"),
}
