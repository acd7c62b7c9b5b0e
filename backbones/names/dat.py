"""DAT of its authors: windows and deformable attention in turn.

`weights/prepare.py` has made linear layers of the 1x1 convolutions of deformable attention.
"""

from __future__ import annotations

from backbones.names.template import in_blocks, rule

_DAT = [
    rule("patch_proj.0.{x}", "stem.conv.{x}"),
    rule("patch_proj.1.norm.{x}", "stem.norm.{x}"),
    rule("down_projs.{i-1}.0.{x}", "stages.{i}.downsample.conv.{x}"),
    rule("down_projs.{i-1}.1.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    *in_blocks(
        "stages.{i}.",
        ("layer_norms.{2j}.norm.{x}", "norm1.{x}"),
        ("layer_norms.{2j+1}.norm.{x}", "norm2.{x}"),
        ("mlps.{j}.chunk.linear{k}.{x}", "mlp.fc{k}.{x}"),
        ("attns.{j}.proj_qkv.{x}", "mixer.qkv.{x}"),
        ("attns.{j}.proj_out.{x}", "mixer.proj.{x}"),
        ("attns.{j}.relative_position_bias_table", "mixer.branch.bias.table"),
        ("attns.{j}.relative_position_index", None),
        ("attns.{j}.attn_mask", None),
        ("attns.{j}.proj_q.{x}", "mixer.q.{x}"),
        ("attns.{j}.proj_k.{x}", "mixer.k.{x}"),
        ("attns.{j}.proj_v.{x}", "mixer.v.{x}"),
        ("attns.{j}.conv_offset.0.{x}", "mixer.offsets.depthwise.{x}"),
        ("attns.{j}.conv_offset.1.norm.{x}", "mixer.offsets.norm.{x}"),
        ("attns.{j}.conv_offset.3.weight", "mixer.offsets.pointwise.weight"),
        ("attns.{j}.rpe_table", "mixer.table"),
    ),
    rule("cls_norm.norm.{x}", "norm.{x}"),
    rule("cls_head.{x}", "head.{x}"),
]

SOURCES = {"dat": _DAT}
FAMILIES = {"dat": ("dat_",)}  # its blocks differ inside a stage, which no size tells
MARKS = {"dat": ("patch_proj.0.weight", "cls_norm.norm.weight")}
