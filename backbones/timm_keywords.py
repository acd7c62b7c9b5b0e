"""Keywords of timm's SwinTransformer that are fields of our notation.

A keyword is accepted where the backbone has its value already, otherwise it is refused with the
notation of the backbone that it asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from attention.configs.config import MixerConfig
from attention.configs.softmax import SoftmaxConfig
from attention.configs.windows import WindowConfig
from backbones.specs import variants
from backbones.specs.construct import from_dict
from backbones.specs.spec import BackboneSpec, fields_of
from backbones.specs.stage import StageSpec
from backbones.specs.writing import difference, to_notation
from transom.errors import SpecError, nearest, one_line
from transom.fields import read_flag, read_number

Fields = dict[str, Any]  # of a stage, or of the backbone

COUNTS = ("depths", "num_heads")  # as many as there are stages
DROPOUTS = ("proj_drop_rate", "attn_drop_rate", "drop_block_rate")
ANY_SIZE = ("strict_img_size", "dynamic_img_size")  # every size runs, whatever they say
PARTS = {  # the values that our backbones have
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


def check(spec: BackboneSpec, keywords: Mapping[str, Any]) -> None:
    """Accepts keywords of timm's SwinTransformer only if the backbone has these values already.

    Args:
        spec: the backbone that is being built.
        keywords: arguments of timm's SwinTransformer that TimmBackbone has not itself.

    Raises:
        SpecError: the keywords ask for another backbone; the message has its notation.
        TypeError: timm's SwinTransformer has no such keyword.

    Example:
        >>> from backbones.specs.notation import parse
        >>> check(parse("swin_t"), {"window_size": 7})
        >>> check(parse("swin_t"), {"patch_size": 2})
        Traceback (most recent call last):
        transom.errors.SpecError: patch_size=2: say spec="swin_t/patch_size=2"
    """
    backbone: Fields = {name: getattr(spec, name) for name in fields_of(BackboneSpec)}
    fields = fields_of(StageSpec)
    stages = [{name: getattr(stage, name) for name in fields} for stage in spec.stages]
    other, why = [], []
    for name, value in keywords.items():
        if name not in KEYWORDS:
            raise TypeError(f"unexpected keyword argument {name!r}{nearest(name, KEYWORDS)}")
        if value is None:
            continue
        shown = f"{name}={one_line(getattr(value, '__name__', repr(value)))}"
        if name in COUNTS and isinstance(value, (list, tuple)) and len(value) != len(stages):
            base = re.sub(r"/stages=\d", "", _notation_of(spec, spec))
            raise SpecError(f'{shown}: say spec="{base}/stages={len(value)}", then {name} again')
        before = str((backbone, stages))
        try:
            differs = KEYWORDS[name](name, value, backbone, stages)
        except SpecError as error:
            raise SpecError(f"{shown}: {error}") from None
        except (TypeError, ValueError) as error:
            raise SpecError(f"{shown}: expected {one_line(str(error))}") from None
        if differs or str((backbone, stages)) != before:
            other.append(shown)
            why += [WHY[name]] if name in WHY else []
    if not other:
        return
    keywords_asked = ", ".join(other)
    try:
        built = from_dict({**backbone, "stages": stages})
    except SpecError as error:
        pair = ("embed_dim" in keywords) != ("num_heads" in keywords)
        hint = "; embed_dim and num_heads go together" if pair else ""
        raise SpecError(f"{keywords_asked}: {error}{hint}") from None
    reason = f" ({'; '.join(why)})" if why else ""
    raise SpecError(f'{keywords_asked}: say spec="{_notation_of(built, spec)}"{reason}')


def _notation_of(built: BackboneSpec, spec: BackboneSpec) -> str:
    """The shortest notation of `built`, from the variant in the name of `spec` if it has one."""
    base = spec.name.partition("/")[0]
    return difference(base, built) if variants.known(base) else to_notation(built)


# Each function writes the value of a keyword into the fields of the backbone or of its stages; it
# returns True where our backbones differ and have no such field.


def _dropout(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> bool:
    rate = read_number(value)
    backbone["drop_path"] = max(backbone["drop_path"], rate)
    return rate != 0


def _named_part(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> bool:
    return getattr(value, "__name__", value) not in PARTS[name]


def _any_size(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
    read_flag(value)


def _always_partition(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
    backbone["small_maps"] = "pad" if read_flag(value) else backbone["small_maps"]


def _absolute(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
    if read_flag(value) != (backbone["position"] == "absolute"):
        backbone["position"] = "absolute" if value else "none"


def _patch_size(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
    backbone["patch_size"] = value


def _stage_field(field: str) -> Callable[..., None]:
    def write(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
        for stage, item in zip(stages, _per_stage(value, stages), strict=True):
            stage[field] = item

    return write


def _per_stage(value: Any, stages: list[Fields]) -> list[Any]:
    """A list with one value per stage, of such a list or of one value for all."""
    if not isinstance(value, (list, tuple)):
        return [value] * len(stages)
    if len(value) != len(stages):
        raise ValueError(f"one value, or {len(stages)}: one a stage")
    return list(value)


def _widths(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
    """Sets the widths; a single number is the width of the first stage, and doubles."""
    single = not isinstance(value, (list, tuple))
    widths = [value * 2**i for i in range(len(stages))] if single else value
    _stage_field("dim")(name, widths, backbone, stages)


def _head_dim(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
    for stage, item in zip(stages, _per_stage(value, stages), strict=True):
        stage["heads"] = max(stage["dim"] // item, 1)


def _window_size(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
    """Sets windows of one side, of (height, width), or of either per stage.

    A stage whose mixers have no size gets windows instead.
    """
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    for stage, size in zip(stages, _per_stage([value] * len(stages) if pair else value, stages),
                           strict=True):  # fmt: skip
        sized = [config for config in stage["mixers"] if hasattr(config, "size")]
        stage["mixers"] = tuple(
            replace(config, size=size) if config in sized else config for config in stage["mixers"]
        ) if sized else (WindowConfig(size=size),)  # fmt: skip


def _qkv_bias(name: str, value: Any, backbone: Fields, stages: list[Fields]) -> None:
    def with_bias(config: MixerConfig) -> MixerConfig:
        return replace(config, qkv_bias=value) if isinstance(config, SoftmaxConfig) else config

    for stage in stages:
        stage["mixers"] = tuple(map(with_bias, stage["mixers"]))


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
    **dict.fromkeys(PARTS, _named_part),
}
