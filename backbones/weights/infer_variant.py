"""Infers the variant of a family from the sizes of weights, and one that is none by scaling.

The rules of small maps, the norms and the stems are those of the family; widths, depths, tokens
and windows those of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attention.configs.beside import MessengerConfig
from attention.configs.config import MixerConfig
from attention.configs.windows import TokenMLPConfig
from backbones.files.storage import WeightsError
from backbones.model.backbone import HierarchicalBackbone
from backbones.names.key_rules import AS_GIVEN, FAMILIES
from backbones.specs import variants
from backbones.specs.construct import from_dict
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec
from backbones.weights.resize import Size, is_absolute, square
from transom.errors import SpecError


def variant_of(
    named: Mapping[str, Tensor], source: str, like: BackboneSpec | None, img_size: Size | None,
    heads: Sequence[int] | None,
) -> BackboneSpec:  # fmt: skip
    """The variant of the source's family whose parameters have the names and sizes of the weights.

    The number of classes and of the image's channels are those of the weights, the image size is
    that of their absolute positions; so are widths, depths, tokens and windows where no variant
    has them.

    Args:
        named: the weights, in the layout of the source, by our names.
        source: a key of `key_rules.FAMILIES`.
        like: a backbone that tells what sizes do not.
        img_size: (height, width) in pixels; none: that of square positions, or the variant's.
        heads: of every stage; none: those of bias tables, or of `like`.

    Returns:
        The spec.

    Raises:
        WeightsError: no variant has these sizes, or several that differ in their stages.
    """
    start = FAMILIES[source]
    starts = (start,) if isinstance(start, str) else start
    specs = [variants.get(name).spec for name in variants.names() if name.startswith(start)]
    given = _given(like, source, specs)
    found: list[BackboneSpec] = []
    for candidates in ((given, *specs), (_scaled(spec, named, heads, like) for spec in specs)):
        for spec in _sized(candidates, named, img_size):
            if isinstance(start, str) or (given is not None and spec.stages == given.stages):
                return spec
            found.append(spec)
        if found:  # none is scaled where a variant has these sizes
            break
    if not found:
        if img_size is None and any(map(is_absolute, named)) and _img_size(specs[0], named) is None:
            raise WeightsError(
                f"weights of {source} whose positions fill no square map; give --source-img-size "
                "(or --spec NOTATION)"
            )
        told = heads is not None or any(name.endswith("bias.table") for name in named)
        way_out = "--spec NOTATION" if told else "--heads (or --spec NOTATION)"
        raise WeightsError(
            f"weights of {source} with the sizes of no variant {' or '.join(starts)}...; "
            f"give {way_out}"
        )
    if any(spec.stages != found[0].stages for spec in found):
        names = " and ".join(dict.fromkeys(spec.name for spec in found))
        raise WeightsError(f"weights of {source} with the sizes of {names}; give --spec NAME")
    own = {spec.name: spec.img_size for spec in specs}  # of names, the one of this size
    return next((spec for spec in found if own.get(spec.name) == spec.img_size), found[0])


def _given(
    like: BackboneSpec | None, source: str, specs: Sequence[BackboneSpec]
) -> BackboneSpec | None:
    """`like` as a backbone that the weights may be of; else it tells no more than heads."""
    starts = FAMILIES[source]
    if like is None or isinstance(starts, str):
        return like
    several = len(starts) > 1
    if source not in AS_GIVEN or (several and not any(_alike(like, spec) for spec in specs)):
        return None
    return like


def _sized(
    candidates: Iterable[BackboneSpec | None], named: Mapping[str, Tensor], img_size: Size | None
) -> Iterator[BackboneSpec]:
    """Those with the names and sizes of the weights, given their classes and image size."""
    tried = set()
    for spec in candidates:
        if spec is None or not _same_widths(spec, named):
            continue
        weight, own = named.get("head.weight"), spec.img_size
        size = img_size or _img_size(spec, named) or own
        spec = replace(spec, num_classes=0 if weight is None else len(weight), img_size=size)
        function = replace(spec, name="any", drop_path=0.0), size == own
        if function not in tried and _fits(spec, named):
            yield spec
        tried.add(function)


def _same_widths(spec: BackboneSpec, named: Mapping[str, Tensor]) -> bool:
    """False where no model is needed to tell that the weights are another's."""
    for i, stage in enumerate(spec.stages):
        norm = named.get(f"stages.{i}.blocks.0.norm1.weight")
        if norm is None or norm.numel() != stage.dim:
            return False
        if f"stages.{i}.blocks.{stage.depth - 1}.norm1.weight" not in named:
            return False
    return True


def _fits(spec: BackboneSpec, named: Mapping[str, Tensor]) -> bool:
    """Whether every parameter of a backbone has a tensor of its size, and every tensor of its
    stages a parameter."""
    with torch.device("meta"):
        state = HierarchicalBackbone(spec).state_dict()
    sizes = {name: tensor.numel() for name, tensor in state.items()}
    read = {
        name: tensor.numel() for name, tensor in named.items()
        if name in sizes or name.startswith("stages.")
    }  # fmt: skip
    return sizes == read


def _img_size(spec: BackboneSpec, named: Mapping[str, Tensor]) -> Size | None:
    """(height, width) of images whose map the weights are for; None if they do not tell it."""
    positions = named.get("stem.position", named.get("stages.0.position"))
    mixer = spec.stages[0].mixers[0]
    if isinstance(mixer, TokenMLPConfig) and mixer.hidden is not None:  # a window is the map
        return mixer.size[0] * spec.patch_size, mixer.size[1] * spec.patch_size
    if positions is None or positions.ndim != 3:
        return None
    if positions.shape[1] == math.prod(spec.stem_grid(spec.img_size)):
        return spec.img_size
    side = math.isqrt(positions.shape[1])
    if side * side != positions.shape[1]:
        return None
    return side * spec.patch_size, side * spec.patch_size


def _alike(spec: BackboneSpec, variant: BackboneSpec) -> bool:
    """Whether a spec is a variant's but for its sizes and the options of its mixers."""
    same = {
        field: getattr(variant, field)
        for field in (
            "name", "stages", "img_size", "in_channels", "num_classes", "layer_scale", "drop_path",
        )
    }  # fmt: skip
    kinds = {type(mixer) for stage in variant.stages for mixer in stage.mixers}
    mixers = {type(mixer) for stage in spec.stages for mixer in stage.mixers}
    return mixers <= kinds and replace(spec, **same) == variant


def _scaled(
    spec: BackboneSpec, named: Mapping[str, Tensor], heads: Sequence[int] | None,
    like: BackboneSpec | None,
) -> BackboneSpec | None:  # fmt: skip
    """A variant with the widths, depths, heads, tokens and windows of the weights; None if they do
    not tell them."""
    shape, stages = shapes(named), []
    try:
        count = 1 + max(int(name.split(".")[1]) for name in named if name.startswith("stages."))
        if count > len(spec.stages):
            return None
        for i, stage in enumerate(spec.stages[:count]):
            start = f"stages.{i}."
            dim = shape(start + "blocks.0.norm1.weight")[0]
            other = None if like is None or len(like.stages) != count else like.stages[i]
            sizes, own_heads = _of_mixer(start, stage.mixers[0], named, other)
            if heads is not None:
                own_heads = heads[i]
            elif own_heads is None and other is not None and other.dim == dim:
                own_heads = other.heads
            if own_heads is None:
                return None
            if dim != stage.dim and any(getattr(m, "qk_scale", None) for m in stage.mixers):
                return None  # a stated scale is that of its width
            own = {name.split(".")[3] for name in named if name.startswith(f"{start}blocks.")}
            hidden, tokens = shape(start + "blocks.0.mlp.fc1.weight")[0], start + "beside.tokens"
            if tokens in named and stage.messenger is None:
                stage = replace(stage, tokens=shape(tokens)[1])
            stages.append({
                "dim": dim, "depth": len(own), "mlp_ratio": hidden / dim, "heads": own_heads,
                "mixers": [replace(mixer, **sizes) for mixer in stage.mixers],
                "tokens": stage.tokens,
            })  # fmt: skip
        fields: dict[str, Any] = {"name": f"like {spec.name}"}
        fields |= _of_stem(spec, shape("stem.conv.weight"))
        if spec.local:
            fields["local"] = shape("stages.0.blocks.0.local.conv.weight")[-1]
        if (has := "stages.0.blocks.0.scale1.gamma" in named) != (spec.layer_scale is not None):
            fields["layer_scale"] = 1.0 if has else None  # where it began is not told
        return from_dict({**spec.to_dict(), **fields, "stages": stages})
    except (SpecError, ValueError, TypeError, IndexError):
        return None


def _of_stem(spec: BackboneSpec, kernel: tuple[int, ...]) -> dict[str, Any]:
    """Fields that the shape (dim, channels, side, side) of the stem's kernel tells."""
    fields: dict[str, Any] = {"in_channels": kernel[1]}
    if spec.stem_dim is not None:
        fields["stem_dim"] = kernel[0]
    if spec.stem == "patch":
        fields["patch_size"] = kernel[-1]
    return fields


def _of_mixer(
    start: str, mixer: MixerConfig, named: Mapping[str, Tensor], other: StageSpec | None
) -> tuple[dict[str, Any], int | None]:
    """(options of the mixers of a stage, heads) that the tensors of its first block tell.

    other: the stage of a backbone that tells what they do not.
    """
    block, shape = f"{start}blocks.0.mixer.", shapes(named)
    options: dict[str, Any] = {}
    if isinstance(mixer, TokenMLPConfig):  # (hidden, l), of one head
        hidden, length = shape(block + "weight")
        side = math.isqrt(length)
        if side * side != length:
            raise ValueError(f"{length} tokens are no square map")
        return {"size": (side, side), "hidden": hidden}, 1
    if block + "qkv.weight" in named and block + "qkv.bias" not in named:
        options["qkv_bias"] = False
    if isinstance(mixer, MessengerConfig) and other is not None and other.messenger is not None:
        options["region"] = other.messenger.region
    if block + "branch.bias.table" not in named:
        return options, None
    rows, heads = _rows_and_heads(shape(block + "branch.bias.table"))
    return {**options, "size": square(rows, "table")}, heads


def _rows_and_heads(shape: tuple[int, ...]) -> tuple[int, int]:
    """Of a bias table: ours is (rows, heads), MaxViT's (heads, 2 gh - 1, 2 gw - 1)."""
    return (shape[1] * shape[2], shape[0]) if len(shape) == 3 else (shape[0], shape[-1])


def shapes(named: Mapping[str, Tensor]) -> Callable[[str], tuple[int, ...]]:
    """The shape of a tensor by its name, which raises WeightsError for one that is missing."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in named or named[name].ndim == 0:
            raise WeightsError(f"nothing for {name}, which every backbone has")
        return tuple(named[name].shape)

    return shape
