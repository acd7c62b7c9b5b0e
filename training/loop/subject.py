"""The model that a run trains, built for its data."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import backbones
from attention.configs.config import MixerConfig
from attention.configs.softmax import SoftmaxConfig
from attention.configs.windows import ShuffleConfig, WindowConfig
from backbones.files import hub, storage
from backbones.specs import variants
from backbones.weights import Adapt, load, resize
from training.data.splits import Data
from transom.errors import SpecError, cause_of, one_line, printable

if TYPE_CHECKING:
    from training.objectives.objective import Objective

Size = tuple[int, int]


def build(name: str, data: Data, size: Size, drop_path: float | None, seed: int) -> nn.Module:
    """Builds a backbone with the data's channels and classes, for the image size.

    Args:
        name: our notation, ``timm:NAME``, ``torchvision:NAME`` or ``my_module:Class``, which is
            called with ``num_classes`` and ``in_chans``.
        data: gives channels and classes.
        size: (height, width) of the images in pixels.
        drop_path: rate of stochastic depth; None: as published or stated.
        seed: of the constructor's random weights.

    Raises:
        SpecError: the model cannot be built so.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if is_foreign(name):
            return _foreign(name, data, size, drop_path)
        return backbones.create(spec_of(name, data, size, drop_path))


def digest_of(weights: str) -> str:
    """SHA-256 of a file of weights, or of the file that a hub id stands for.

    Raises:
        SpecError: the file cannot be read or fetched.
    """
    path = hub.fetch(weights) if weights.startswith("hf:") else Path(weights)
    try:
        return storage.digest(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SpecError(f"--weights {printable(weights)}: cannot be read: {reason}") from None


def start_from(model: nn.Module, name: str, weights: str, partial: str | None) -> dict[str, int]:
    """Copies weights into a backbone of ours, as fine-tuning begins.

    Relative tables and absolute positions of other sizes are resized bicubic, a stem takes other
    channels, and a head of another number of classes stays as the model has it.

    Args:
        model: as the run's seed has drawn it.
        name: of the backbone, for an error.
        weights: a file or a hub id.
        partial: replaced, fitting, or None, with which nothing may be missing.

    Returns:
        How many tensors were loaded, resized, left fresh and left out.

    Raises:
        SpecError: the backbone is not ours, or the weights do not fit; the model is unchanged.
    """
    if is_foreign(name):
        raise SpecError(f"{name}: --weights is for backbones of ours; start all of them anew")
    how = Adapt(resize="bicubic", new_inputs=True)
    found = None
    with contextlib.suppress(SpecError):  # a head that fits is taken
        found = load(model, weights, how=how, partial=partial)
    try:
        found = found or load(model, weights, how=replace(how, new_head=True), partial=partial)
    except SpecError as error:
        raise SpecError(f"{name}: --weights {error}") from None
    return dict(Counter(row["status"] for row in found.report))


def check(
    name: str, data: Data, size: Size, drop_path: float | None, weights: str | None = None,
    partial: str | None = None, sizes: Sequence[Size] = (), learnt: Objective | None = None,
) -> None:  # fmt: skip
    """Raises SpecError for a backbone that cannot be built, trained or evaluated as asked.

    Args:
        name, data, size, drop_path: as `build` takes them.
        weights, partial: as `start_from` takes them; without weights the start is drawn.
        sizes: other image sizes that the model is evaluated at.
        learnt: what it learns; by default classes.
    """
    if learnt is not None:
        data = replace(data, classes=learnt.classes)
    if not is_foreign(name):
        spec = spec_of(name, data, size, drop_path).resolve()
        with torch.device("meta"):
            empty = backbones.HierarchicalBackbone(spec)
        if weights is not None:
            start_from(empty, name, weights, partial)
        if learnt is not None:
            learnt.check(empty, name)
        return
    if weights is not None:
        start_from(nn.Identity(), name, weights, partial)  # which refuses it
    model = build(name, data, size, drop_path, seed=0).eval()
    if learnt is not None:
        learnt.check(model, name)
    for other in sizes:
        _logits(model, f"--eval-size {other[0]}x{other[1]}: {name}", data, other)
    logits = _logits(model, name, data, size)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (1, data.classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise SpecError(f"{name}: gives {found}, expected logits (1, {data.classes})")


def _logits(model: nn.Module, name: str, data: Data, size: Size) -> Any:
    """What the model gives for one image.  Raises SpecError where its forward fails."""
    try:
        with torch.no_grad():
            return model(torch.zeros(1, data.channels, *size))
    except Exception as error:
        reason = cause_of(error)
        raise SpecError(f"{name}: its forward fails: {one_line(reason)}") from None


def with_scaled_windows(model: nn.Module, size: Size) -> nn.Module | None:
    """A backbone of ours with windows in proportion to another image size, and equal weights.

    Softmax mixers with a size get it scaled and rounded; relative tables are resized bicubic, and
    log-CPB computes its bias in the coordinates of its training.  A learned matrix over tokens
    (token_mlp) has no other size, so its windows stay.

    Args:
        model: as it was trained; its spec's image size is that of the training.
        size: (height, width) in pixels of the images to come.

    Returns:
        A new model on the CPU, or None where no window changes or the model is not ours.
    """
    if not isinstance(model, backbones.HierarchicalBackbone):
        return None
    old = model.spec
    ratios = [side / trained for side, trained in zip(size, old.img_size, strict=True)]
    stages = [
        replace(stage, mixers=tuple(_scaled(mixer, ratios) for mixer in stage.mixers))
        for stage in old.stages
    ]
    new = replace(old, stages=tuple(stages))
    if new == old:
        return None
    state = {key: tensor.cpu() for key, tensor in model.state_dict().items()}
    for i, (stage, before) in enumerate(zip(new.stages, old.stages, strict=True)):
        pairs = zip(before.blocks(), stage.blocks(), strict=True)
        for j, ((trained, _), (scaled, _)) in enumerate(pairs):
            start = f"stages.{i}.blocks.{j}.mixer."
            for key in state:
                if key.startswith(start) and key.endswith("bias.table"):
                    sizes = resize.extent_of(trained), resize.extent_of(scaled)
                    state[key] = resize.table(state[key], *sizes)
    found = backbones.HierarchicalBackbone(new)
    found.load_state_dict(state)
    return found


def _scaled(mixer: MixerConfig, ratios: Sequence[float]) -> MixerConfig:
    if not isinstance(mixer, SoftmaxConfig) or not hasattr(mixer, "size"):
        return mixer
    sides = tuple(max(1, int(s * r + 0.5)) for s, r in zip(mixer.size, ratios, strict=True))
    if sides == mixer.size:
        return mixer
    fields: dict[str, Any] = {"size": sides}
    windows = isinstance(mixer, (WindowConfig, ShuffleConfig))
    if windows and mixer.position == "log_cpb" and mixer.pretrained_window is None:
        fields["pretrained_window"] = mixer.size
    return replace(mixer, **fields)


def is_foreign(name: str) -> bool:
    return "=" not in name and "/" not in name and ":" in name


def spec_of(
    name: str, data: Data, size: Size, drop_path: float | None
) -> backbones.BackboneSpec:
    """The spec of a notation of ours, for the data."""
    spec = backbones.parse(name)
    base = name.partition("/")[0]
    if drop_path is None and "drop_path" not in name and variants.known(base):
        drop_path = variants.get(base).drop_path
    rate = spec.drop_path if drop_path is None else drop_path
    return replace(
        spec, img_size=size, in_channels=data.channels, num_classes=data.classes, drop_path=rate
    )


def _foreign(name: str, data: Data, size: Size, drop_path: float | None) -> nn.Module:
    source, _, rest = name.partition(":")
    fields: dict[str, Any] = {"num_classes": data.classes, "in_chans": data.channels}
    rate: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
    if source == "timm":
        import timm

        attempts = [{**fields, "img_size": size, **rate}, {**fields, **rate}, fields]
        make = lambda **kwargs: timm.create_model(rest, pretrained=False, **kwargs)  # noqa: E731
    elif source == "torchvision":
        from torchvision import models

        if data.channels != 3:
            raise SpecError(f"{name}: torchvision's models take 3 channels, not {data.channels}")
        rate = {} if drop_path is None else {"stochastic_depth_prob": drop_path}
        attempts = [{"num_classes": data.classes, **rate}, {"num_classes": data.classes}]
        make = lambda **kwargs: models.get_model(rest, weights=None, **kwargs)  # noqa: E731
    else:
        attempts = [fields]
        make = getattr(importlib.import_module(source), rest)
    error: Exception | None = None
    for kwargs in attempts:
        try:
            return make(**kwargs)
        except TypeError as found:  # a model that does not know one of the fields
            error = found
        except (RuntimeError, ValueError, AssertionError) as found:
            raise SpecError(f"{name}: {one_line(str(found))}") from None
    raise SpecError(f"{name}: cannot be built with {', '.join(attempts[-1])}: {error}")
