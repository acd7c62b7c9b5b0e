"""Checkpoints of a run: tensors by name in safetensors, two kept, nothing unpickled.

The data order, augmentation and stochastic depth are functions of the step, so a checkpoint needs
no state of a loader or of a random generator.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backbones.files import storage
from transom.errors import SpecError, printable

KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.safetensors")


class Saved(NamedTuple):
    """Content of a checkpoint.

    step: optimizer steps that were made.  tensors: by name, of the model, the optimizer and the
    average of the weights.  state: what else the loop needs, as JSON has it.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer by the parameter's name: ``optimizer.NAME.KEY``.

    An order of groups does not matter, nor which of them a parameter is in.
    """
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            found[f"optimizer/{name}/{key}"] = tensor
    return found


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Gives an optimizer the state that `optimizer_tensors` took."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, name, field = key.split("/")
            parameter = parameters[name]
            on = parameter.device if value.ndim else value.device
            optimizer.state[parameter][field] = value.to(on)


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes a checkpoint, then removes all but the newest two.

    Raises:
        SpecError: for a full disk or a folder that cannot be written to; the checkpoints that
            were there remain.
    """
    storage.write(tensors, folder / f"step-{step:09d}.safetensors", {"state": json.dumps(state)})
    for path in _paths(folder)[KEPT:]:
        path.unlink(missing_ok=True)
        storage.manifest_of(path).unlink(missing_ok=True)


def _paths(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest first."""
    return sorted((p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), reverse=True)


def load(folder: Path) -> Saved | None:
    """The newest checkpoint that is whole, or None where there is none.

    Raises:
        SpecError: there are checkpoints and none of them can be read.
    """
    from safetensors import SafetensorError, safe_open

    reasons = []
    for path in _paths(folder):
        match = _NAME.fullmatch(path.name)
        assert match
        try:
            storage.verify(path)
            with safe_open(path, "pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Saved(int(match[1]), tensors, state)
        except (SpecError, SafetensorError, OSError, ValueError, KeyError) as error:
            reasons.append(f"{path.name}: {error}")
    if reasons:
        raise SpecError(f"{printable(folder)}: no checkpoint can be read: {'; '.join(reasons)}")
    return None


def clear(folder: Path) -> None:
    """Removes the checkpoints of a run that is done."""
    for path in _paths(folder):
        path.unlink(missing_ok=True)
        storage.manifest_of(path).unlink(missing_ok=True)
