"""Counterparts of our backbones in timm, torchvision or transformers, with our weights.

The converters map their state to ours only.  The inverse is found by converting numbers: every
element of their state gets a unique number, and its position in our state tells which of our
values belongs to that element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attention.configs.windows import CosineConfig, WindowConfig
from backbones.model.backbone import HierarchicalBackbone
from backbones.specs import variants
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from backbones.weights import match, reference_models
from transom.errors import SpecError, nearest

FUSED = "timm-fused"  # timm with its fused attention on, which is off by default for Swin
LIBRARIES = (*reference_models.LIBRARIES, FUSED)
_ANY_VALUE = ("name", "stages", "img_size", "in_channels", "num_classes", "patch_size", "drop_path",
         "small_maps")  # fmt: skip


def has_counterpart(spec: BackboneSpec) -> bool:
    """True for Swin and Swin V2 as these libraries build them, at any width, depth and window."""
    published = parse("swinv2_t_w8" if spec.norm == "res_post" else "swin_t").to_dict()
    fields = spec.to_dict()
    fixed = {*fields, *published} - set(_ANY_VALUE)
    if any(fields.get(key) != published.get(key) for key in fixed):
        return False
    v2 = spec.norm == "res_post"
    for i, stage in enumerate(spec.stages):
        mixer = stage.mixers[0]
        wanted: Any = WindowConfig(size=getattr(mixer, "size", (7, 7)))
        if v2:
            window = getattr(mixer, "pretrained_window", None)
            wanted = CosineConfig(size=wanted.size, mask_value=-100, pretrained_window=window)
        doubled = stage.dim == spec.stages[0].dim * 2**i
        if len(stage.mixers) > 1 or mixer != wanted or not doubled:
            return False
        if stage.mlp_ratio != spec.stages[0].mlp_ratio:
            return False
    return True


def require(library: str, what: str) -> None:
    """Raises SpecError, with the backbones that have one, where there is no counterpart."""
    if library not in LIBRARIES:
        raise SpecError(f"--peers: no library is called {library!r}{nearest(library, LIBRARIES)}")
    if not has_counterpart(parse(what)):
        specs = {name: variants.get(name).spec for name in variants.names()}
        known = ", ".join(name for name, spec in specs.items() if has_counterpart(spec))
        raise SpecError(
            f"{library} has no counterpart of {what}; there are counterparts of {known}, at any "
            "size, depth and width"
        )


def make(library: str, spec: BackboneSpec, ours: HierarchicalBackbone) -> nn.Module:
    """A library's model with our weights, in float32 on the CPU, in eval mode, without drop path.

    Args:
        library: one of `LIBRARIES`.
        spec: as parsed, before `resolve`.
        ours: the backbone whose weights are copied.

    Raises:
        WeightsError: if the states do not match.
    """
    source = "timm" if library == FUSED else library
    theirs = reference_models.reference_model(source, spec, None)
    body: Any = theirs.model if source == "transformers" else theirs  # without our wrapper
    state = body.state_dict()
    first, end = _numbers(state)
    arrived = match.convert(ours, _numbered(state, first, source), source)
    values = torch.zeros(end)
    our_state = ours.state_dict()
    for name in list(arrived):
        numbers = arrived.pop(name).flatten().long()
        values[numbers] = our_state[name].detach().flatten().float().cpu()
    parameters = {name for name, _ in body.named_parameters()}
    with torch.no_grad():
        for key in parameters & set(first):
            tensor = state[key]
            tensor.copy_(values[first[key] : first[key] + tensor.numel()].view_as(tensor))
    disable_drops(theirs)
    if library == FUSED:
        for module in theirs.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", True)  # noqa: B010  # not known to be a bool
    return theirs.eval()


def _numbers(state: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    """(number of the first element by float tensor, total + 1); numbers count from 1."""
    first, n = {}, 1
    for key, tensor in state.items():
        if tensor.is_floating_point():
            first[key], n = n, n + tensor.numel()
    return first, n


def _numbered(state: dict[str, Tensor], first: dict[str, int], source: str) -> dict[str, Tensor]:
    out = dict(state)
    cosine = any(key.endswith("logit_scale") for key in state)
    for key, start in first.items():
        shape = state[key].shape
        # float64 holds integers up to 2^53 exactly
        numbers = torch.arange(start, start + shape.numel(), dtype=torch.float64).view(shape)
        if source == "torchvision" and cosine and key.endswith("attn.qkv.bias"):
            numbers.chunk(3)[1].zero_()  # Swin V2 has no key bias; theirs is always 0
        out[key] = numbers
    return out


def disable_drops(model: nn.Module) -> None:
    """Sets every drop probability to 0, so that training does a fixed amount of work."""
    for module in model.modules():
        for name in ("drop_prob", "p", "drop_path_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
