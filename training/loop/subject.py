"""The model that a run trains, built for its data."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import backbones
from backbones.specs import variants
from training.data.splits import Data
from transom.errors import SpecError, one_line

Size = tuple[int, int]


def build(name: str, data: Data, size: Size, drop_path: float | None, seed: int) -> nn.Module:
    """Builds a backbone with the data's channels and classes, for the image size.

    Args:
        name: our notation, ``timm:NAME``, ``torchvision:NAME`` or ``my_module:Class``, which is
            called with ``num_classes`` and ``in_chans``.
        data: gives channels and classes.
        size: (height, width) of the images in pixels.
        drop_path: rate of stochastic depth; None: as published or stated.
        seed: of the constructor's random weights.

    Raises:
        SpecError: the model cannot be built so.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if is_foreign(name):
            return _foreign(name, data, size, drop_path)
        return backbones.create(spec_of(name, data, size, drop_path))


def check(name: str, data: Data, size: Size, drop_path: float | None) -> None:
    """Raises SpecError for a backbone that cannot be built or cannot take the data's images."""
    if not is_foreign(name):
        spec_of(name, data, size, drop_path).resolve()
        return
    model = build(name, data, size, drop_path, seed=0).eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, data.channels, *size))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SpecError(f"{name}: its forward fails: {one_line(reason)}") from None
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (1, data.classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise SpecError(f"{name}: gives {found}, expected logits (1, {data.classes})")


def is_foreign(name: str) -> bool:
    return "=" not in name and "/" not in name and ":" in name


def spec_of(
    name: str, data: Data, size: Size, drop_path: float | None
) -> backbones.BackboneSpec:
    """The spec of a notation of ours, for the data."""
    spec = backbones.parse(name)
    base = name.partition("/")[0]
    if drop_path is None and "drop_path" not in name and variants.known(base):
        drop_path = variants.get(base).drop_path
    rate = spec.drop_path if drop_path is None else drop_path
    return replace(
        spec, img_size=size, in_channels=data.channels, num_classes=data.classes, drop_path=rate
    )


def _foreign(name: str, data: Data, size: Size, drop_path: float | None) -> nn.Module:
    source, _, rest = name.partition(":")
    fields: dict[str, Any] = {"num_classes": data.classes, "in_chans": data.channels}
    rate: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
    if source == "timm":
        import timm

        attempts = [{**fields, "img_size": size, **rate}, {**fields, **rate}, fields]
        make = lambda **kwargs: timm.create_model(rest, pretrained=False, **kwargs)  # noqa: E731
    elif source == "torchvision":
        from torchvision import models

        if data.channels != 3:
            raise SpecError(f"{name}: torchvision's models take 3 channels, not {data.channels}")
        rate = {} if drop_path is None else {"stochastic_depth_prob": drop_path}
        attempts = [{"num_classes": data.classes, **rate}, {"num_classes": data.classes}]
        make = lambda **kwargs: models.get_model(rest, weights=None, **kwargs)  # noqa: E731
    else:
        attempts = [fields]
        make = getattr(importlib.import_module(source), rest)
    error: Exception | None = None
    for kwargs in attempts:
        try:
            return make(**kwargs)
        except TypeError as found:  # a model that does not know one of the fields
            error = found
        except (RuntimeError, ValueError, AssertionError) as found:
            raise SpecError(f"{name}: {one_line(str(found))}") from None
    raise SpecError(f"{name}: cannot be built with {', '.join(attempts[-1])}: {error}")
