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
class Subject:
    """A model that can be made for a size.  img_size: its own, where none is asked for."""

    name: str
    make: Callable[[tuple[int, int]], nn.Module]
    img_size: tuple[int, int] = (224, 224)
    foreign: bool = True


def find(name: str) -> Subject:
    """The model behind a name.  Raises SpecError; ours is looked up without importing torch."""
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

    return Subject(name, make, spec.img_size, foreign=False)


def _timm(name: str, model: str) -> Subject:
    import timm

    if not timm.is_model(model):
        raise SpecError(f"{name}: timm has no model {model!r}{_few(model, timm.list_models())}")
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

    return Subject(name, make, side)


def _torchvision(name: str, model: str) -> Subject:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision import models

    if model not in (known := models.list_models()):
        raise SpecError(f"{name}: torchvision has no model {model!r}{_few(model, known)}")
    weights = next(iter(models.get_model_weights(model)), None)
    crop = weights.transforms().crop_size if weights is not None else [224]
    side = (crop[0], crop[-1])
    return Subject(name, lambda img_size: models.get_model(model, weights=None), side)


def _module(name: str, module: str, attribute: str) -> Subject:
    from torch import nn

    made = getattr(importlib.import_module(module), attribute, None)
    if not callable(made):
        public = [key for key in dir(importlib.import_module(module)) if not key.startswith("_")]
        raise SpecError(f"{name}: {module} has no {attribute!r}{_few(attribute, public)}")

    def make(img_size: tuple[int, int]) -> nn.Module:
        try:
            model = made()
        except TypeError as error:
            needs = ", ".join(inspect.signature(made).parameters)
            raise SpecError(f"{name}: {attribute}({needs}) is called bare: {error}") from None
        if not isinstance(model, nn.Module):
            raise SpecError(f"{name}: {attribute}() made a {type(model).__name__}, not a Module")
        return model

    return Subject(name, make)


def _few(word: str, known: list[str]) -> str:
    """The nearest of many names; a thousand would not be a line."""
    import difflib

    return nearest(word, difflib.get_close_matches(word, known, n=5, cutoff=0.5))
