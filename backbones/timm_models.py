"""Registers every variant as a timm model, by ``import backbones.timm_models``.

    timm.create_model("transom_pale_t", features_only=True)
    timm.create_model("transom", spec="swin_t/3=pale:size=7")
    timm.create_model(register("my_hybrid", "swin_t/3=pale:size=7"))

All names begin with `transom`, so that none replaces timm's.  Maps are NCHW.  There are no
released weights: pretrained=True is refused by timm.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import timm
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._features import FeatureGetterNet
from torch import nn

from backbones.model.stage import Stage
from backbones.parts.stem import Stem
from backbones.specs import variants
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from backbones.timm_backbone import TimmBackbone
from transom.errors import SpecError, one_line

for _part in (Stem, Stage):  # symbolic tracing stops at these: padding depends on the size
    register_notrace_module(_part)

PREFIX = "transom_"


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    levels = tuple(range(min(4, len(parse(kwargs["spec"]).stages))))
    feature_cfg = {
        "out_indices": kwargs.pop("out_indices", levels), "flatten_sequential": True,
    }  # fmt: skip
    spec = parse(kwargs["spec"])
    handed_on = spec.pool == "token" or any(map(spec.goes_on, range(len(spec.stages))))
    if kwargs.get("features_only") and (spec.out_norms or handed_on):
        kind = kwargs.setdefault("feature_cls", "getter")
        if kind not in ("getter", FeatureGetterNet):
            what = "out_norms are not" if spec.out_norms else "tokens stand beside them"
            raise SpecError(
                f"feature_cls={kind!r}: it takes maps between the stages, where {what}; "
                "leave it out, or say 'getter'"
            )
    return build_model_with_cfg(
        TimmBackbone, variant, pretrained, feature_cfg=feature_cfg, **kwargs
    )


def _cfg(spec: BackboneSpec) -> dict[str, Any]:
    return {
        "url": "", "num_classes": spec.num_classes,
        "input_size": (spec.in_channels, *spec.img_size),
        "pool_size": spec.pooled_grid(spec.img_size), "crop_pct": 0.9,
        "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
        "fixed_input_size": False, "first_conv": "stem.conv", "classifier": "head",
    }  # fmt: skip


default_cfgs = generate_default_cfgs(
    {
        "transom.untrained": _cfg(variants.get("swin_t").spec),
        **{f"{PREFIX}{name}.untrained": _cfg(variants.get(name).spec) for name in variants.names()},
    }
)


def _entry(name: str, spec: str, source: str) -> Callable[..., nn.Module]:
    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(PREFIX + name, pretrained, spec=spec, **kwargs)

    make.__name__ = make.__qualname__ = PREFIX + name
    make.__doc__ = f"{name}: {source}."
    return make


_registered: dict[str, str] = {}  # the specs by the names given to `register`


def register(name: str, spec: str) -> str:
    """Registers a backbone of the notation with timm under the name ``transom_`` + `name`.

    Libraries that pass nothing but a name to timm, such as transformers' TimmBackbone, need it.  A
    second call with an equal spec changes nothing.

    Args:
        name: lower-case letters, digits and _; the first is a letter, the longest has 64.
        spec: the notation.

    Returns:
        The name for ``timm.create_model``.

    Raises:
        SpecError: the spec cannot be built, or the name has other characters or is taken.

    Example:
        >>> import timm
        >>> from backbones.timm_models import register
        >>> register("doc_hybrid", "swin_t/stages=2/2=pale:size=7")
        'transom_doc_hybrid'
        >>> timm.create_model("transom_doc_hybrid", num_classes=10).num_classes
        10
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise SpecError(f"{one_line(name)!r}: a name has lower-case letters, digits and _")
    if name in variants.names() or _registered.get(name, spec) != spec:
        raise SpecError(f"{name}: {PREFIX}{name} is another backbone; take another name")
    parsed = parse(spec)
    if name not in _registered:
        _registered[name] = spec
        default_cfgs.update(generate_default_cfgs({f"{PREFIX}{name}.untrained": _cfg(parsed)}))
        register_model(_entry(name, spec, spec))
    return PREFIX + name


@register_model
def transom(pretrained: bool = False, *, spec: str = "swin_t", **kwargs: Any) -> nn.Module:
    """Builds any backbone of the notation, for ``timm.create_model("transom", spec=...)``.

    Args:
        pretrained: False; there are no released weights.
        spec: the notation.
        kwargs: arguments of `TimmBackbone`, and timm's features_only and out_indices.

    Returns:
        A `TimmBackbone`, or timm's wrapper around it with features_only.

    Raises:
        SpecError: the request cannot be built.
        RuntimeError: pretrained is True; timm raises it.

    Example:
        >>> import timm, torch
        >>> import backbones.timm_models
        >>> net = timm.create_model("transom", spec="swin_t/stages=2", features_only=True,
        ...                         out_indices=(0, 1))
        >>> [tuple(level.shape) for level in net(torch.zeros(1, 3, 32, 32))]
        [(1, 96, 8, 8), (1, 192, 4, 4)]
    """
    parsed = parse(spec)
    # without these, timm passes the classes and channels of its default configuration
    defaults = {"num_classes": parsed.num_classes, "in_chans": parsed.in_channels}
    return _create("transom", pretrained, spec=spec, **defaults | kwargs)


for _name in variants.names():
    register_model(_entry(_name, _name, variants.get(_name).source))

__all__ = ["PREFIX", "TimmBackbone", "default_cfgs", "register", "timm", "transom"]
