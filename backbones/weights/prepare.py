"""Joins and separates tensors where a source has several for one of ours, or one for several."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from backbones.files.storage import WeightsError

FLAT = re.compile(r"^(layers|stages)_(\d+)\.")
HF_PREFIX = re.compile(r"^swin(v2)?\.")
HF_PART = re.compile(
    r"(encoder\.layers\.\d+\.blocks\.\d+\.attention\.)(?:self\.)?"
    r"(query|key|value|[qkv]_proj)\.(weight|bias)"
)
HF_JOINED = re.compile(r"(encoder\..+\.attention\.)(?:qkv\.)?(weight|bias|q_bias|v_bias)")
DAT_CONVS = re.compile(r"attns\.\d+\.(proj_(q|k|v|out)|conv_offset\.3)\.weight$")
# their keys of class tokens and registers, and of the positions with theirs; only timm's ViT may
# have positions of the map alone
CLASS_TOKENS = {
    "vit": (("cls_token", "dist_token", "reg_token"), "pos_embed"),
    "vit_torchvision": (("class_token",), "encoder.pos_embedding"),
    "pvt": (("cls_token",), "pos_embed4"),
}
DISTILLED = "head_dist."


def prepare(
    state: Mapping[str, Any], source: str, grid: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The state with tensors joined or separated as the rules expect.

    grid: (h, w) of the map that absolute positions are for, where it is known.

    torchvision's Swin V2 has a zero key bias inside qkv.bias, we have none; transformers has three
    tensors for queries, keys and values; timm's features_only writes ``layers_0.`` for
    ``layers.0.``.
    """
    out = {FLAT.sub(r"\1.\2.", str(key)): tensor for key, tensor in state.items()}
    if source == "transom":  # our first files have these inside qkv
        out = {re.sub(r"\bqkv\.([qv]_bias)$", r"\1", key): tensor for key, tensor in out.items()}
    if source.startswith("openmmlab"):
        out = _with_last_norm(out)
    if source == "torchvision" and any(key.endswith("logit_scale") for key in out):
        out = _separate_key_bias(out)
    if source == "dat":
        out = {key: _linear(key, tensor) for key, tensor in out.items()}
    if source in CLASS_TOKENS:
        out = _separate_tokens(out, source, grid)
    if source == "transformers":
        out = _join_qkv({re.sub(HF_PREFIX, "", key, count=1): value for key, value in out.items()})
    return out


def restore(state: Mapping[str, Tensor], target: str) -> dict[str, Tensor]:
    """The inverse of `prepare`: tensors joined or separated as in the target's files."""
    if target == "torchvision":
        return _with_key_bias(state)
    if target == "dat":
        deformable = {key[: key.index("proj_q.")] for key in state if "proj_q." in key}
        return {
            key: t[:, :, None, None] if DAT_CONVS.search(key) and _start(key) in deformable else t
            for key, t in state.items()
        }
    if target in CLASS_TOKENS:
        return _join_tokens(state, target)
    if target.startswith("openmmlab"):
        last = max(int(key.split(".")[1]) for key in state if key.startswith("stages."))
        return {re.sub(r"^norm\.", f"norm{last}.", key): t for key, t in state.items()}
    return _separate_qkv(state) if target == "transformers" else dict(state)


def _separate_tokens(
    state: dict[str, Any], source: str, grid: tuple[int, int] | None
) -> dict[str, Any]:
    """The positions of a map and of the tokens beside it, which their files have in one tensor;
    class tokens and registers, which are several, become one."""
    if any(key.startswith(DISTILLED) for key in state):
        raise WeightsError(
            f"{DISTILLED}weight reads a second token of distilled DeiT, and no backbone here has "
            f"two heads; --drop '{DISTILLED}*' (drop=['{DISTILLED}*']) with 1.tokens=2 in the "
            "spec keeps the head of the class token"
        )
    names, key = CLASS_TOKENS[source]
    found = {name: state[name] for name in names if isinstance(state.get(name), Tensor)}
    tokens = list(found.values())
    if not tokens or any(t.ndim != 3 or t.shape[::2] != tokens[0].shape[::2] for t in tokens):
        return state
    out = {name: value for name, value in state.items() if name not in names}
    out[" and ".join(found)] = joined = torch.cat(tokens, dim=1)
    both, count = state.get(key), joined.shape[1]
    if not isinstance(both, Tensor) or both.ndim != 3:
        return out
    if source != "vit" or _with_tokens(both.shape[1], count, grid):
        out[f"{key}.tokens"], out[key] = both[:, :count], both[:, count:]
    return out


def _with_tokens(positions: int, tokens: int, grid: tuple[int, int] | None) -> bool:
    """Whether so many positions are those of a map and of the tokens beside it.

    Without a grid that tells, positions that fill a square are those of a map alone.
    """
    alone = None if grid is None else grid[0] * grid[1]
    if alone in (positions, positions - tokens):
        return alone != positions
    return isqrt(positions) ** 2 != positions


def _join_tokens(state: Mapping[str, Tensor], target: str) -> dict[str, Tensor]:
    (name, *others), key = CLASS_TOKENS[target]
    out = dict(state)
    if name in out:
        tokens = out[name]
        if tokens.shape[1] > 1 and not others:
            raise WeightsError(f"{tokens.shape[1]} tokens beside the map; {target} has one")
        out[name] = tokens[:, :1]
        if tokens.shape[1] > 1:  # registers stand last
            out[others[-1]] = tokens[:, 1:]
    if f"{key}.tokens" in out:
        out[key] = torch.cat([out.pop(f"{key}.tokens"), out[key]], dim=1)
    return out


def _start(key: str) -> str:
    """``stages.2.attns.1.`` of a key of DAT."""
    return ".".join(key.split(".")[:4]) + "."


def _linear(key: str, tensor: Any) -> Any:
    """A 1x1 convolution of DAT's deformable attention as a linear layer."""
    if DAT_CONVS.search(key) and isinstance(tensor, Tensor) and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def _with_last_norm(state: dict[str, Any]) -> dict[str, Any]:
    """Renames a single norm to the final norm of a classifier; several are the norms of maps."""
    norms = {match[1] for key in state if (match := re.match(r"norm(\d+)\.", key))}
    if len(norms) != 1:
        return state
    return {re.sub(r"^norm\d+\.", "norm.", key): tensor for key, tensor in state.items()}


def _with_key_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = dict(state)
    for key in [key for key in state if key.endswith("attn.q_bias")]:
        stem = key.removesuffix("q_bias")
        q, v = out.pop(key), out.pop(stem + "v_bias")
        out[stem + "qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return out


def _separate_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    v2 = any(key.endswith("logit_scale") for key in state)
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        start = "" if key.startswith("classifier.") else "swinv2." if v2 else "swin."
        if match := HF_JOINED.fullmatch(key):
            stem, kind = f"{start}{match[1]}self.", match[2]
            if kind in ("q_bias", "v_bias"):
                out[stem + {"q": "query.bias", "v": "value.bias"}[kind[0]]] = tensor
            else:
                for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    out[f"{stem}{part}.{kind}"] = piece
        else:
            out[start + key] = tensor
    return out


def _separate_key_bias(state: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, tensor in state.items():
        divides_in_three = isinstance(tensor, Tensor) and tensor.ndim == 1 and len(tensor) % 3 == 0
        if divides_in_three and key.endswith("attn.qkv.bias") and not tensor.is_meta:
            q, k, v = tensor.chunk(3)
            if k.any():
                raise WeightsError(f"{key}: its key bias is not 0, as cosine scores need it")
            stem = key.removesuffix("qkv.bias")
            out[stem + "q_bias"], out[stem + "v_bias"] = q, v
        else:
            out[key] = tensor
    return out


def _join_qkv(state: dict[str, Any]) -> dict[str, Any]:
    """Joins query, key and value of one shape to qkv; V2's two biases stay separate.

    Other tensors keep their names, for which no rule exists.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    out: dict[str, Any] = {}
    for key, tensor in state.items():
        if match := HF_PART.fullmatch(key):
            groups.setdefault((match[1], match[3]), {})[match[2][0]] = (key, tensor)
        else:
            out[key] = tensor
    for (stem, kind), parts in groups.items():
        tensors = [parts[p][1] for p in "qkv" if p in parts]
        alike = all(isinstance(t, Tensor) and t.shape == tensors[0].shape for t in tensors)
        if alike and set(parts) == {"q", "k", "v"}:
            out[f"{stem}qkv.{kind}"] = torch.cat(tensors)
        elif alike and kind == "bias" and set(parts) == {"q", "v"}:
            out[f"{stem}q_bias"], out[f"{stem}v_bias"] = tensors
        else:
            out.update(parts.values())
    return out
