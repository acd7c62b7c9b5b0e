"""Weights of one backbone for another: the parameters that differ, dropped and renamed tensors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

from attention.configs.beside import MessengerConfig
from attention.configs.config import MixerConfig
from attention.configs.softmax import SoftmaxConfig
from attention.configs.windows import TokenMLPConfig, WindowConfig
from backbones.files.storage import WeightsError
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec
from backbones.weights.resize import Adapt
from transom.errors import LONGEST_WORD, one_line


def replaced(asked: BackboneSpec, theirs: BackboneSpec, how: Adapt) -> tuple[str, ...]:
    """Beginnings of the names of the parameters that two backbones do not share.

    A mixer of another kind or with another option is replaced, without its norms and MLP.  A stage
    of another width is replaced, with the merging after it.

    Args:
        asked: the backbone to build.
        theirs: the backbone of the weights.
        how: with resize, windows of another size do not make another softmax mixer.

    Returns:
        Beginnings of names in the state dict of `asked`.

    Example:
        >>> from backbones.specs.notation import parse
        >>> found = replaced(parse("swin_t/4=pale"), parse("swin_t"), Adapt())
        >>> found
        ('stages.3.blocks.0.mixer.', 'stages.3.blocks.1.mixer.')
    """
    grids, trained = asked.grids(asked.img_size), theirs.grids(theirs.img_size)
    own_size = theirs.img_size  # of their positions
    asked, theirs = asked.resolve(), replace(theirs.resolve(asked.img_size), img_size=own_size)
    names = list(_outside_stages(asked, theirs, how))
    for i, (stage, other) in enumerate(zip_longest(asked.stages, theirs.stages)):
        start = f"stages.{i}."
        if stage is None or other is None or stage.dim != other.dim:
            names += [start, f"stages.{i + 1}.downsample.", f"out_norms.{i}."]
            continue
        if asked.downsample != theirs.downsample:
            names.append(start + "downsample.")
            names += [f"{start}blocks.{j}.conv." for j in range(stage.depth)]
        if asked.position != theirs.position or (grids[i] != trained[i] and not how.resize):
            names.append(start + "position")
        names += [start + name for name in _beside(asked, theirs, i)]
        names += [start + name for name in _in_stage(stage, other, grids[i], how)]
        parts = ["mlp."] if asked.mlp != theirs.mlp else []
        if (asked.norm, asked.norm_layer) != (theirs.norm, theirs.norm_layer):
            parts += ["norm1.", "norm2.", "local.norm."]
        if asked.local != theirs.local:
            parts.append("local.")
        names += [f"{start}blocks.{j}.{part}" for j in range(stage.depth) for part in parts]
    return tuple(dict.fromkeys(names))


def _outside_stages(asked: BackboneSpec, theirs: BackboneSpec, how: Adapt) -> Iterable[str]:
    last = [spec.stages[-1].dim for spec in (asked, theirs)]
    fields = ["stem_stride", "stem_width", "stem_dim", "stem"]
    fields += [] if how.new_inputs else ["in_channels"]
    if any(getattr(asked, f) != getattr(theirs, f) for f in fields):
        yield "stem."
    if asked.stem_width != theirs.stem_width:
        yield "stages.0.downsample."
    if asked.patch_norm != theirs.patch_norm:
        yield "stem.norm."
    if asked.position != theirs.position or (
        asked.stem_grid(asked.img_size) != theirs.stem_grid(theirs.img_size) and not how.resize
    ):
        yield "stem.position"
    if (asked.position == "cpe") != (theirs.position == "cpe"):
        yield from (
            f"stages.{i}.blocks.{j}.cpe."
            for spec in (asked, theirs)
            for i, stage in enumerate(spec.stages)
            for j in range(stage.depth)
        )
    if (asked.position == "cpe_once") != (theirs.position == "cpe_once"):
        yield from (f"stages.{i}.cpe." for i in range(max(len(asked.stages), len(theirs.stages))))
    if asked.stage_norms != theirs.stage_norms:
        yield from (f"stages.{i}.norm." for i in range(max(len(asked.stages), len(theirs.stages))))
        yield "norm."
    deeper = len(asked.stages) != len(theirs.stages) or last[0] != last[1]
    if deeper or asked.final_norm != theirs.final_norm:
        yield "norm."
    if deeper or asked.num_classes != theirs.num_classes:
        yield "head."
    if deeper or asked.head != theirs.head:
        yield "pre_head."
    if asked.head_bias != theirs.head_bias:
        yield "head.bias"
    if asked.out_norms != theirs.out_norms:
        yield "out_norms."


def _beside(asked: BackboneSpec, theirs: BackboneSpec, i: int) -> Iterable[str]:
    """Those of the tokens beside the map of stage i, which both have."""
    if _tokens(asked, i) != _tokens(theirs, i):
        yield "beside."
    if _own_positions(asked) != _own_positions(theirs):
        yield "beside.position"


def _tokens(spec: BackboneSpec, i: int) -> tuple[type | None, int]:
    """(kind, number) of the learned tokens with which a stage begins."""
    stage = spec.stages[i]
    if stage.messenger is None:
        return None, stage.tokens
    return MessengerConfig, 0 if i and spec.goes_on(i - 1) else stage.messenger.region**2


def _own_positions(spec: BackboneSpec) -> bool:
    """Whether tokens beside a map have positions of their own."""
    return spec.token_position and spec.position in ("absolute", "absolute_stages")


def _in_stage(
    asked: StageSpec, theirs: StageSpec, grid: tuple[int, int], how: Adapt
) -> Iterable[str]:
    for j, (block, other) in enumerate(zip_longest(asked.blocks(), theirs.blocks())):
        if block is None or other is None:
            yield f"blocks.{j}."
            continue
        if asked.heads != theirs.heads or not _same_mixer(block[0], other[0], grid, how):
            yield f"blocks.{j}.mixer."
        if asked.hidden != theirs.hidden:
            yield f"blocks.{j}.mlp."


def _same_mixer(asked: MixerConfig, theirs: MixerConfig, grid: tuple[int, int], how: Adapt) -> bool:
    asked, theirs = (without_idle_shift(mixer, grid) for mixer in (asked, theirs))
    if how.resize and type(asked) is type(theirs) and isinstance(asked, SoftmaxConfig):
        free = {name: getattr(asked, name) for name in ("size", "shift") if hasattr(asked, name)}
        theirs = replace(theirs, **free)
    return asked == theirs


def without_idle_shift(mixer: MixerConfig, grid: tuple[int, int]) -> MixerConfig:
    """The mixer, with shift=False where its window covers the map and a shift has no effect."""
    if isinstance(mixer, (WindowConfig, TokenMLPConfig)) and (
        mixer.size[0] >= grid[0] and mixer.size[1] >= grid[1]
    ):
        return replace(mixer, shift=False)
    return mixer


def dropped(
    state: Mapping[str, Any], patterns: Sequence[str], prefix: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors that no pattern matches, tensors that one matches).

    A pattern is a name, in which ``*`` stands for any text; it is compared with names with and
    without the prefix of the backbone.  Raises WeightsError for a pattern that matches nothing.
    """
    left: dict[str, Any] = {}
    for pattern in patterns:
        found = {
            key: tensor for key, tensor in state.items()
            if fnmatchcase(key, pattern) or fnmatchcase(key.removeprefix(prefix), pattern)
        }  # fmt: skip
        if not found:
            close = difflib.get_close_matches(pattern[:LONGEST_WORD], list(state), n=1)
            hint = f"; did you mean {one_line(close[0])}?" if close else ""
            raise WeightsError(f"--drop {one_line(pattern)}: no tensor has such a name{hint}")
        left |= found
    return {key: tensor for key, tensor in state.items() if key not in left}, left


def renamed(state: Mapping[str, Any], pairs: Mapping[str, str]) -> dict[str, Any]:
    """The state with parts of its names exchanged, pair by pair.

    pairs: old to new.  Old is one part of a dotted name or several (``attn.core``), or with a dot
    at its end the beginning of a name (``model.``); new may be empty.  Raises WeightsError if no
    name has the old part, or two names become one.
    """
    out = dict(state)
    for old, new in pairs.items():
        new_names = {key: _rename_key(key, old, new) for key in out}
        if all(key == name for key, name in new_names.items()):
            raise WeightsError(f"--rename {one_line(old)}: stands in no name")
        if len(set(new_names.values())) < len(new_names):
            raise WeightsError(f"--rename {one_line(old)}={one_line(new)}: two names become one")
        out = {new_names[key]: tensor for key, tensor in out.items()}
    return out


def _rename_key(key: str, old: str, new: str) -> str:
    """The key with the parts `old` between dots exchanged for `new`."""
    inner = f".{key}."
    old_part = old.strip(".")
    replacement = new.strip(".")
    replacement = f".{replacement}." if replacement else "."
    if not old_part:
        return key
    if old.endswith("."):  # a beginning
        start = f".{old_part}."
        if not inner.startswith(start):
            return key
        return (replacement + inner.removeprefix(start)).strip(".")
    return inner.replace(f".{old_part}.", replacement).strip(".")
