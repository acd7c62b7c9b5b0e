"""Loading weights: everything is checked before anything is copied.

    load(model, "swin.safetensors")                # the source is read from the keys
    load("swin_t", "hf:owner/name").model          # a new model
    load(None, "file.pth", window=[(7, 7)]).model  # the spec is inferred from the shapes
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
from backbones.weights.infer_spec import InferConfig, infer, same_backbone
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
    given = read_weights(weights, entry, prefix, drop, rename)
    with storage.about(given.path):
        return load_read(model, given, source, how=how, partial=partial, **config)


def load_read(
    model: nn.Module | str | Mapping[str, Any] | BackboneSpec | None, given: SourceWeights,
    source: str | None = None, *, how: Adapt | None = None, partial: str | None = None,
    **config: Any,
) -> Loaded:  # fmt: skip
    """Copies weights that have been read into a model; `load` has the arguments."""
    source = source or source_of(given.state)
    asked = None if model is None or isinstance(model, nn.Module) else parse(model)
    if model is None:
        asked = given.spec(source, **config)
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
        theirs = given.spec(source, **{"like": into, **config})
        fresh = replaced(into, theirs, how or Adapt())
    found, rows = plan(
        empty, given.state, source, how, fresh=fresh, fitting=partial == "fitting",
        beside=given.beside,
    )  # fmt: skip
    filled = empty if asked is None else HierarchicalBackbone(asked)
    parameters = filled.state_dict()
    with torch.no_grad():
        for name, tensor in found.items():
            parameters[name].copy_(tensor)
    return Loaded(filled, rows + given.left_out)


class SourceWeights(NamedTuple):
    """Weights before anything is known of their model.

    state: tensors under the names of their source.  left_out: report rows of all other tensors.
    path: the file.  model_spec: the spec of the model that they were read from.  stated: values
    of a configuration beside them.  beside: kinds of what is no tensor, by name.
    """

    state: Mapping[str, Any]
    left_out: list[Row]
    path: Path | None
    model_spec: BackboneSpec | None
    stated: Mapping[str, str]
    beside: Mapping[str, str]

    def spec(self, source: str, **config: Any) -> BackboneSpec:
        """The spec that came with the weights, else the spec inferred from their shapes."""
        if self.model_spec is not None:
            return self.model_spec
        if source == "transom":
            text = reading.metadata(self.path).get(SPEC) if self.path is not None else None
            if text is None:
                if config.get("like") is not None:
                    raise WeightsError(NO_SPEC + "; take partial='fitting'")
                raise WeightsError(f"{NO_SPEC}; give it by --spec")
            return _from_json(text, "the spec in its header", len(self.state))
        for name, value in self.stated.items():
            if config.get(name) is None:
                option = name.replace("_", "-")
                raise WeightsError(
                    f"a configuration beside the weights has {name} {value}, which no shape tells; "
                    f"give --{option} {value} ({name}=[{value}])"
                )
        return infer(self.state, source, **config)


def read_weights(
    weights: Mapping[str, Any] | nn.Module | str | Path, entry: str | None = None,
    prefix: str = "", drop: Sequence[str] = (), rename: Mapping[str, str] | None = None,
) -> SourceWeights:  # fmt: skip
    """Reads the tensors of one backbone from a state dict, a checkpoint, a file or a model.

    Args:
        weights: a state dict or a checkpoint around it, a file, a hub id, or a model.
        entry: which of several state dicts in a checkpoint, ``ema.module``.
        prefix: which of several backbones in a state dict, ``encoder.``.
        drop: names of the weights that are left out; ``*`` stands for anything.
        rename: parts of names, old to new.

    Returns:
        The tensors under the names of their source, and what is known of their spec.

    Raises:
        WeightsError: the weights cannot be read, or hold no backbone or several.

    Example:
        >>> import backbones
        >>> from backbones import weights
        >>> given = weights.read_weights({"ema": backbones.create("swin_t/stages=2").state_dict()})
        >>> "stem.conv.weight" in given.state
        True
    """
    path, spec = None, None
    if isinstance(weights, nn.Module):
        ours = [part for part in weights.modules() if isinstance(part, HierarchicalBackbone)]
        spec = ours[0].spec if len(ours) == 1 else None
        weights = weights.state_dict()
    if isinstance(weights, (str, Path)):
        path = hub.fetch(weights) if str(weights)[:3] == "hf:" else Path(weights)  # type: ignore[arg-type]
        found = reading.located(path, entry)
    else:
        found = locate(weights, entry)
    with storage.about(path):
        named = renamed(found.state, rename or {})
        start = prefix or next(iter(bodies(named)), "")
        kept, removed = dropped(named, drop, start)
        state, others = body(kept, prefix)
    rows = [row("left out", None, key, tensor) for key, tensor in (others | removed).items()]
    rows += [
        {"status": "left out", "tensor": None, "from": one_line(key), "shape": kind}
        for key, kind in found.beside.items()
    ]
    beside = {key.removeprefix(start): kind for key, kind in found.beside.items()}
    return SourceWeights(state, rows, path, spec, found.stated, beside)


def _from_json(text: str, place: str, tensors: int) -> BackboneSpec:
    try:
        spec = from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:  # SpecError is a ValueError, too
        raise WeightsError(f"{place} cannot be read: {one_line(str(error))}") from None
    if sum(stage.depth for stage in spec.stages) > tensors:  # thousands of blocks, to be slow
        raise WeightsError(f"{place} has more blocks than the file has tensors")
    return spec


def save(model: HierarchicalBackbone, path: str | Path) -> Path:
    """Writes a backbone and its spec to a .safetensors file, with its SHA-256 in a file beside it.

    At every moment the old file or the new one loads.

    Args:
        model: the backbone.
        path: a name that ends in .safetensors; a link's target is replaced.

    Returns:
        The file written, links resolved.

    Raises:
        WeightsError: the name has another ending, or the disk refuses.

    Example:
        >>> import backbones, tempfile
        >>> from backbones import weights
        >>> model = backbones.create("swin_t/stages=2")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = weights.save(model, folder + "/own.safetensors")
        ...     weights.load(None, file).model.spec == model.spec
        True
    """
    texts = {"format": "pt", SPEC: json.dumps(model.spec.to_dict())}
    return storage.write(model.state_dict(), path, texts)


def save_pretrained(model: HierarchicalBackbone, folder: str | Path) -> Path:
    """Writes model.safetensors and config.json (the spec) into a folder.

    Args:
        model: the backbone.
        folder: a folder, which is created where there is none.

    Returns:
        The folder.

    Raises:
        WeightsError: the disk refuses.

    Example:
        >>> import backbones, tempfile
        >>> from backbones import weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     there = weights.save_pretrained(backbones.create("swin_t/stages=2"), folder)
        ...     sorted(file.name for file in there.iterdir())
        ['config.json', 'model.safetensors', 'model.safetensors.sha256']
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{storage.shown(folder)}: {error.strerror or error}") from None
    save(model, folder / FILE)
    storage.write_text(folder / CONFIG, json.dumps({"spec": model.spec.to_dict()}, indent=1))
    return folder


def from_pretrained(folder: str | Path) -> HierarchicalBackbone:
    """Reads a backbone from a folder that `save_pretrained` wrote.

    The spec in the header of model.safetensors is used, since it was written with the weights; a
    config.json with another spec causes a warning.

    Args:
        folder: a folder, or ``hf:owner/name`` of the Hugging Face hub.

    Returns:
        The backbone with its weights, in training mode.

    Raises:
        WeightsError: a file is missing, cannot be read or does not fit its spec.

    Example:
        >>> import backbones, tempfile
        >>> from backbones import weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = weights.save_pretrained(backbones.create("swin_t/stages=2"), folder)
        ...     weights.from_pretrained(folder).spec.name
        'swin_t/stages=2'
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
    """Converts the weights of a backbone to the names and layout of another library's files.

    Args:
        model: the backbone.
        target: swin, swinv2, swinmlp, cswin, timm, torchvision, transformers, openmmlab or
            openmmlab_v2.

    Returns:
        The state dict, without the index tables and masks that the library computes itself.

    Raises:
        WeightsError: the library has no name for a tensor, or would run another backbone with
            these weights.

    Example:
        >>> import backbones
        >>> from backbones import weights
        >>> state = weights.export(backbones.create("swin_t/stages=2"), "timm")
        >>> list(state)[0], "layers.1.blocks.1.attn.qkv.weight" in state
        ('patch_embed.proj.weight', True)
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
