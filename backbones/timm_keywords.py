"""Keywords of timm's Swin that are fields of our notation: passed where the backbone is so already,
otherwise refused with the notation that builds what they ask for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from attention.catalogue import SoftmaxConfig, WindowConfig
from attention.registry import MixerConfig
from backbones.specs import variants
from backbones.specs.spec import BackboneSpec, StageSpec, fields_of, from_dict
from backbones.specs.writing import difference, to_notation
from transom.errors import SpecError, nearest, one_line
from transom.fields import read_flag, read_number

Fields = dict[str, Any]  # of a stage, or of the backbone

COUNTS = ("depths", "num_heads")  # as many as there are stages
DROPOUTS = ("proj_drop_rate", "attn_drop_rate", "drop_block_rate")
ANY_SIZE = ("strict_img_size", "dynamic_img_size")  # every size runs, whatever they say
PARTS = {  # the values that mean what ours is
    "norm_layer": ("LayerNorm", "layernorm"),
    "embed_layer": ("PatchEmbed",),
    "weight_init": ("", "skip", "reset"),
}
WHY = {
    **dict.fromkeys(DROPOUTS, "stochastic depth; mixers and blocks have no dropout"),
    "norm_layer": "norms are LayerNorm",
    "embed_layer": "stems are named: stem=patch, overlap or overlap_same",
    "weight_init": "weights are drawn as the authors draw them",
}


def check(spec: BackboneSpec, asked: Mapping[str, Any]) -> None:
    """Passes keywords that ask for what the backbone is already.

    Args:
        spec: the backbone that is being built.
        asked: keywords of timm's SwinTransformer, beyond those that TimmBackbone has itself.

    Raises:
        SpecError: they ask for another backbone; the message has the notation that builds it.
        TypeError: timm's Swin has no such keyword.

    Example:
        >>> from backbones.specs.notation import parse
        >>> check(parse("swin_t"), {"window_size": 7})
        >>> check(parse("swin_t"), {"patch_size": 2})
        Traceback (most recent call last):
        transom.errors.SpecError: patch_size=2: say spec="swin_t/patch_size=2"
    """
    own: Fields = {name: getattr(spec, name) for name in fields_of(BackboneSpec)}
    fields = fields_of(StageSpec)
    stages = [{name: getattr(stage, name) for name in fields} for stage in spec.stages]
    other, why = [], []
    for name, value in asked.items():
        if name not in KEYWORDS:
            raise TypeError(f"unexpected keyword argument {name!r}{nearest(name, KEYWORDS)}")
        if value is None:
            continue
        shown = f"{name}={one_line(getattr(value, '__name__', repr(value)))}"
        if name in COUNTS and isinstance(value, (list, tuple)) and len(value) != len(stages):
            base = re.sub(r"/stages=\d", "", _written(spec, spec))
            raise SpecError(f'{shown}: say spec="{base}/stages={len(value)}", then {name} again')
        before = str((own, stages))
        try:
            unlike = KEYWORDS[name](name, value, own, stages)
        except SpecError as error:
            raise SpecError(f"{shown}: {error}") from None
        except (TypeError, ValueError) as error:
            raise SpecError(f"{shown}: expected {one_line(str(error))}") from None
        if unlike or str((own, stages)) != before:
            other.append(shown)
            why += [WHY[name]] if name in WHY else []
    if not other:
        return
    place = ", ".join(other)
    try:
        built = from_dict({**own, "stages": stages})
    except SpecError as error:
        pair = ("embed_dim" in asked) != ("num_heads" in asked)
        hint = "; embed_dim and num_heads go together" if pair else ""
        raise SpecError(f"{place}: {error}{hint}") from None
    reason = f" ({'; '.join(why)})" if why else ""
    raise SpecError(f'{place}: say spec="{_written(built, spec)}"{reason}')


def _written(built: BackboneSpec, spec: BackboneSpec) -> str:
    """The notation of what is built, from the variant that `spec` was made of where it had one."""
    base = spec.name.partition("/")[0]
    return difference(base, built) if variants.known(base) else to_notation(built)


# Each writes what a keyword asks for into the fields of the backbone or of its stages, and is true
# where ours is otherwise and has no field for it.


def _dropout(name: str, value: Any, own: Fields, stages: list[Fields]) -> bool:
    rate = read_number(value)
    own["drop_path"] = max(own["drop_path"], rate)
    return rate != 0


def _part(name: str, value: Any, own: Fields, stages: list[Fields]) -> bool:
    return getattr(value, "__name__", value) not in PARTS[name]


def _any_size(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
    read_flag(value)


def _always_partition(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
    own["small_maps"] = "pad" if read_flag(value) else own["small_maps"]


def _absolute(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
    if read_flag(value) != (own["position"] == "absolute"):
        own["position"] = "absolute" if value else "none"


def _patch_size(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
    own["patch_size"] = value


def _stage_field(field: str) -> Callable[..., None]:
    def write(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
        for stage, one in zip(stages, _per_stage(value, stages), strict=True):
            stage[field] = one

    return write


def _per_stage(value: Any, stages: list[Fields]) -> list[Any]:
    """One value for all, or one for each."""
    if not isinstance(value, (list, tuple)):
        return [value] * len(stages)
    if len(value) != len(stages):
        raise ValueError(f"one value, or {len(stages)}: one a stage")
    return list(value)


def _widths(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
    """One width is the first stage's, and doubles."""
    one = not isinstance(value, (list, tuple))
    widths = [value * 2**i for i in range(len(stages))] if one else value
    _stage_field("dim")(name, widths, own, stages)


def _head_dim(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
    for stage, one in zip(stages, _per_stage(value, stages), strict=True):
        stage["heads"] = max(stage["dim"] // one, 1)


def _window_size(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
    """A side, (height, width), or one of them for each stage; mixers without a size give way."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    for stage, size in zip(stages, _per_stage([value] * len(stages) if pair else value, stages),
                           strict=True):  # fmt: skip
        sized = [config for config in stage["mixers"] if hasattr(config, "size")]
        stage["mixers"] = tuple(
            replace(config, size=size) if config in sized else config for config in stage["mixers"]
        ) if sized else (WindowConfig(size=size),)  # fmt: skip


def _qkv_bias(name: str, value: Any, own: Fields, stages: list[Fields]) -> None:
    def told(config: MixerConfig) -> MixerConfig:
        return replace(config, qkv_bias=value) if isinstance(config, SoftmaxConfig) else config

    for stage in stages:
        stage["mixers"] = tuple(map(told, stage["mixers"]))


KEYWORDS: dict[str, Callable[..., bool | None]] = {
    "embed_dim": _widths,
    "depths": _stage_field("depth"),
    "num_heads": _stage_field("heads"),
    "head_dim": _head_dim,
    "window_size": _window_size,
    "mlp_ratio": _stage_field("mlp_ratio"),
    "qkv_bias": _qkv_bias,
    "ape": _absolute,
    "patch_size": _patch_size,
    "always_partition": _always_partition,
    **dict.fromkeys(ANY_SIZE, _any_size),
    **dict.fromkeys(DROPOUTS, _dropout),
    **dict.fromkeys(PARTS, _part),
}
