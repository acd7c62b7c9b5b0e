"""Loading weights: everything is checked before anything is copied."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from attention.options import nearest
from backbones.rules import SOURCES, Change


class WeightsError(ValueError):
    """Weights that do not fit; the model is as it was."""


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file.  Nothing is ever unpickled."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: not a .safetensors file; only those are read")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from None


def convert(
    model: nn.Module, state: Mapping[str, Tensor], source: str = "transom"
) -> dict[str, Tensor]:
    """`state`, in the names of `source`, as a full state dict of `model`.

    Raises WeightsError, one line that lists every key without a rule, every tensor of another
    shape or not finite, and everything that is missing.
    """
    if source not in SOURCES:
        raise WeightsError(f"no source is called {source!r}{nearest(source, SOURCES)}")
    wanted, found, wrong = model.state_dict(), {}, []
    for key, tensor in _split_biases(state, wanted, source).items():
        for rule in SOURCES[source]:
            if match := rule.pattern.fullmatch(key):
                break
        else:
            wrong.append(f"no rule for {key}")
            continue
        name = rule.name(match)
        if name is None:
            continue
        if name not in wanted:
            wrong.append(f"{key} would be {name}, which the model has not")
            continue
        if name in found:
            wrong.append(f"{key} and another key are both {name}")
        found[name] = tensor
        try:
            found[name] = _fit(tensor, rule.change, name, wanted[name])
        except ValueError as error:
            wrong.append(f"{key} {error}")
    wrong += [f"nothing for {name}" for name in wanted if name not in found]
    if wrong:
        raise WeightsError(f"{len(wrong)} tensors do not fit: " + "; ".join(wrong))
    return found


def _fit(tensor: Tensor, change: Change | None, name: str, wanted: Tensor) -> Tensor:
    """The tensor in our layout.  Raises ValueError, the end of a sentence about it."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"is a {type(tensor).__name__}, not a tensor")
    if tensor.is_meta:
        raise ValueError("has no values (it is on the meta device)")
    ours = tensor
    if change is not None:
        with contextlib.suppress(IndexError, RuntimeError):  # not the source's layout
            ours = change(tensor, wanted.shape)
    if ours.shape != wanted.shape:
        raise ValueError(f"has shape {tuple(tensor.shape)}, {name} {tuple(wanted.shape)}")
    if ours.is_floating_point() != wanted.is_floating_point():
        raise ValueError(f"holds {ours.dtype}, {name} {wanted.dtype}")
    if ours.is_floating_point() and not ours.isfinite().all():
        raise ValueError("is not finite")
    return ours


def _split_biases(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """torchvision's Swin V2 keeps a zero key bias inside qkv.bias; we keep none."""
    if source != "torchvision" or not any(name.endswith("q_bias") for name in wanted):
        return dict(state)
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        whole = isinstance(tensor, Tensor) and tensor.ndim == 1 and len(tensor) % 3 == 0
        if whole and key.endswith("attn.qkv.bias"):
            q, k, v = tensor.chunk(3)
            if k.any():
                raise WeightsError(f"{key}: its key bias is not 0, as cosine scores need it")
            stem = key.removesuffix("bias")
            out[stem + "q_bias"], out[stem + "v_bias"] = q, v
        else:
            out[key] = tensor
    return out


def load(
    model: nn.Module, weights: Mapping[str, Tensor] | str | Path, source: str = "transom"
) -> None:
    """Copies `weights` (a state dict or a .safetensors file) into the model, whole or not at all.

    source: whose names they have, a key of rules.SOURCES.  Raises WeightsError.
    """
    state = read(weights) if isinstance(weights, (str, Path)) else weights
    converted = convert(model, state, source)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in converted.items():
            own[name].copy_(tensor)
