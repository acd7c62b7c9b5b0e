"""The model of a notation, with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backbones.model.backbone import HierarchicalBackbone
from backbones.specs.construct import edit
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from backbones.weights import load


def create(
    what: str | Mapping[str, Any] | BackboneSpec, *, weights: Any = None, **fields: Any
) -> HierarchicalBackbone:
    """Builds the model of a notation, a dict or a spec, in training mode on torch's default device.

    Args:
        what: ``swin_t/3=pale:size=7``, a variant, an alias, a .toml file, a dict, or a spec.
        weights: a state dict, a file or a hub id, as `weights.load` takes it; all of its tensors
            must fit.  None: the authors' random initialisation.
        fields: fields of `BackboneSpec` that replace those of the notation.

    Returns:
        The model: images (b, in_channels, H, W) of any H and W to logits (b, num_classes).

    Raises:
        SpecError: the notation or a field cannot be built.
        WeightsError: the weights cannot be loaded; it is a SpecError.

    Example:
        >>> import backbones, torch
        >>> model = backbones.create("swin_t/stages=2", num_classes=10)
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    spec = parse(what)
    if fields:
        spec = edit(spec, spec.name, **fields)
    model = HierarchicalBackbone(spec)
    if weights is not None:
        load(model, weights)
    return model
