"""Detects the source of weights from their keys, and finds the backbone among other values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backbones.files.locate import bodies
from backbones.files.storage import WeightsError
from backbones.names.key_rules import MARKS, SOURCES, find
from transom.errors import nearest, one_line

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
