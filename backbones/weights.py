"""Loading weights: everything is checked before anything is copied.

    load(model, "swin.safetensors")              # whose names they are is read from the keys
    load("swin_t", "hf:owner/name").model        # a model made for them
    load(None, "file.pth", window=(7, 7)).model  # the spec read from the shapes
    save(model, "own.safetensors")               # with its spec, and a SHA-256 beside it
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from attention.options import nearest, one_line
from attention.table import Row
from backbones import hub, reading, storage
from backbones.detect import restore, source_of, under
from backbones.inference import infer, same_backbone
from backbones.model import HierarchicalBackbone
from backbones.notation import parse
from backbones.planning import convert, plan, row
from backbones.reading import read
from backbones.resize import Adapt
from backbones.rules import TARGETS, find_back
from backbones.spec import BackboneSpec, from_dict
from backbones.storage import WeightsError

__all__ = [
    "Adapt", "Loaded", "WeightsError", "convert", "export", "from_pretrained", "load", "plan",
    "read", "save", "save_pretrained", "spec_of",
]  # fmt: skip

SPEC = "transom.spec"  # where the header of our files keeps the spec, as JSON
FILE, CONFIG = "model.safetensors", "config.json"


class Loaded(NamedTuple):
    """model: the one given, or made.  report: a row per tensor, for attention.table."""

    model: nn.Module
    report: list[Row]


def load(
    model: nn.Module | str | Mapping[str, Any] | BackboneSpec | None,
    weights: Mapping[str, Tensor] | str | Path,
    source: str | None = None,
    *,
    how: Adapt | None = None,
    entry: str | None = None,
    prefix: str = "",
    **unknown: Any,
) -> Loaded:
    """Copies `weights` into the model, whole or not at all.

    model: one that exists, what `backbones.create` takes, or None for the spec of the weights.
    weights: a state dict, a .safetensors or .pth file, or a hub id ``hf:owner/name``.
    source: whose names they have, a key of rules.SOURCES; by default read from the keys.
    how: windows, image sizes, classes and channels that may differ.  entry: as in `read`.
    prefix: where in a detector's or segmenter's weights the backbone stands, ``backbone.``; what
    is outside is dropped, and reported so.
    unknown: what the shapes cannot tell when model is None, as `detect.infer` takes it.
    Raises WeightsError, and SpecError for a model that cannot be built.
    """
    path: Path | None = None
    if isinstance(weights, (str, Path)):
        path = hub.fetch(weights) if str(weights)[:3] == "hf:" else Path(weights)  # type: ignore[arg-type]
        weights = read(path, entry)
    state, others = weights, dict[str, Any]()
    spec = None if model is None or isinstance(model, nn.Module) else parse(model)
    with storage.about(path):
        if prefix:
            state, others = under(state, prefix)
        source = source or source_of(state)
        if isinstance(model, nn.Module):
            found, rows = plan(model, state, source, how)
        else:
            spec = spec or spec_of(state, source, path, **unknown)
            with torch.device("meta"):  # nothing is allocated for what may not fit
                empty = HierarchicalBackbone(spec)
            found, rows = plan(empty, state, source, how)
            model = HierarchicalBackbone(spec)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    return Loaded(model, rows + [row("dropped", None, key, v) for key, v in others.items()])


def spec_of(
    state: Mapping[str, Tensor], source: str, path: Path | None = None, **unknown: Any
) -> BackboneSpec:
    """The spec of weights: from the header of our own file, else from the shapes."""
    if source != "transom":
        return infer(state, source, **unknown)
    text = reading.metadata(path).get(SPEC) if path is not None else None
    if text is None:
        raise WeightsError("weights in our own names without their spec; give it by --spec")
    return _from_json(text, "the spec in its header", len(state))


def _from_json(text: str, place: str, tensors: int) -> BackboneSpec:
    try:
        spec = from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:  # SpecError is a ValueError, too
        raise WeightsError(f"{place} cannot be read: {one_line(str(error))}") from None
    if sum(stage.depth for stage in spec.stages) > tensors:  # thousands of blocks, to be slow
        raise WeightsError(f"{place} has more blocks than the file has tensors")
    return spec


def save(model: HierarchicalBackbone, path: str | Path) -> Path:
    """Writes a backbone and its spec to a .safetensors file, with a manifest beside it.

    The old file or the new one loads at every moment.  Raises WeightsError.
    """
    texts = {"format": "pt", SPEC: json.dumps(model.spec.to_dict())}
    return storage.write(model.state_dict(), path, texts)


def save_pretrained(model: HierarchicalBackbone, folder: str | Path) -> Path:
    """Writes model.safetensors and config.json (the spec) into a folder, which may be new."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{storage.shown(folder)}: {error.strerror or error}") from None
    save(model, folder / FILE)
    storage.write_text(folder / CONFIG, json.dumps({"spec": model.spec.to_dict()}, indent=1))
    return folder


def from_pretrained(folder: str | Path) -> HierarchicalBackbone:
    """The backbone of a folder or ``hf:owner/name`` that `save_pretrained` filled.

    The spec in the weights' own header counts, as it was written with them; config.json that
    says otherwise is warned about.  Raises WeightsError.
    """
    if str(folder)[:3] == "hf:":
        return cast("HierarchicalBackbone", load(None, str(folder), "transom").model)
    folder = Path(folder)
    loaded = load(None, folder / FILE, "transom")
    config = folder / CONFIG
    text = storage.read_text(config)
    model = cast("HierarchicalBackbone", loaded.model)
    try:
        stated = from_dict(json.loads(text)["spec"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        place = storage.shown(config)
        raise WeightsError(f"{place}: cannot be read: {one_line(str(error))}") from None
    if stated.resolve() != model.spec.resolve():
        warnings.warn(f"{config} is not the spec of {FILE}; that of {FILE} is used", stacklevel=2)
    return model


def export(model: HierarchicalBackbone, target: str) -> dict[str, Tensor]:
    """The state dict of a backbone in the names and layout of a source's own files.

    target: a key of rules.TARGETS.  What their model computes itself (index tables, masks) is
    left to it.  Raises WeightsError for what has no name there, or would be read as another
    backbone.
    """
    if target not in TARGETS:
        raise WeightsError(f"no names of {target!r} to write{nearest(target, TARGETS)}")
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        match = find_back(target, name)
        if match is None:
            raise WeightsError(f"{name}: {target} has nothing of the kind")
        rule, key = match
        out[key] = tensor if rule.change is None else rule.change.write(tensor)
    out = restore(out, target)
    same_backbone(model.spec, out, target)
    return {key: tensor.contiguous() for key, tensor in out.items()}
