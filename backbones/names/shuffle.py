"""Shuffle Transformer, CrossFormer and MSG-Transformer: the authors' repositories."""

from __future__ import annotations

from backbones.names.layouts import PAIRS, POINTWISE, SINGLES
from backbones.names.swin import HEAD, MLP, SCORES, STEM
from backbones.names.template import Rule, in_blocks, rule


def _block(theirs: str, ours: str) -> list[Rule]:
    """Rules of every second block: theirs stand in pairs, (pair, even or odd)."""
    return [
        *(rule(theirs + f"{name}.weight", ours + f"{as_ours}.weight", POINTWISE)
          for name, as_ours in _LINEAR.items()),
        *(rule(theirs + f"{name}.bias", ours + f"{as_ours}.bias")
          for name, as_ours in _LINEAR.items()),
        rule(theirs + "attn.relative_position_bias_table", ours + "mixer.branch.bias.table"),
        rule(theirs + "attn.relative_position_index", None),
        rule(theirs + "norm1.{x}", ours + "norm1.{x}"),
        rule(theirs + "local.{x}", ours + "local.conv.{x}"),
        rule(theirs + "norm2.{x}", ours + "local.norm.{x}"),
        rule(theirs + "norm3.{x}", ours + "norm2.{x}"),
    ]  # fmt: skip


_LINEAR = {  # 1x1 convolutions of theirs
    "attn.to_qkv": "mixer.qkv", "attn.proj": "mixer.proj", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_SHUFFLE = [
    rule("to_token.conv1.0.{x}", "stem.conv.{x}"),
    rule("to_token.conv1.1.{x}", "stem.inner.0.{x}"),
    rule("to_token.conv2.0.{x}", "stem.inner.2.{x}"),
    rule("to_token.conv2.1.{x}", "stem.inner.3.{x}"),
    rule("to_token.conv3.{x}", "stem.inner.5.{x}"),
    rule("stage{i+1}.patch_partition.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    rule("stage{i+1}.patch_partition.reduction.{x}", "stages.{i}.downsample.conv.{x}"),
    *_block("stage{i+1}.layers.{j}.0.", "stages.{i}.blocks.{2j}."),
    *_block("stage{i+1}.layers.{j}.1.", "stages.{i}.blocks.{2j+1}."),
    rule("head.{x}", "head.{x}"),
]

_CROSSFORMER = [  # their stages end with the merging, with which ours begin
    rule("patch_embed.projs.0.{x}", "stem.conv.{x}"),
    rule("patch_embed.projs.{k+1}.{x}", "stem.larger.{k}.{x}"),
    rule("patch_embed.norm.{x}", "stem.norm.{x}"),
    *in_blocks(
        "layers.{i}.blocks.{j}.",
        *MLP,
        ("attn.qkv.{x}", "mixer.qkv.{x}"),
        ("attn.proj.{x}", "mixer.proj.{x}"),
        ("attn.pos.pos_proj.{x}", "mixer.branch.bias.layers.0.{x}"),
        *(
            (f"attn.pos.pos{n}.{at}.{{x}}", f"mixer.branch.bias.layers.{3 * n - 2 + at}.{{x}}")
            for n in (1, 2, 3) for at in (0, 2)
        ),
        ("attn.biases", None),
        ("attn.relative_position_index", None),
        ("attn_mask", None),
    ),
    rule("layers.{i-1}.downsample.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    rule("layers.{i-1}.downsample.reductions.{rest}", "stages.{i}.downsample.scales.convs.{rest}"),
    *HEAD,
]  # fmt: skip

_MSG = [  # stages end with the merging here, too
    *STEM,
    rule("msg_tokens", "stages.0.beside.tokens", SINGLES),
    *in_blocks("layers.{i}.blocks.{j}.", *MLP, *SCORES),
    rule("layers.{i}.blocks.{j}.attn.rel_pos_msg", "stages.{i}.blocks.{j}.mixer.messenger_bias",
         PAIRS),
    rule("layers.{i-1}.downsample.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    rule("layers.{i-1}.downsample.reduction.{x}", "stages.{i}.downsample.conv.{x}"),
    *HEAD,
]  # fmt: skip

SOURCES = {"shuffle": _SHUFFLE, "crossformer": _CROSSFORMER, "msg": _MSG}
FAMILIES = {
    "shuffle": "shuffletransformer", "crossformer": "crossformer",
    "msg": ("msg_",),  # later stages do not tell their regions
}  # fmt: skip
MARKS = {
    "msg": ("msg_tokens", "layers.0.blocks.0.attn.rel_pos_msg"),
    "shuffle": ("to_token.conv1.0.weight", "stage1.layers.0.0.attn.to_qkv.weight"),
    "crossformer": ("patch_embed.projs.0.weight", "layers.0.blocks.0.attn.pos.pos_proj.weight"),
}
