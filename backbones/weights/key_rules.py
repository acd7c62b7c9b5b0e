"""Names of the tensors in other repositories: one table of rules per source, read both ways.

A rule is (their key, our name or None for a tensor that we compute, change of the layout); the
first rule that matches is applied.  {i} and {j} are numbers, {2i+1} is a number in another count,
{x} is a word and {rest} any text.  Tensors that we compute (index tables, masks) are dropped by
their names, never by default, and are not written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Size, Tensor

METHODS = ("bicubic", "timm")  # of resizing relative bias tables
PARTIAL = ("replaced", "fitting")  # of loading a part of the weights


class Change(NamedTuple):
    """Change of a tensor's layout.

    read: (their tensor, our shape) -> our tensor; it raises IndexError or RuntimeError for another
    layout.  write: our tensor -> their tensor.
    """

    read: Callable[[Tensor, Size], Tensor]
    write: Callable[[Tensor], Tensor]


def _to_heads(tensor: Tensor, shape: Size) -> Tensor:
    tensor = tensor.unflatten(0, shape[:2])
    return tensor.squeeze(-1) if len(shape) == 3 else tensor


def _to_rows(tensor: Tensor) -> Tensor:
    rows = tensor.flatten(0, 1)
    return rows.unsqueeze(-1) if tensor.ndim == 3 else rows


# Conv1d's (heads * l, l, 1) or (heads * l) <-> (heads, l, l) or (heads, l)
ROWS = Change(_to_heads, _to_rows)
# (1, tokens, c) <-> (1, c, h, w)
TOKENS = Change(
    lambda tensor, shape: tensor.transpose(1, 2).unflatten(2, shape[2:]),
    lambda tensor: tensor.flatten(2).transpose(1, 2),
)

# nn.Unfold's channels (c, rows, columns) <-> ours (columns, rows, c), of the last axis
UNFOLDED = Change(
    lambda tensor, shape: tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3),
    lambda tensor: tensor.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3),
)

_FIELD = re.compile(r"\{(\d?)([ijk])([+-]\d)?\}|\{(x|rest)\}")
_MEANS = {"x": r"(?P<x>\w+)", "rest": r"(?P<rest>.+)"}


class Template:
    """A name with fields: `values` parses a name, `fill` formats one."""

    def __init__(self, text: str) -> None:
        self.text, pattern, at = text, "", 0
        self.numbers: dict[str, tuple[int, int]] = {}  # by letter: factor and offset
        for field in _FIELD.finditer(text):
            pattern += re.escape(text[at : field.start()])
            at = field.end()
            if letter := field[2]:
                self.numbers[letter] = int(field[1] or 1), int(field[3] or 0)
                pattern += rf"(?P<{letter}>0|[1-9]\d{{0,3}})"
            else:
                pattern += _MEANS[field[4]]
        self.pattern = re.compile(pattern + re.escape(text[at:]))

    def values(self, name: str) -> dict[str, str | int] | None:
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        fields: dict[str, str | int] = dict(match.groupdict())
        for letter, (factor, offset) in self.numbers.items():
            fields[letter], rest = divmod(int(match[letter]) - offset, factor)
            if rest or fields[letter] < 0:  # type: ignore[operator]
                return None
        return fields

    def fill(self, values: dict[str, str | int]) -> str | None:
        counted = {
            letter: factor * int(values[letter]) + offset
            for letter, (factor, offset) in self.numbers.items()
        }
        if any(number < 0 for number in counted.values()):
            return None
        fields = {**values, **counted}
        return _FIELD.sub(lambda field: str(fields[field[2] or field[4]]), self.text)


class Rule(NamedTuple):
    theirs: Template
    ours: Template | None
    change: Change | None


def find(source: str, key: str) -> tuple[Rule, str | None] | None:
    """The rule for a key of the source, and our name for it or None for a dropped tensor.

    None if no rule matches.
    """
    for rule in SOURCES[source]:
        values = rule.theirs.values(key)
        if values is not None:
            name = None if rule.ours is None else rule.ours.fill(values)
            if name is not None or rule.ours is None:
                return rule, name
    return None


def find_back(target: str, name: str) -> tuple[Rule, str] | None:
    """The rule for our name, and the target's key for it; None if no rule matches."""
    for rule in SOURCES[target]:
        values = None if rule.ours is None else rule.ours.values(name)
        key = None if values is None else rule.theirs.fill(values)
        if key is not None:
            return rule, key
    return None


def _rule(theirs: str, ours: str | None, change: Change | None = None) -> Rule:
    return Rule(Template(theirs), None if ours is None else Template(ours), change)


def _in_blocks(start: str, *rows: tuple[str, str | None]) -> list[Rule]:
    """Rules for the tensors of every block, whose keys begin with `start`."""
    blocks = "stages.{i}.blocks.{j}."
    return [_rule(start + theirs, None if ours is None else blocks + ours) for theirs, ours in rows]


_BLOCK = "layers.{i}.blocks.{j}."
_STEM = [
    _rule("patch_embed.proj.{x}", "stem.conv.{x}"),
    _rule("patch_embed.norm.{x}", "stem.norm.{x}"),
]
_MLP = [("norm{k}.{x}", "norm{k}.{x}"), ("mlp.fc{k}.{x}", "mlp.fc{k}.{x}")]
_SCORES = [
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
_ATTENTION = _in_blocks(_BLOCK, *_MLP, *_SCORES, ("attn_mask", None))
_SPATIAL = [
    *_in_blocks(_BLOCK, *_MLP, ("attn_mask", None)),
    _rule(_BLOCK + "spatial_mlp.{x}", "stages.{i}.blocks.{j}.mixer.{x}", ROWS),
]
_HEAD = [_rule("norm.{x}", "norm.{x}"), _rule("head.{x}", "head.{x}")]
_AUTHORS = [  # their stages end with the merging, with which ours begin
    *_STEM,
    _rule("absolute_pos_embed", "stem.position", TOKENS),
    _rule("mask_token", None),  # of SimMIM's encoders
    _rule("layers.{i-1}.downsample.{rest}", "stages.{i}.downsample.{rest}"),
    _rule("norm{k}.{x}", "out_norms.{k}.{x}"),  # of their dense backbones
    *_HEAD,
]
_TIMM = [
    *_STEM, *_ATTENTION, _rule("layers.{i}.downsample.{rest}", "stages.{i}.downsample.{rest}"),
    _rule("norm.{x}", "norm.{x}"), _rule("head.fc.{x}", "head.{x}"),
]  # fmt: skip
_CSWIN = [
    _rule("stage1_conv_embed.0.{x}", "stem.conv.{x}"),
    _rule("stage1_conv_embed.2.{x}", "stem.norm.{x}"),
    *_in_blocks(
        "stage{i+1}.{j}.",
        *_MLP,
        ("qkv.{x}", "mixer.qkv.{x}"),
        ("proj.{x}", "mixer.proj.{x}"),
        ("attns.{k}.get_v.{x}", "mixer.branches.{k}.lepe.conv.{x}"),
    ),
    _rule("merge{i}.{rest}", "stages.{i}.downsample.{rest}"),
    _rule("norm{k+1}.{x}", "out_norms.{k}.{x}"),
    *_HEAD,
]
# OpenMMLab (mmpretrain, mmdet, mmseg).  A single norm is that of a classifier, see
# detect_source.prepare.
_MM = [
    _rule("patch_embed.projection.{x}", "stem.conv.{x}"),
    _rule("patch_embed.norm.{x}", "stem.norm.{x}"),
    _rule("absolute_pos_embed", "stem.position", TOKENS),
    _rule("mask_token", None),
    *_in_blocks(
        "stages.{i}.blocks.{j}.",
        ("norm{k}.{x}", "norm{k}.{x}"),
        ("ffn.layers.0.0.{x}", "mlp.fc1.{x}"),
        ("ffn.layers.1.{x}", "mlp.fc2.{x}"),
        *((theirs.replace("attn.", "attn.w_msa."), ours) for theirs, ours in _SCORES),
    ),
    _rule("norm{k}.{x}", "out_norms.{k}.{x}"),
    _rule("norm.{x}", "norm.{x}"),
    _rule("head.fc.{x}", "head.{x}"),
]
_MM_V1 = [  # merging at the end of a stage, norm first
    _rule("stages.{i-1}.downsample.{rest}", "stages.{i}.downsample.{rest}", UNFOLDED),
    *_MM,
]
_MM_V2 = [  # merging at the start of a stage, norm last
    _rule("stages.{i}.downsample.reduction.{x}", "stages.{i}.downsample.reduction.{x}", UNFOLDED),
    _rule("stages.{i}.downsample.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    *_MM,
]
# features: stem, stage 1, merge, stage 2, merge, ...
_TORCHVISION = [
    _rule("features.0.0.{x}", "stem.conv.{x}"),
    _rule("features.0.2.{x}", "stem.norm.{x}"),
    *_in_blocks(
        "features.{2i+1}.{j}.",
        ("norm{k}.{x}", "norm{k}.{x}"),
        ("mlp.0.{x}", "mlp.fc1.{x}"),
        ("mlp.3.{x}", "mlp.fc2.{x}"),
        *_SCORES,
    ),
    _rule("features.{2i}.norm.{x}", "stages.{i}.downsample.norm.{x}"),
    _rule("features.{2i}.reduction.{x}", "stages.{i}.downsample.reduction.{x}"),
    *_HEAD,
]
# transformers names Swin's parts in two ways: files (of 4.x and 5.x) first, modules of 5.x below.
# Queries, keys and values have been joined before, see detect_source.prepare.
_TRANSFORMERS = [
    _rule("embeddings.patch_embeddings.projection.{x}", "stem.conv.{x}"),
    _rule("embeddings.norm.{x}", "stem.norm.{x}"),
    _rule("embeddings.position_embeddings", "stem.position", TOKENS),
    _rule("embeddings.mask_token", None),
    _rule("decoder.{rest}", None),  # of SimMIM
    *_in_blocks(
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
    _rule("encoder.layers.{i-1}.downsample.{rest}", "stages.{i}.downsample.{rest}"),
    _rule("layernorm.{x}", "norm.{x}"),
    _rule("classifier.{x}", "head.{x}"),
]  # fmt: skip

SOURCES: dict[str, list[Rule]] = {
    "swin": [*_AUTHORS, *_ATTENTION],
    "swinv2": [*_AUTHORS, *_ATTENTION],
    "swinmlp": [*_AUTHORS, *_SPATIAL],
    "cswin": _CSWIN,
    "timm": _TIMM,
    "torchvision": _TORCHVISION,
    "transformers": _TRANSFORMERS,
    "openmmlab": _MM_V1,
    "openmmlab_v2": _MM_V2,
    "transom": [_rule("{rest}", "{rest}")],
}
TARGETS = tuple(source for source in SOURCES if source != "transom")
