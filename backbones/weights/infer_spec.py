"""Infers the spec of a backbone from the shapes of its weights.

What shapes do not tell is never guessed: an error names the option that gives it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor

from backbones.files.storage import WeightsError
from backbones.names.key_rules import FAMILIES, find
from backbones.specs.construct import from_dict
from backbones.specs.spec import MOST_STAGES, BackboneSpec
from backbones.weights.infer_variant import shapes, variant_of
from backbones.weights.prepare import prepare
from backbones.weights.resize import Size, square
from transom.errors import SpecError


class InferConfig(TypedDict, total=False):
    """What the shapes of weights may not tell; lists have one value, or one value per stage.

    window, pretrained_window: (height, width) in tokens.  img_size: (height, width) in pixels.
    """

    window: Sequence[Size] | None
    heads: Sequence[int] | None
    pretrained_window: Sequence[Size | None] | None
    img_size: Size | None
    qk_scale: Sequence[float] | None


def small_maps(source: str, windows: Iterable[Size]) -> str:
    """The rule by which a source's code shrinks windows that are larger than their map.

    The authors' rule is for square windows; others are shrunk by timm's rule, axis by axis.
    """
    if source == "torchvision":
        return "pad"
    square = all(h == w for h, w in windows)
    return "shrink_axis" if source == "timm" or not square else "shrink_both"


def infer(
    state: Mapping[str, Any], source: str, *, like: BackboneSpec | None = None,
    window: Sequence[Size] | None = None, heads: Sequence[int] | None = None,
    pretrained_window: Sequence[Size | None] | None = None, img_size: Size | None = None,
    qk_scale: Sequence[float] | None = None,
) -> BackboneSpec:  # fmt: skip
    """The spec of weights in the names of `source`; `InferConfig` has the other arguments.

    Shifts, masks and small maps are those of the source's code, which has no options for them.
    like: a backbone that tells what the shapes do not, for stages with an equal mixer.
    Raises WeightsError with the option that tells what the shapes do not.
    """
    named: dict[str, Tensor] = {}
    computed: dict[str, Tensor] = {}  # tensors that our modules compute: index tables, masks
    for key, tensor in prepare(state, source, _grid(state, img_size)).items():
        if (row := find(source, key)) and isinstance(tensor, Tensor):
            name = row[1]
            (computed if name is None else named)[key if name is None else name] = tensor
    if source in FAMILIES:
        return variant_of(named, source, like, img_size, heads)
    stages: dict[int, int] = {}
    for name in named:
        if match := re.match(r"stages\.(\d{1,4})\.blocks\.(\d{1,4})\.", name):
            i = int(match[1])
            stages[i] = max(stages.get(i, 0), int(match[2]) + 1)
    count = len(stages)
    if sorted(stages) != list(range(count)) or not 2 <= count <= MOST_STAGES:
        numbers = ", ".join(str(i + 1) for i in sorted(stages)) or "none"
        raise WeightsError(f"blocks of stages {numbers}; a backbone has 2 to {MOST_STAGES}")
    if sum(stages.values()) > len(named):
        raise WeightsError("its blocks are numbered with gaps; no backbone has such names")
    shape = shapes(named)
    facts = _Facts(named, computed, shape, source, count, like)
    facts.window = _per_stage(window, count, "window")
    facts.heads = _per_stage(heads, count, "heads")
    facts.pretrained = _per_stage(pretrained_window, count, "pretrained-window")
    facts.qk_scale = _per_stage(qk_scale, count, "qk-scale")
    kernel = shape("stem.conv.weight")
    v2 = "stages.0.blocks.0.mixer.branch.logit_scale" in named
    fields: dict[str, Any] = {
        "name": f"from {source}",
        "stages": [
            {
                "dim": shape(f"stages.{i}.blocks.0.norm1.weight")[0], "depth": stages[i],
                "mlp_ratio": shape(f"stages.{i}.blocks.0.mlp.fc1.weight")[0]
                / shape(f"stages.{i}.blocks.0.norm1.weight")[0],
                "heads": facts.heads_of(i), "mixers": [facts.mixer_of(i)],
            }
            for i in range(count)
        ],
        "in_channels": kernel[1], "patch_norm": "stem.norm.weight" in named,
        "patch_size": (kernel[-1] + 1) // 2 if source == "cswin" else kernel[-1],
        "num_classes": shape("head.weight")[0] if "head.weight" in named else 0,
        "position": "absolute" if "stem.position" in named else "none",
        "final_norm": "norm.weight" in named, "out_norms": "out_norms.0.weight" in named,
        "small_maps": small_maps(source, facts.windows),
    }  # fmt: skip
    if fields["out_norms"]:  # dense backbones pad, and lack the rule for a covered map
        fields["small_maps"] = "pad"
    if source == "cswin":
        fields |= {"stem": "overlap", "downsample": "conv_norm"}
    elif v2:
        fields |= {"norm": "res_post", "downsample": "merge_post"}
    fields["img_size"] = img_size or facts.img_size(fields["patch_size"])
    try:
        return from_dict(fields)
    except SpecError as error:
        raise WeightsError(str(error)) from None


def _grid(state: Mapping[str, Any], img_size: Size | None) -> Size | None:
    """(h, w) of the map of a stated image size, where the stem is one of patches."""
    kernel = state.get("patch_embed.proj.weight")
    if img_size is None or not isinstance(kernel, Tensor) or kernel.ndim != 4:
        return None
    h, w = (-(-side // patch) for side, patch in zip(img_size, kernel.shape[2:], strict=True))
    return h, w


def _per_stage(values: Sequence[Any] | None, count: int, option: str) -> list[Any] | None:
    if values is None:
        return None
    if len(values) not in (1, count):
        raise WeightsError(f"--{option}: {len(values)} values; give one, or one of each {count}")
    return list(values) * (count if len(values) == 1 else 1)


def _unknown(what: str, option: str) -> WeightsError:
    return WeightsError(f"the weights do not tell {what}; give {option} (or --spec NOTATION)")


class _Facts:
    """Heads and mixers of stages, from the tensors of their first blocks."""

    window: list[Size] | None = None
    heads: list[int] | None = None
    pretrained: list[Size | None] | None = None
    qk_scale: list[float] | None = None

    def __init__(self, named, computed, shape, source: str, count: int, like) -> None:
        self.named, self.computed, self.shape = named, computed, shape
        self.source, self.count = source, count
        self.like = like if like is not None and len(like.stages) == count else None
        self.windows: list[Size] = []  # those found so far

    def _as_like(self, i: int, field: str) -> Any:
        """A field of the first mixer in stage i of `like`, None without it."""
        return getattr(self.like.stages[i].mixers[0], field, None) if self.like else None

    def _window(self, i: int) -> Size:
        self.windows.append(found := self._stated_window(i))
        return found

    def _stated_window(self, i: int) -> Size:
        """Window of stage i: as stated, or from the square bias table, or V2's coordinates."""
        table = f"stages.{i}.blocks.0.mixer.branch.bias.table"
        if self.window is not None:
            return self.window[i]
        if table in self.named:
            try:
                return square(self.shape(table)[0], "table")
            except ValueError as error:
                raise WeightsError(f"{table} {error}") from None
        coords = self._computed(i, 0, "relative_coords_table")
        if coords is not None and coords.ndim == 4:
            return (coords.shape[1] + 1) // 2, (coords.shape[2] + 1) // 2
        if self.like:  # a mixer without a window differs from this one, whatever the window
            return self._as_like(i, "size") or (1, 1)
        raise _unknown(f"the window of stage {i + 1}", "--source-window, such as 8 or 1,2,7,7")

    def _computed(self, i: int, block: int, last: str) -> Tensor | None:
        """The dropped tensor of a block whose name ends in `last`, None if there is none.

        torchvision's stage i is features.{2i + 1}; others have layers.i or stages.i.
        """
        block_of = f"{i}.blocks.{block}.", f"{i}.blocks.{block}.", f"{2 * i + 1}.{block}."
        for start in map("".join, zip(("layers.", "stages.", "features."), block_of, strict=True)):
            for key in (f"{start}attn.{last}", f"{start}attn.w_msa.{last}", f"{start}{last}"):
                if key in self.computed:
                    return self.computed[key]
        return None

    def heads_of(self, i: int) -> int:
        block = f"stages.{i}.blocks.0.mixer."
        if self.heads is not None:
            return self.heads[i]
        if block + "branch.bias.table" in self.named:
            return self.shape(block + "branch.bias.table")[-1]
        if block + "branch.logit_scale" in self.named:
            return self.shape(block + "branch.logit_scale")[0]
        if self.source == "swinmlp":  # (heads * l, l, 1)
            rows, length = (*self.shape(block + "weight"), 0)[:2]
            return rows // max(length, 1)
        if self.like:
            return self.like.stages[i].heads
        raise _unknown(f"the heads of stage {i + 1}", "--heads, such as 3,6,12,24")

    def mixer_of(self, i: int) -> str:
        block = f"stages.{i}.blocks.0.mixer."
        if self.source == "cswin":
            if block + "branches.1.lepe.conv.weight" not in self.named:
                return "full:position=lepe" + self._options(block, i)
            return f"cross:size={_text(self._window(i))}" + self._options(block, i)
        if self.source == "swinmlp":
            if self.window is not None:
                size = self.window[i]
            else:
                size = self._square(self.shape(block + "weight")[1], i)
            self.windows.append(size)
            return f"token_mlp:size={_text(size)}"
        text = _text(self._window(i))
        if block + "branch.logit_scale" not in self.named:
            return f"window:size={text}" + self._options(block, i)
        pretrained = self._pretrained(i)
        pretrained_option = f",pretrained_window={_text(pretrained)}" if pretrained else ""
        return f"cosine:size={text},mask_value=-100{pretrained_option}" + self._bias(block)

    def _options(self, block: str, i: int) -> str:
        scale = self.qk_scale[i] if self.qk_scale else self._as_like(i, "qk_scale")
        return self._bias(block) + ("" if scale is None else f",qk_scale={scale}")

    def _square(self, length: int, i: int) -> Size:
        side = math.isqrt(length)
        if side * side != length:
            raise _unknown(f"the window of stage {i + 1}", "--source-window")
        return side, side

    def _bias(self, block: str) -> str:
        has = {block + "qkv.bias", block + "q_bias"} & set(self.named)
        return "" if has else ",qkv_bias=false"

    def _pretrained(self, i: int) -> Size | None:
        """The window at whose edge V2's coordinates are 1, from the largest coordinates."""
        if self.pretrained is not None:
            return self.pretrained[i]
        coords = self._computed(i, 0, "relative_coords_table")
        if coords is None or coords.ndim != 4 or coords.shape[-1] != 2:
            if self.like:
                return self._as_like(i, "pretrained_window")
            option = "--pretrained-window, such as 12,12,12,6 (0: the window itself)"
            raise _unknown(f"the pretrained window of stage {i + 1}", option)
        window, sides = self._window(i), []
        for axis, side in enumerate(window):
            edge = float(coords[..., axis].max())
            steps = (2 ** (3 * edge) - 1) / 8  # the inverse of log2(8 x + 1) / log2(8)
            if not (math.isfinite(steps) and steps > 0):
                return None  # windows of one token have no steps
            sides.append(round((side - 1) / steps) + 1)
        return None if tuple(sides) == tuple(window) else (sides[0], sides[1])

    def img_size(self, patch: int) -> Size:
        """Image size (height, width), from the number of windows in a shifted block's mask."""
        for i in range(self.count):
            mask = self._computed(i, 1, "attn_mask")
            if mask is None or mask.ndim != 3:
                continue
            window, rows = self._window(i), math.isqrt(len(mask))
            if rows * rows == len(mask) and window[0] == window[1]:
                side = rows * window[0] * patch * 2**i
                return side, side
        if self.like:
            return self.like.img_size
        raise _unknown("the image size", "--source-img-size, such as 224")


def _text(size: Size) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
