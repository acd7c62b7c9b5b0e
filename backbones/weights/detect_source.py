"""Detects the source of weights from their keys, and joins or separates tensors for the rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backbones.files.locate import bodies
from backbones.files.storage import WeightsError
from backbones.weights.key_rules import MARKS, SOURCES, find
from transom.errors import nearest, one_line

FLAT = re.compile(r"^(layers|stages)_(\d+)\.")
HF_PREFIX = re.compile(r"^swin(v2)?\.")
HF_PART = re.compile(
    r"(encoder\.layers\.\d+\.blocks\.\d+\.attention\.)(?:self\.)?"
    r"(query|key|value|[qkv]_proj)\.(weight|bias)"
)
HF_JOINED = re.compile(r"(encoder\..+\.attention\.)(?:qkv\.)?(weight|bias|q_bias|v_bias)")
DAT_CONVS = re.compile(r"attns\.\d+\.(proj_(q|k|v|out)|conv_offset\.3)\.weight$")
MM_BODY, MM_HEAD = "backbone.", "head.fc."  # OpenMMLab's classifiers: the head stands outside


def source_of(state: Mapping[str, Any]) -> str:
    """The source of weights, a key of `key_rules.SOURCES`.

    Raises WeightsError for keys of no known source.
    """
    keys = {key for key in state if isinstance(key, str)}

    def any_key_has(part: str) -> bool:
        return any(part in key for key in keys)

    for source, marks in MARKS.items():
        if keys.issuperset(marks):
            return source
    if "stem.conv.weight" in keys:
        return "transom"
    if "stage1_conv_embed.0.weight" in keys:
        return "cswin"
    if "features.0.0.weight" in keys:
        return "torchvision"
    if any_key_has("embeddings.patch_embeddings.projection.weight"):
        return "transformers"
    if "patch_embed.projection.weight" in keys:
        # V2 merges at the start of a stage
        return "openmmlab_v2" if any_key_has("w_msa.logit_scale") else "openmmlab"
    in_layers = any_key_has("layers.0.blocks.") or any_key_has("layers_0.blocks.")
    if "patch_embed.proj.weight" in keys and in_layers:
        if any_key_has("spatial_mlp."):
            return "swinmlp"
        # the authors merge at the end of the first stage, timm at the start of the second
        if "layers.0.downsample.reduction.weight" in keys:
            return "swinv2" if any_key_has("attn.cpb_mlp.") else "swin"
        return "timm"
    first = ", ".join(one_line(key) for key in sorted(keys)[:3]) or "none"
    known = {
        source: sum(find(source, key) is not None for key in keys)
        for source in SOURCES if source != "transom"
    }  # fmt: skip
    most = max(known.values())
    best = " or ".join(source for source, count in known.items() if count == most)
    way_out = f"most are --source {best}'s" if 2 * most > len(keys) else "no source has them"
    raise WeightsError(f"keys of no known source (the first: {first}); {way_out}")


def body(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """(weights of one backbone without their prefix, all other values).

    prefix: of one backbone, where the state has several.  Raises WeightsError.
    """
    if prefix:
        return under(state, prefix)
    prefixes = bodies(state)
    if not prefixes:
        return dict(state), {}
    if "" in prefixes:
        inner = tuple(name for name in prefixes if name)
        others = {key: value for key, value in state.items() if key.startswith(inner)}
        return {k: v for k, v in state.items() if k not in others}, others
    if len(prefixes) > 1:
        known = ", ".join(one_line(name) for name in sorted(prefixes))
        raise WeightsError(f"holds several backbones, under {known}; say which by --prefix")
    return under(state, prefixes[0])


def under(state: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values whose keys begin with a prefix such as ``backbone.``, without it; all other values).

    Raises WeightsError if no key begins with the prefix.
    """
    taken = {key: value for key, value in state.items() if str(key).startswith(prefix)}
    if not taken:
        starts = sorted({one_line(str(key).split(".")[0]) + "." for key in state})[:20]
        raise WeightsError(f"no key begins with {one_line(prefix)!r}{nearest(prefix, starts)}")
    inside = {key.removeprefix(prefix): value for key, value in taken.items()}
    if prefix.endswith(MM_BODY) and "patch_embed.projection.weight" in inside:
        outer = prefix.removesuffix(MM_BODY)
        heads = {key for key in state if str(key).startswith(outer + MM_HEAD)}
        taken |= {key: state[key] for key in heads}
        inside |= {key.removeprefix(outer): state[key] for key in heads}
    return inside, {key: value for key, value in state.items() if key not in taken}


def prepare(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The state with tensors joined or separated as the rules expect.

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
    if target.startswith("openmmlab"):
        last = max(int(key.split(".")[1]) for key in state if key.startswith("stages."))
        return {re.sub(r"^norm\.", f"norm{last}.", key): t for key, t in state.items()}
    return _separate_qkv(state) if target == "transformers" else dict(state)


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
