"""Swin and Swin V2 of transformers."""

from __future__ import annotations

from backbones.names.layouts import TOKENS
from backbones.names.template import in_blocks, rule

# transformers names Swin's parts in two ways: files (of 4.x and 5.x) first, modules of 5.x below.
# Queries, keys and values have been joined before, see weights/prepare.py.
_TRANSFORMERS = [
    rule("embeddings.patch_embeddings.projection.{x}", "stem.conv.{x}"),
    rule("embeddings.norm.{x}", "stem.norm.{x}"),
    rule("embeddings.position_embeddings", "stem.position", TOKENS),
    rule("embeddings.mask_token", None),
    rule("decoder.{rest}", None),  # of SimMIM
    *in_blocks(
        "encoder.layers.{i}.blocks.{j}.",
        ("attention.qkv.{x}", "mixer.qkv.{x}"),
        ("attention.q_bias", "mixer.q_bias"),
        ("attention.v_bias", "mixer.v_bias"),
        ("attention.output.dense.{x}", "mixer.proj.{x}"),
        ("attention.self.relative_position_bias_table", "mixer.branch.bias.table"),
        ("attention.self.logit_scale", "mixer.branch.logit_scale"),
        ("attention.self.continuous_position_bias_mlp.{k}.{x}", "mixer.branch.bias.mlp.{k}.{x}"),
        ("layernorm_before.{x}", "norm1.{x}"),
        ("layernorm_after.{x}", "norm2.{x}"),
        ("intermediate.dense.{x}", "mlp.fc1.{x}"),
        ("output.dense.{x}", "mlp.fc2.{x}"),
        ("attention.o_proj.{x}", "mixer.proj.{x}"),
        ("attention.relative_position_bias.relative_position_bias_table",
         "mixer.branch.bias.table"),
        ("mlp.fc{k}.{x}", "mlp.fc{k}.{x}"),
        *[
            (f"attention.{parent}relative_{table}", None)
            for parent in ("", "self.", "relative_position_bias.")
            for table in ("position_index", "coords_table")
        ],
    ),
    rule("encoder.layers.{i-1}.downsample.{rest}", "stages.{i}.downsample.{rest}"),
    rule("layernorm.{x}", "norm.{x}"),
    rule("classifier.{x}", "head.{x}"),
]  # fmt: skip


SOURCES = {"transformers": _TRANSFORMERS}
