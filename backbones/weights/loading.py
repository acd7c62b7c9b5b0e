"""Loading weights: everything is checked before anything is copied.

    load(model, "swin.safetensors")                # the source is read from the keys
    load("swin_t", "hf:owner/name").model          # a new model
    load(None, "file.pth", window=[(7, 7)]).model  # the spec is inferred from the shapes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack, cast

import torch
from torch import nn

from backbones.files import storage
from backbones.files.detect_source import source_of
from backbones.files.storage import WeightsError
from backbones.model.backbone import HierarchicalBackbone
from backbones.names.key_rules import PARTIAL
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from backbones.weights.infer_spec import InferConfig
from backbones.weights.match import check_source, plan
from backbones.weights.partial import replaced
from backbones.weights.resize import Adapt
from backbones.weights.source import SourceWeights, read_weights
from transom.errors import SpecError, nearest
from transom.table import Row


class Loaded(NamedTuple):
    """A model with its new weights, and a report of every tensor.

    Args:
        model: the model given to `load`, or the one built for the weights.
        report: a dict per tensor, which `transom.table` renders: status (loaded, resized, fresh or
            left out), tensor (our name), from (the name in the weights) and shape.

    Example:
        >>> import backbones
        >>> from backbones import weights
        >>> model, report = weights.load(None, backbones.create("swin_t/stages=2"))
        >>> report[0]["status"], report[0]["tensor"], report[0]["shape"]
        ('loaded', 'stem.conv.weight', '96x3x4x4')
    """

    model: nn.Module
    report: list[Row]


def load(
    model: nn.Module | str | Mapping[str, Any] | BackboneSpec | None,
    weights: Mapping[str, Any] | nn.Module | str | Path,
    source: str | None = None,
    *,
    how: Adapt | None = None,
    partial: str | None = None,
    entry: str | None = None,
    prefix: str = "",
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    **config: Unpack[InferConfig],
) -> Loaded:
    """Copies weights into a model after all of them have been checked.

    Args:
        model: an existing model, what `backbones.create` takes, or None for the spec of the
            weights.
        weights: a state dict or a checkpoint around it, a file, a hub id ``hf:owner/name``, or a
            model of timm, torchvision, transformers or ours.
        source: the library whose names the weights have, a key of `key_rules.SOURCES`; by default
            it is read from the keys.
        how: windows, image sizes, classes and channels that may differ; by default none may.
        partial: replaced takes everything outside what differs between the weights' spec and the
            model's; fitting takes whatever fits by name and shape.  The rest stays as the model
            has it.  By default nothing may be missing.
        entry: which of several state dicts in a checkpoint, ``ema.module``.
        prefix: which of several backbones in a state dict, ``encoder.``.
        drop: names of the weights that are left out; ``*`` stands for anything.
        rename: parts of names, old to new.
        config: what the shapes cannot tell when the spec is inferred from them, one value or one a
            stage: window and pretrained_window ((height, width) in tokens), heads, qk_scale;
            and img_size ((height, width) in pixels).

    Returns:
        The model, and a row per tensor: loaded, resized, fresh or left out.

    Raises:
        WeightsError: the weights cannot be read or do not fit; the model is unchanged.
        SpecError: the model cannot be built, or an option has no such value.

    Example:
        >>> import backbones
        >>> from backbones import weights
        >>> swin = backbones.create("swin_t/stages=2")
        >>> hybrid, report = weights.load("swin_t/stages=2/2=full", swin, partial="replaced")
        >>> sorted({row["status"] for row in report})
        ['fresh', 'left out', 'loaded']
    """
    if unknown := sorted(config.keys() - InferConfig.__annotations__.keys()):
        raise TypeError(f"load() got an unexpected keyword argument {unknown[0]!r}")
    if partial is not None and partial not in PARTIAL:
        raise SpecError(f"partial={partial!r}{nearest(str(partial), PARTIAL)}")
    if config and model is not None and partial != "replaced":
        names = ", ".join(config)
        raise SpecError(f"{names}: the backbone is given, so nothing is asked of shapes")
    if source is not None:
        check_source(source)
    source_weights = read_weights(weights, entry, prefix, drop, rename)
    with storage.about(source_weights.path):
        return load_read(model, source_weights, source, how=how, partial=partial, **config)


def load_read(
    model: nn.Module | str | Mapping[str, Any] | BackboneSpec | None, source_weights: SourceWeights,
    source: str | None = None, *, how: Adapt | None = None, partial: str | None = None,
    **config: Any,
) -> Loaded:  # fmt: skip
    """Copies weights that have been read into a model; `load` has the arguments."""
    source = source or source_of(source_weights.state)
    asked = None if model is None or isinstance(model, nn.Module) else parse(model)
    if model is None:
        asked = source_weights.spec(source, **config)
    if asked is not None:
        with torch.device("meta"):  # weights that do not fit cost no memory
            empty: nn.Module = HierarchicalBackbone(asked)
    else:
        empty = cast("nn.Module", model)
    fresh: tuple[str, ...] = ()
    if partial == "replaced":
        into = asked or getattr(model, "spec", None)
        if not isinstance(into, BackboneSpec):
            raise WeightsError("partial='replaced' is for our backbones; take 'fitting'")
        their_spec = source_weights.spec(source, **{"like": into, **config})
        fresh = replaced(into, their_spec, how or Adapt())
    tensors, rows = plan(
        empty, source_weights.state, source, how, fresh=fresh, fitting=partial == "fitting",
        beside=source_weights.beside,
    )  # fmt: skip
    filled = empty if asked is None else HierarchicalBackbone(asked)
    parameters = filled.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    return Loaded(filled, rows + source_weights.left_out)
