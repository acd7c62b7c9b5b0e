"""Recipe of a training run: every hyperparameter but the budget, with the papers' as presets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from transom.errors import SpecError
from transom.fields import (
    choice,
    option,
    optional,
    read_count,
    read_fields,
    read_flag,
    read_number,
    read_text,
)


def _read_positive(value: Any) -> float:
    number = read_number(value)
    if number <= 0:
        raise ValueError("a number above 0")
    return number


def _read_rate(value: Any) -> float:
    number = read_number(value)
    if not 0 <= number <= 1:
        raise ValueError("a number from 0 to 1")
    return number


def _read_amount(value: Any) -> float:
    number = read_number(value)
    if number < 0:
        raise ValueError("a number from 0 up")
    return number


def _read_whole(value: Any) -> int:
    return 0 if value in (0, "0") and not isinstance(value, bool) else read_count(value)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of a run: immutable, hashable, validated on construction.

    The names are those of timm's train.py where it has one.  The schedule is a function of the
    fraction of the budget that is spent: linear warm-up, then half a cosine.

    Args:
        name: shown in tables.
        opt: an optimizer of timm, such as adamw or lamb.
        lr: learning rate at the end of the warm-up.
        lr_batch: global batch that `lr` is stated for; the rate scales with the batch, or with 0
            does not.
        beta2: decay of the second moment.
        weight_decay: of everything but norms, biases and positions.
        clip_grad: largest norm of the gradient of all parameters together; 0: no limit.
        warmup: fraction of the budget in which the rate grows from `warmup_lr`.
        warmup_prefix: the cosine begins after the warm-up; without it the warm-up cuts off the
            cosine's beginning, and the rate falls at its end to where the cosine is.
        warmup_lr: first rate, as a fraction of `lr`.
        min_lr: last rate, as a fraction of `lr`.
        loss: ce, cross entropy; bce, binary cross entropy of every class.
        smoothing: label smoothing.
        bce_threshold: mixed targets of bce above it count as 1; 0: they stay as mixed.
        mixup, cutmix: alpha of their beta distributions; 0: off.
        mixup_switch: probability of cutmix where both are on.
        auto_augment: a policy of timm such as rand-m9-mstd0.5-inc1; empty: none.
        color_jitter: its strength, where no policy takes its place.
        reprob: probability of random erasing.
        hflip: probability of a mirrored image.
        crop: none; pad, a window of an image that is padded by an eighth; resized, a window of
            random area and shape, resized to the image size.
        scale: least area of that window, as a fraction of the image.
        crop_pct: part of a test image's side that is kept.
        interpolation: of every resizing.
        drop_path: rate of stochastic depth; none: as published for the variant, or as the
            backbone states it.
        ema: decay of an average of the weights, which is evaluated in their place; 0: off.
        init: paper, as the backbone's paper does; xavier, linear layers by Glorot and Bengio
            (2010), which follows the width: at 16 channels the papers' 0.02 shrinks the signal
            until nothing is learnt.
        repeats: differently augmented copies of an image that follow each other in the order.
        objective: classify; simmim, the pixels of hidden patches, which needs no labels: the
            pooled features are then judged by a linear probe.
        mask_patch: side in pixels of the squares that simmim hides as a whole.
        mask_ratio: part of them that is hidden.
        probe_images: training images that the linear probe is fitted to; 0: all.

    Raises:
        SpecError: a field has a value that is not allowed.

    Source: ``swin``: config.py and build.py of the Swin authors, 300 epochs at batch 1024.
    ``timm-a1``: procedure A1 of Wightman et al., ResNet strikes back (2021), table 2, 600
    epochs at batch 2048.  ``simmim``: configuration of the SimMIM authors for Swin-B, 100 epochs
    at 192 pixels, arXiv 2111.09886, section 4.1.  ``micro`` and ``micro-simmim`` are ours.

    Example:
        >>> from training.settings import presets
        >>> presets.read("micro:lr=1e-3,hflip=0.5").lr
        0.001
    """

    name: str = option("custom", read_text, "shown in tables")
    opt: str = option("adamw", read_text, "an optimizer of timm")
    lr: float = option(1e-3, _read_positive, "learning rate")
    lr_batch: int = option(0, _read_whole, "batch that lr is stated for; 0: any")
    beta2: float = option(0.999, _read_rate, "decay of the second moment")
    weight_decay: float = option(0.05, _read_amount, "but norms, biases, positions")
    clip_grad: float = option(0.0, _read_amount, "largest norm of the gradient; 0: none")
    warmup: float = option(0.05, _read_rate, "fraction of the budget")
    warmup_prefix: bool = option(True, read_flag, "the cosine begins after the warm-up")
    warmup_lr: float = option(0.0, _read_rate, "first rate, in units of lr")
    min_lr: float = option(0.0, _read_rate, "last rate, in units of lr")
    loss: str = option("ce", choice("ce", "bce"), "cross entropy, or binary of every class")
    smoothing: float = option(0.0, _read_rate, "label smoothing")
    mixup: float = option(0.0, _read_amount, "alpha; 0: off")
    cutmix: float = option(0.0, _read_amount, "alpha; 0: off")
    mixup_switch: float = option(0.5, _read_rate, "probability of cutmix where both are on")
    auto_augment: str = option("", read_text, "a policy of timm")
    color_jitter: float = option(0.0, _read_amount, "strength; 0: off")
    reprob: float = option(0.0, _read_rate, "probability of random erasing")
    hflip: float = option(0.0, _read_rate, "probability of a mirrored image")
    crop: str = option("none", choice("none", "pad", "resized"), "window of a training image")
    scale: float = option(0.08, _read_positive, "least area of a resized window")
    crop_pct: float = option(1.0, _read_positive, "part of a test image's side that is kept")
    interpolation: str = option("bicubic", choice("bicubic", "bilinear"), "of resizing")
    drop_path: float | None = option(None, optional(_read_rate), "none: as published")
    ema: float = option(0.0, _read_rate, "decay of averaged weights; 0: off")
    init: str = option("paper", choice("paper", "xavier"), "xavier follows the width")
    repeats: int = option(1, read_count, "augmented copies of an image in a batch")
    bce_threshold: float = option(0.0, _read_rate, "mixed targets above it count as 1; 0: as mixed")
    objective: str = option("classify", choice("classify", "simmim"), "what is learnt")
    mask_patch: int = option(32, read_count, "pixels a side of what simmim hides as a whole")
    mask_ratio: float = option(0.6, _read_rate, "part that simmim hides")
    probe_images: int = option(10_000, _read_whole, "of the linear probe; 0: all")

    def __post_init__(self) -> None:
        read_fields(self, "a recipe")
        if self.objective == "simmim" and (self.mixup or self.cutmix):
            raise SpecError("a recipe of simmim mixes no images; give mixup=0,cutmix=0")

    def rate(self, batch: int) -> float:
        """Learning rate for a global batch."""
        return self.lr * batch / self.lr_batch if self.lr_batch else self.lr

    def schedule(self, fraction: float) -> float:
        """Learning rate after a fraction of the budget, in units of its largest."""
        if fraction < self.warmup:
            return self.warmup_lr + (1 - self.warmup_lr) * fraction / self.warmup
        if self.warmup_prefix:
            fraction = (fraction - self.warmup) / max(1 - self.warmup, 1e-12)
        return self.min_lr + (1 - self.min_lr) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
