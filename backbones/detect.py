"""Whose weights these are, read from their keys; and their pieces put as the rules expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attention.options import one_line
from backbones.rules import HF_PART, SOURCES
from backbones.storage import WeightsError


def source_of(state: Mapping[str, Any]) -> str:
    """A key of rules.SOURCES.  Raises WeightsError for keys of none of them."""
    keys = {key.removeprefix("module.") for key in state if isinstance(key, str)}

    def some(part: str) -> bool:
        return any(part in key for key in keys)

    if "stem.conv.weight" in keys:
        return "transom"
    if "stage1_conv_embed.0.weight" in keys:
        return "cswin"
    if "features.0.0.weight" in keys:
        return "torchvision"
    if some("embeddings.patch_embeddings.projection.weight"):
        return "transformers"
    if "patch_embed.proj.weight" in keys and some("layers.0.blocks."):
        if some("spatial_mlp."):
            return "swinmlp"
        # the authors merge at the end of the first stage, timm at the start of the second
        if "layers.0.downsample.reduction.weight" in keys:
            return "swinv2" if some("attn.cpb_mlp.") else "swin"
        return "timm"
    first = ", ".join(one_line(key) for key in sorted(keys)[:3]) or "none"
    known = ", ".join(SOURCES)
    raise WeightsError(f"keys of no known source (the first: {first}); give --source, of: {known}")


def prepare(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The state with what is kept in other pieces put together or apart, as the rules expect.

    torchvision's Swin V2 has a zero key bias inside qkv.bias, we have none; transformers keeps
    queries, keys and values apart; DistributedDataParallel puts ``module.`` before every key.
    """
    out = {str(key): tensor for key, tensor in state.items()}
    if source != "transom" and out and all(key.startswith("module.") for key in out):
        out = {key.removeprefix("module."): tensor for key, tensor in out.items()}
    if source == "torchvision" and any(key.endswith("logit_scale") for key in out):
        out = _split(out)
    return _join(out) if source == "transformers" else out


def _split(state: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, tensor in state.items():
        whole = isinstance(tensor, Tensor) and tensor.ndim == 1 and len(tensor) % 3 == 0
        if whole and key.endswith("attn.qkv.bias") and not tensor.is_meta:
            q, k, v = tensor.chunk(3)
            if k.any():
                raise WeightsError(f"{key}: its key bias is not 0, as cosine scores need it")
            stem = key.removesuffix("bias")
            out[stem + "q_bias"], out[stem + "v_bias"] = q, v
        else:
            out[key] = tensor
    return out


def _join(state: dict[str, Any]) -> dict[str, Any]:
    """A trio of one shape becomes qkv; V2's biases stay two; anything else keeps its name, for
    which there is no rule."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    out: dict[str, Any] = {}
    for key, tensor in state.items():
        if match := HF_PART.fullmatch(key):
            groups.setdefault((match[1], match[5]), {})[match[4][0]] = (key, tensor)
        else:
            out[key] = tensor
    for (stem, kind), parts in groups.items():
        tensors = [parts[p][1] for p in "qkv" if p in parts]
        alike = all(isinstance(t, Tensor) and t.shape == tensors[0].shape for t in tensors)
        if alike and set(parts) == {"q", "k", "v"}:
            out[f"{stem}qkv.{kind}"] = torch.cat(tensors)
        elif alike and kind == "bias" and set(parts) == {"q", "v"}:
            out[f"{stem}qkv.q_bias"], out[f"{stem}qkv.v_bias"] = tensors
        else:
            out.update(parts.values())
    return out
