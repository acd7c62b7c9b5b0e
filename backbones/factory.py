"""A backbone from its notation, and weights into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backbones.model.backbone import HierarchicalBackbone
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec, edit
from backbones.weights import load


def create(
    what: str | Mapping[str, Any] | BackboneSpec, *, weights: Any = None, **fields: Any
) -> HierarchicalBackbone:
    """A backbone from a notation, a dict or a spec; `fields` replace fields of the spec.

    weights: a state dict, a file or a hub id as `weights.load` takes it, whole or not at all.
    Raises SpecError for what cannot be built, WeightsError for what cannot be loaded.
    """
    spec = parse(what)
    if fields:
        spec = edit(spec, spec.name, **fields)
    model = HierarchicalBackbone(spec)
    if weights is not None:
        load(model, weights)
    return model
