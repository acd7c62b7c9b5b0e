"""Backbones by name: our notation, ``timm:NAME``, ``torchvision:NAME``, ``my_module:Class``."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import backbones
from transom.errors import SpecError, nearest

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelFactory:
    """Makes a model for an image size.

    make: maps (height, width) in pixels to the model.  img_size: (height, width) in pixels that the
    model is published for.  foreign: whether the model is another library's.
    """

    name: str
    make: Callable[[tuple[int, int]], nn.Module]
    img_size: tuple[int, int] = (224, 224)
    foreign: bool = True


def find(name: str) -> ModelFactory:
    """The factory of the model that a name stands for; a name of ours does not import torch.

    Args:
        name: a variant or notation of ours, ``timm:NAME``, ``torchvision:NAME`` or
            ``my_module:Class``.

    Raises:
        SpecError: for an unknown name, or a library that is not installed.
    """
    if "=" not in name and "/" not in name and ":" in name:
        source, _, rest = name.partition(":")
        try:
            if source == "timm":
                return _timm(name, rest)
            if source == "torchvision":
                return _torchvision(name, rest)
            return _module(name, source, rest)
        except ImportError as error:
            raise SpecError(f"{name}: {error}") from None
    spec = backbones.parse(name)

    def make(img_size: tuple[int, int]) -> nn.Module:
        import torch

        with torch.device("meta"):  # counting needs no weights
            return backbones.create(spec)

    return ModelFactory(name, make, spec.img_size, foreign=False)


def _timm(name: str, model: str) -> ModelFactory:
    import timm

    if not timm.is_model(model):
        raise SpecError(f"{name}: timm has no model {model!r}{_nearest(model, timm.list_models())}")
    config = timm.get_pretrained_cfg(model)
    side = config.input_size[1:] if config else (224, 224)

    def make(img_size: tuple[int, int]) -> nn.Module:
        entry = timm.model_entrypoint(model)
        if img_size == side:
            return entry(pretrained=False)
        try:
            return entry(pretrained=False, img_size=img_size)
        except TypeError:  # a model of any size has no such argument
            return entry(pretrained=False)

    return ModelFactory(name, make, side)


def _torchvision(name: str, model: str) -> ModelFactory:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision import models

    if model not in (known := models.list_models()):
        raise SpecError(f"{name}: torchvision has no model {model!r}{_nearest(model, known)}")
    weights = next(iter(models.get_model_weights(model)), None)
    crop = weights.transforms().crop_size if weights is not None else [224]
    side = (crop[0], crop[-1])
    return ModelFactory(name, lambda img_size: models.get_model(model, weights=None), side)


def _module(name: str, module: str, attribute: str) -> ModelFactory:
    from torch import nn

    constructor = getattr(importlib.import_module(module), attribute, None)
    if not callable(constructor):
        public = [key for key in dir(importlib.import_module(module)) if not key.startswith("_")]
        raise SpecError(f"{name}: {module} has no {attribute!r}{_nearest(attribute, public)}")

    def make(img_size: tuple[int, int]) -> nn.Module:
        try:
            model = constructor()
        except TypeError as error:
            needs = ", ".join(inspect.signature(constructor).parameters)
            raise SpecError(f"{name}: {attribute}({needs}) is called bare: {error}") from None
        if not isinstance(model, nn.Module):
            raise SpecError(f"{name}: {attribute}() made a {type(model).__name__}, not a Module")
        return model

    return ModelFactory(name, make)


def _nearest(word: str, known: list[str]) -> str:
    """`nearest` among the five closest of many names, so that the error stays one line."""
    import difflib

    return nearest(word, difflib.get_close_matches(word, known, n=5, cutoff=0.5))
