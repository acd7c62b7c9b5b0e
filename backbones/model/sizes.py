"""Counts parameters and MACs of a spec, stage by stage, on the meta device."""

from __future__ import annotations

from typing import NamedTuple

import torch

from backbones.model.backbone import HierarchicalBackbone
from backbones.specs.spec import BackboneSpec
from transom.errors import SpecError


class Size(NamedTuple):
    """params: parameters.  macs: multiply-adds of one image."""

    params: int
    macs: int


def stage_sizes(spec: BackboneSpec, img_size: tuple[int, int] | None = None) -> list[Size]:
    """One Size per stage (the stem is in the first), then the head with the last norm.

    Raises SpecError for a mixer that states no cost.
    """
    with torch.device("meta"):
        model = HierarchicalBackbone(spec)
    params, macs = ([0] * (len(spec.stages) + 1) for _ in range(2))
    for name, parameter in model.named_parameters():
        params[_stage(name, len(spec.stages))] += parameter.numel()
    try:
        parts = model.cost(*(img_size or spec.img_size))
    except NotImplementedError:
        raise SpecError(f"{spec.name}: one of its mixers states no cost") from None
    for part in parts:
        macs[_stage(part.module, len(spec.stages))] += part.macs
    return list(map(Size, params, macs))


def total(sizes: list[Size]) -> Size:
    return Size(sum(size.params for size in sizes), sum(size.macs for size in sizes))


def _stage(module: str, stages: int) -> int:
    first, *rest = module.split(".")
    if first in ("stages", "out_norms"):
        return int(rest[0])
    return 0 if first == "stem" else stages
