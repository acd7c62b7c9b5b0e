"""Weights before anything is known of their model, from wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from backbones.files import hub, reading, storage
from backbones.files.detect_source import body
from backbones.files.locate import bodies, locate
from backbones.files.storage import WeightsError
from backbones.model.backbone import HierarchicalBackbone
from backbones.specs.construct import from_dict
from backbones.specs.spec import BackboneSpec
from backbones.weights.infer_spec import infer
from backbones.weights.match import row
from backbones.weights.partial import dropped, renamed
from transom.errors import one_line
from transom.table import Row

SPEC = "transom.spec"  # where the header of our files keeps the spec, as JSON
NO_SPEC = "weights in our own names without their spec"


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
