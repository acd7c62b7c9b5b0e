"""Recipes by name: the papers', ours for small images, and whatever a TOML file states."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from training.settings.recipe import Recipe
from transom.errors import SpecError, nearest, one_line, printable

_PRESETS: dict[str, dict[str, Any]] = {
    "micro": {
        "lr": 3e-3, "weight_decay": 0.05, "warmup": 0.1, "warmup_lr": 0.01, "clip_grad": 1.0,
        "init": "xavier", "drop_path": 0.0,
    },
    "swin": {
        "lr": 5e-4, "lr_batch": 512, "weight_decay": 0.05, "clip_grad": 5.0, "warmup": 20 / 300,
        "warmup_prefix": False, "warmup_lr": 1e-3, "min_lr": 1e-2, "smoothing": 0.1,
        "mixup": 0.8, "cutmix": 1.0,
        "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "reprob": 0.25,
        "hflip": 0.5, "crop": "resized", "crop_pct": 0.875,
    },
    "timm-a1": {
        "opt": "lamb", "lr": 5e-3, "lr_batch": 2048, "weight_decay": 0.01, "warmup": 5 / 600,
        "warmup_prefix": False, "warmup_lr": 2e-2, "min_lr": 2e-4, "loss": "bce",
        "bce_threshold": 0.2, "smoothing": 0.1,
        "mixup": 0.2, "cutmix": 1.0, "auto_augment": "rand-m7-mstd0.5-inc1", "hflip": 0.5,
        "crop": "resized", "crop_pct": 0.95, "drop_path": 0.05, "repeats": 3,
    },
    "simmim": {
        "objective": "simmim", "mask_patch": 32, "mask_ratio": 0.6, "lr": 2e-4, "lr_batch": 512,
        "weight_decay": 0.05, "clip_grad": 5.0, "warmup": 10 / 100, "warmup_prefix": False,
        "warmup_lr": 5e-3, "min_lr": 5e-2, "hflip": 0.5, "crop": "resized", "scale": 0.67,
        "drop_path": 0.0,
    },
    "micro-simmim": {
        "objective": "simmim", "mask_patch": 8, "mask_ratio": 0.6, "lr": 3e-3,
        "weight_decay": 0.05, "warmup": 0.1, "warmup_lr": 0.01, "clip_grad": 1.0,
        "init": "xavier", "drop_path": 0.0,
    },
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(_PRESETS)


def read(text: str) -> Recipe:
    """Reads a preset, a preset with changed fields, or a TOML file.

    Args:
        text: ``swin``, ``swin:lr=1e-3,mixup=0``, or the path of a ``.toml`` file whose ``base``
            names a preset and whose other keys are fields.

    Raises:
        SpecError: an unknown preset or field, or a value that is not allowed.
    """
    if text.endswith(".toml"):
        return _from_file(Path(text))
    name, _, rest = text.partition(":")
    fields: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key in fields:
            raise SpecError(f"--recipe {one_line(text)}: expected distinct FIELD=VALUE")
        fields[key] = value
    return _made(name, fields, text)


def _from_file(path: Path) -> Recipe:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(str(error))
        raise SpecError(f"--recipe {printable(path)}: cannot be read: {reason}") from None
    base = content.pop("base", "")
    return _made(str(base), {"name": path.stem, **content}, str(path))


def _made(name: str, fields: dict[str, Any], text: str) -> Recipe:
    if name and name not in _PRESETS:
        raise SpecError(f"--recipe {one_line(text)}: no recipe {one_line(name)!r}"
                        f"{nearest(name, _PRESETS)}")  # fmt: skip
    known = [field.name for field in dataclasses.fields(Recipe)]
    for key in fields:
        if key not in known:
            raise SpecError(f"--recipe {one_line(text)}: no field {one_line(key)!r}"
                            f"{nearest(key, known)}")  # fmt: skip
    return Recipe(**{"name": text if name else "custom", **_PRESETS.get(name, {}), **fields})
