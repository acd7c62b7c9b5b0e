"""Writing a backbone with its spec, to a file, a folder, or in the names of another library."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from backbones.files import storage
from backbones.files.storage import WeightsError
from backbones.model.backbone import HierarchicalBackbone
from backbones.names.key_rules import FAMILIES, TARGETS, find_back
from backbones.specs.construct import from_dict
from backbones.specs.spec import BackboneSpec, fields_of
from backbones.weights.infer_spec import infer
from backbones.weights.loading import load
from backbones.weights.partial import without_idle_shift
from backbones.weights.prepare import restore
from backbones.weights.source import SPEC
from transom.errors import SpecError, nearest, one_line, printable

FILE, CONFIG = "model.safetensors", "config.json"


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
        raise WeightsError(f"{printable(folder)}: {error.strerror or error}") from None
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
        place = printable(config)
        raise WeightsError(f"{place}: cannot be read: {one_line(str(error))}") from None
    if stated.resolve() != model.spec.resolve():
        warnings.warn(f"{config} is not the spec of {FILE}; that of {FILE} is used", stacklevel=2)
    return model


def export(model: HierarchicalBackbone, target: str) -> dict[str, Tensor]:
    """Converts the weights of a backbone to the names and layout of another library's files.

    Args:
        model: the backbone.
        target: whose names: swin, timm, torchvision, vit, pvt or another of `key_rules.TARGETS`.

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


def same_backbone(spec: BackboneSpec, state: Mapping[str, Any], source: str) -> None:
    """Raises WeightsError unless a library would compute the backbone of `spec` with its weights.

    A library may have names for all tensors and still compute another function.
    state: the weights in the names of `source`, the library.
    """
    sizes = [getattr(stage.mixers[0], "size", (1, 1)) for stage in spec.stages]
    pretrained = [getattr(stage.mixers[0], "pretrained_window", None) for stage in spec.stages]
    try:
        inferred = infer(
            # all but CSWin's code have one window, which their rule shrinks
            state, source, window=sizes if source == "cswin" else [max(sizes)],
            heads=[stage.heads for stage in spec.stages], pretrained_window=pretrained,
            img_size=spec.img_size,
            # where weights do not tell the backbone, their code takes any that has them
            like=None if isinstance(FAMILIES.get(source, ""), str) else spec,
        ).resolve()  # fmt: skip
    except SpecError as error:
        raise WeightsError(f"{source} cannot run it: {error}") from None
    spec = spec.resolve()
    for i, grid in enumerate(spec.grids(spec.img_size)):
        for (ours, _), (read, _) in zip(
            spec.stages[i].blocks(), inferred.stages[i].blocks(), strict=True
        ):
            if without_idle_shift(ours, grid) != without_idle_shift(read, grid):
                raise WeightsError(f"stage {i + 1} is {ours}; {source} would run it as {read}")
    free = {"name", "stages", "img_size", "drop_path"}
    for field in sorted(set(fields_of(BackboneSpec)) - free):
        value, other = getattr(spec, field), getattr(inferred, field)
        if field == "layer_scale" and None not in (value, other):
            continue  # where it began is not where it is
        if value != other:
            raise WeightsError(f"{field} is {value}; {source} would run it as {other}")
