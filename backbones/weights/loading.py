"""Loading weights: everything is checked before anything is copied.

    load(model, "swin.safetensors")              # whose names they are is read from the keys
    load("swin_t", "hf:owner/name").model        # a model made for them
    load(None, "file.pth", window=(7, 7)).model  # the spec read from the shapes
    save(model, "own.safetensors")               # with its spec, and a SHA-256 beside it
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack, cast

import torch
from torch import Tensor, nn

from backbones.files import hub, reading, storage
from backbones.files.locate import locate
from backbones.files.reading import read
from backbones.files.storage import WeightsError
from backbones.model.backbone import HierarchicalBackbone
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec, from_dict
from backbones.weights.detect_source import bodies, body, restore, source_of
from backbones.weights.infer_spec import Told, infer, same_backbone
from backbones.weights.key_rules import PARTIAL, TARGETS, find_back
from backbones.weights.match import check_source, convert, plan, row
from backbones.weights.partial import dropped, renamed, replaced
from backbones.weights.resize import Adapt
from transom.errors import SpecError, nearest, one_line
from transom.table import Row

__all__ = [
    "Adapt", "Loaded", "WeightsError", "convert", "export", "from_pretrained", "load", "plan",
    "read", "read_weights", "save", "save_pretrained",
]  # fmt: skip

SPEC = "transom.spec"  # where the header of our files keeps the spec, as JSON
NO_SPEC = "weights in our own names without their spec"
FILE, CONFIG = "model.safetensors", "config.json"


class Loaded(NamedTuple):
    """model: the one given, or made.  report: a row per tensor, for transom.table."""

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
    **told: Unpack[Told],
) -> Loaded:
    """Copies `weights` into the model, whole or not at all.

    Args:
        model: one that exists, what `backbones.create` takes, or None for the spec of the weights.
        weights: a state dict or a checkpoint around it, a file, a hub id ``hf:owner/name``, or a
            model of timm, torchvision, transformers or ours.
        source: whose names they have, a key of rules.SOURCES; by default read from the keys.
        how: windows, image sizes, classes and channels that may differ.
        partial: replaced takes everything outside what differs between the weights' spec and the
            model's; fitting takes whatever fits by name and shape.  The rest stays as the model
            has it.  By default nothing may be missing.
        entry: which of several state dicts in a checkpoint, ``ema.module``.
        prefix: which of several backbones in a state dict, ``encoder.``.
        drop: names of the weights that are left out; ``*`` stands for anything.
        rename: parts of names, old to new.
        told: what the shapes cannot tell when the spec is read from them: window, heads,
            pretrained_window, img_size, qk_scale.

    Returns:
        The model, and a row per tensor: loaded, resized, fresh or left out.

    Raises:
        WeightsError: for what does not fit; the model is as it was.
        SpecError: for a model that cannot be built.

    Example:
        >>> import backbones
        >>> swin = backbones.create("swin_t/img_size=64")
        >>> hybrid, report = load("swin_t/img_size=64/4=full", swin, partial="replaced")
        >>> sorted({row["status"] for row in report})
        ['fresh', 'left out', 'loaded']
    """
    if unknown := sorted(told.keys() - Told.__annotations__.keys()):
        raise TypeError(f"load() got an unexpected keyword argument {unknown[0]!r}")
    if partial is not None and partial not in PARTIAL:
        raise SpecError(f"partial={partial!r}{nearest(str(partial), PARTIAL)}")
    if told and model is not None and partial != "replaced":
        raise SpecError(f"{', '.join(told)}: the backbone is given, so nothing is asked of shapes")
    if source is not None:
        check_source(source)
    given = read_weights(weights, entry, prefix, drop, rename)
    with storage.about(given.path):
        return load_given(model, given, source, how=how, partial=partial, **told)


def load_given(
    model: nn.Module | str | Mapping[str, Any] | BackboneSpec | None, given: Given,
    source: str | None = None, *, how: Adapt | None = None, partial: str | None = None, **told: Any,
) -> Loaded:  # fmt: skip
    """As `load`, of weights that have been read."""
    source = source or source_of(given.state)
    asked = None if model is None or isinstance(model, nn.Module) else parse(model)
    if model is None:
        asked = given.spec(source, **told)
    if asked is not None:
        with torch.device("meta"):  # nothing is allocated for what may not fit
            empty: nn.Module = HierarchicalBackbone(asked)
    else:
        empty = cast("nn.Module", model)
    fresh: tuple[str, ...] = ()
    if partial == "replaced":
        into = asked or getattr(model, "spec", None)
        if not isinstance(into, BackboneSpec):
            raise WeightsError("partial='replaced' is for our backbones; take 'fitting'")
        theirs = given.spec(source, **{"like": into, **told})
        fresh = replaced(into, theirs, how or Adapt())
    found, rows = plan(
        empty, given.state, source, how, fresh=fresh, fitting=partial == "fitting",
        beside=given.beside,
    )  # fmt: skip
    filled = empty if asked is None else HierarchicalBackbone(asked)
    own = filled.state_dict()
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    return Loaded(filled, rows + given.left_out)


class Given(NamedTuple):
    """Weights before anything is known of their model.

    state: tensors under the names of their source.  left_out: rows of everything else.  own: the
    spec that came with them.  stated: what a configuration beside them tells.  beside: kinds of
    what is no tensor, by name.
    """

    state: Mapping[str, Any]
    left_out: list[Row]
    path: Path | None
    own: BackboneSpec | None
    stated: Mapping[str, str]
    beside: Mapping[str, str]

    def spec(self, source: str, **told: Any) -> BackboneSpec:
        """The spec of the weights: the one that came with them, else from their shapes."""
        if self.own is not None:
            return self.own
        if source == "transom":
            text = reading.metadata(self.path).get(SPEC) if self.path is not None else None
            if text is None:
                if told.get("like") is not None:
                    raise WeightsError(NO_SPEC + "; take partial='fitting'")
                raise WeightsError(f"{NO_SPEC}; give it by --spec")
            return _from_json(text, "the spec in its header", len(self.state))
        for name, value in self.stated.items():
            if told.get(name) is None:
                option = name.replace("_", "-")
                raise WeightsError(
                    f"a configuration beside the weights has {name} {value}, which no shape tells; "
                    f"give --{option} {value} ({name}=[{value}])"
                )
        return infer(self.state, source, **told)


def read_weights(
    weights: Mapping[str, Any] | nn.Module | str | Path, entry: str | None = None,
    prefix: str = "", drop: Sequence[str] = (), rename: Mapping[str, str] | None = None,
) -> Given:  # fmt: skip
    """The tensors of one backbone, wherever they lie; arguments as in `load`."""
    path, own = None, None
    if isinstance(weights, nn.Module):
        ours = [part for part in weights.modules() if isinstance(part, HierarchicalBackbone)]
        own = ours[0].spec if len(ours) == 1 else None
        weights = weights.state_dict()
    if isinstance(weights, (str, Path)):
        path = hub.fetch(weights) if str(weights)[:3] == "hf:" else Path(weights)  # type: ignore[arg-type]
        found = reading.located(path, entry)
    else:
        found = locate(weights, entry)
    with storage.about(path):
        inside, others = body(renamed(found.state, rename or {}), prefix)
        state, dropped_ = dropped(inside, drop, prefix)
    rows = [row("left out", None, key, tensor) for key, tensor in (others | dropped_).items()]
    rows += [
        {"status": "left out", "tensor": None, "from": one_line(key), "shape": kind}
        for key, kind in found.beside.items()
    ]
    start = prefix or next(iter(bodies(found.state)), "")
    beside = {key.removeprefix(start): kind for key, kind in found.beside.items()}
    return Given(state, rows, path, own, found.stated, beside)


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
