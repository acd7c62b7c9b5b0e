"""Resizes weights for another window, image size or number of channels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.configs.config import MixerConfig
from attention.configs.windows import ShuffleConfig, WindowConfig
from backbones.names.key_rules import METHODS
from backbones.specs.spec import BackboneSpec
from transom.errors import SpecError, nearest

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Differences between weights and model that loading resolves; none by default.

    Sources: load_pretrained in utils.py of microsoft/Swin-Transformer and main.py of
    facebookresearch/deit (bicubic, also of absolute positions); timm/layers/pos_embed_rel.py,
    resize_rel_pos_bias_table, and timm/layers/pos_embed.py, resample_abs_pos_embed (timm);
    timm/models/_manipulate.py, adapt_input_conv (new_inputs).

    Args:
        resize: bicubic or timm (steps in geometric progression) for relative bias tables, and for
            absolute positions (bicubic with antialiasing); those of stages are resized bilinear.
        windows: (height, width) in tokens of the windows that the tables were trained for, per
            stage; needed where they are not square.
        grid: (height, width) in tokens of the absolute positions, those of the first stage where
            stages have their own; needed where it is not square, and where the model's is another
            of as many.
        new_head: the classifier stays as the model has it.
        new_inputs: the stem's kernel is summed over its channels for one channel, repeated and
            scaled for others, as timm adapts it.

    Raises:
        SpecError: resize is neither bicubic nor timm.

    Example:
        >>> import backbones
        >>> from backbones import weights
        >>> small = backbones.create("swin_t/stages=2/1=window:size=4/2=window:size=4")
        >>> report = weights.load("swin_t/stages=2", small, how=weights.Adapt(resize="bicubic"))[1]
        >>> sum(row["status"] == "resized" for row in report)
        4
    """

    resize: str | None = None
    windows: Sequence[Size] | None = None
    grid: Size | None = None
    new_head: bool = False
    new_inputs: bool = False

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize not in METHODS:
            raise SpecError(f"resize={self.resize!r}{nearest(str(self.resize), METHODS)}")


def adapt(tensor: Tensor, name: str, wanted: Tensor, model: nn.Module, how: Adapt) -> Tensor | None:
    """The tensor resized to the shape of `wanted`, or None where `how` does not allow it."""
    if name.endswith("bias.table") and how.resize and tensor.ndim == 2:
        stage, block = (int(part) for part in name.split(".")[1:4:2])
        spec = cast("BackboneSpec", model.spec)
        new = extent_of(spec.stages[stage].blocks()[block][0])
        old = how.windows[stage] if how.windows is not None else square(len(tensor), "table")
        if tensor.shape[1] != wanted.shape[1]:
            return None
        return table(tensor, old, new, how.resize)
    if is_absolute(name) and how.resize:
        if tensor.ndim == 3:  # (1, tokens, c), which the rule could not unfold
            grid = _grid_of(name, how.grid) if how.grid else _side(tensor.shape[1])
            if math.prod(grid) != tensor.shape[1]:
                return None
            tensor = tensor.transpose(1, 2).unflatten(2, grid)
        mode = how.resize if name == "stem.position" else "bilinear"
        return positions(tensor, (wanted.shape[2], wanted.shape[3]), mode)
    reads_image = name == "stem.conv.weight" or name.startswith("stem.larger.")
    if reads_image and how.new_inputs and tensor.ndim == 4:
        return inputs(tensor, wanted.shape[1])
    return None


def is_absolute(name: str) -> bool:
    """True for the absolute positions of a map, of the stem or of a stage."""
    return name.endswith(".position") and ".beside." not in name


HINTS = (  # (text, fields of Adapt), in the order in which they are tried
    (": {what} is resized by how=Adapt(resize='bicubic')", {"resize": "bicubic"}),
    (": other channels are how=Adapt(new_inputs=True), --in-channels", {"new_inputs": True}),
)


def hint(tensor: Tensor, name: str, wanted: Tensor, model: nn.Module, how: Adapt) -> str:
    """The end of an error: the option that allows this shape, which has been tried."""
    if name.startswith("head."):
        return ": another number of classes is how=Adapt(new_head=True), --num-classes"
    what = "another image size" if is_absolute(name) else "another window"
    for text, fields in HINTS:
        with contextlib.suppress(ValueError):  # of a window that is not square, or a SpecError
            found = adapt(tensor, name, wanted, model, replace(how, **fields))
            if found is not None and found.shape == wanted.shape:
                return text.format(what=what)
    return ""


def extent_of(mixer: MixerConfig) -> Size:
    """The (height, width) of a mixer's windows."""
    return cast("Size", mixer.size)  # type: ignore[attr-defined]


def of_another_grid(name: str, wanted: Tensor, how: Adapt) -> bool:
    """True for absolute positions of another grid than the model's, be they as many."""
    if how.grid is None or not is_absolute(name):
        return False
    return _grid_of(name, how.grid) != tuple(wanted.shape[2:])


def _grid_of(name: str, first: Size) -> Size:
    """(h, w) of the map of some positions, of whose backbone `first` is that of the first stage."""
    stage = 0 if name == "stem.position" else int(name.split(".")[1])
    return -(-first[0] // 2**stage), -(-first[1] // 2**stage)


def _side(count: int) -> Size:
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"has {count} positions, which is no square; state the source's grid")
    return side, side


def square(rows: int, what: str) -> Size:
    """The square window (w, w) of a table with (2 w - 1)^2 rows.

    Raises ValueError for another number of rows.
    """
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise ValueError(f"has a {what} of {rows} rows, no square window; state --source-window")
    return (side + 1) // 2, (side + 1) // 2


def table(tensor: Tensor, old: Size, new: Size, method: str = "bicubic") -> Tensor:
    """Resizes a relative bias table ((2 gh - 1) (2 gw - 1), heads) from `old` to `new` windows.

    old, new: (gh, gw) in tokens.  method: bicubic as in load_pretrained in utils.py of
    microsoft/Swin-Transformer, or timm as in its resize_rel_pos_bias_table.  Equal windows return
    the table unchanged.  Raises ValueError if the table is not that of `old` windows.
    """
    h, w = (2 * side - 1 for side in old)
    if len(tensor) != h * w:
        raise ValueError(f"has {len(tensor)} rows, not those of windows {old[0]}x{old[1]}")
    if old == new:
        return tensor
    if method == "timm":
        from timm.layers import resize_rel_pos_bias_table

        shape = ((2 * new[0] - 1) * (2 * new[1] - 1), tensor.shape[1])
        return resize_rel_pos_bias_table(tensor, new, shape, old)
    picture = tensor.T.reshape(1, -1, h, w)  # (1, heads, 2 gh - 1, 2 gw - 1)
    side = tuple(2 * s - 1 for s in new)
    wide = torch.promote_types(tensor.dtype, torch.float32)  # some CPUs have no half kernel
    out = F.interpolate(picture.to(wide), side, mode="bicubic", align_corners=False)
    return out.to(tensor.dtype).flatten(2)[0].T.contiguous()


def positions(tensor: Tensor, grid: Size, mode: str = "bicubic") -> Tensor:
    """Absolute positions (1, c, h, w) resized to another grid.

    mode: bicubic as in Swin's and DeiT's code, timm as in its resample_abs_pos_embed (bicubic with
    antialiasing), or bilinear as in PVT's, for those of every stage.
    """
    if tensor.shape[2:] == grid:
        return tensor
    wide = torch.promote_types(tensor.dtype, torch.float32)
    smooth = mode == "timm"
    out = F.interpolate(
        tensor.to(wide), grid, mode="bicubic" if smooth else mode, align_corners=False,
        antialias=smooth,
    )  # fmt: skip
    return out.to(tensor.dtype)


def inputs(tensor: Tensor, channels: int) -> Tensor:
    """A kernel (dim, c, k, k) for another number of input channels.

    One channel gets the sum over all, so that grey images give equal maps; more channels repeat
    the kernel, scaled so that equal channels give equal maps.
    """
    old = tensor.shape[1]
    if channels == 1:
        return tensor.sum(1, keepdim=True)
    repeated = tensor.repeat(1, -(-channels // old), 1, 1)[:, :channels]
    return repeated * (old / channels)


def retarget(
    spec: BackboneSpec, *, img_size: Size | None = None, window: Size | None = None,
    num_classes: int | None = None, in_channels: int | None = None, rule: str = "shrink_both",
) -> BackboneSpec:  # fmt: skip
    """The spec of a backbone to be fine-tuned from `spec`'s weights.

    With a new window, windows larger than their map shrink by `rule`, and log-CPB keeps the
    coordinates of its training: pretrained_window becomes the old, shrunken window where none is
    stated, as in the authors' fine-tuning configs (12 12 12 6).
    Raises SpecError where a mixer has no window.
    """
    stages = list(spec.stages)
    if window is not None:
        trained = spec.resolve().stages
        for i, (stage, old) in enumerate(zip(stages, trained, strict=True)):
            mixers = [
                _rewindow(mixer, before, window, spec.name)
                for mixer, before in zip(stage.mixers, old.mixers, strict=True)
            ]
            stages[i] = replace(stage, mixers=tuple(mixers))
        spec = replace(spec, stages=tuple(stages), small_maps=rule)
    changes = {"img_size": img_size, "num_classes": num_classes, "in_channels": in_channels}
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(spec, **given)  # type: ignore[arg-type]


def _rewindow(mixer: MixerConfig, trained: MixerConfig, window: Size, name: str) -> MixerConfig:
    kinds = (WindowConfig, ShuffleConfig)
    if not isinstance(mixer, kinds) or not isinstance(trained, kinds):
        raise SpecError(f"{name}: {mixer} has no window whose weights can be resized")
    fields: dict[str, object] = {"size": window}
    if mixer.position == "log_cpb" and mixer.pretrained_window is None:
        fields["pretrained_window"] = trained.size
    return replace(mixer, **fields)  # type: ignore[arg-type]
