"""The same backbone in timm, torchvision or transformers, on the very weights of ours.

The converters lead from their names to ours only.  The way back is found by sending numbers
through them: every element of their state gets its own number, and where it arrives in ours says
which of our values belongs there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attention.catalogue import CosineConfig, WindowConfig
from backbones.model.backbone import HierarchicalBackbone
from backbones.specs import variants
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from backbones.weights import match, reference_models
from transom.errors import SpecError, nearest

FUSED = "timm-fused"  # timm with its fused attention on, which it leaves off for Swin
LIBRARIES = (*reference_models.LIBRARIES, FUSED)
_FREE = ("name", "stages", "img_size", "in_channels", "num_classes", "patch_size", "drop_path",
         "small_maps")  # fmt: skip


def has_one(spec: BackboneSpec) -> bool:
    """Is this Swin or Swin V2 as these libraries build them, at any width, depth and window?"""
    like = parse("swinv2_t_w8" if spec.norm == "res_post" else "swin_t").to_dict()
    own = spec.to_dict()
    if any(own.get(key) != like.get(key) for key in {*own, *like} - set(_FREE)):
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
    """Raises SpecError, one line that names what exists, where there is no counterpart."""
    if library not in LIBRARIES:
        raise SpecError(f"--peers: no library is called {library!r}{nearest(library, LIBRARIES)}")
    if not has_one(parse(what)):
        known = ", ".join(name for name in variants.names() if has_one(variants.get(name).spec))
        raise SpecError(
            f"{library} has no counterpart of {what}; there are counterparts of {known}, at any "
            "size, depth and width"
        )


def make(library: str, spec: BackboneSpec, ours: HierarchicalBackbone) -> nn.Module:
    """The library's own model on the weights of ours, in float32 on the CPU, in eval mode.

    spec: as parsed, before `resolve`.  Drop path is off, as it is in ours.  Raises WeightsError.
    """
    source = "timm" if library == FUSED else library
    theirs = reference_models.reference_model(source, spec, None)
    body: Any = theirs.model if source == "transformers" else theirs  # without our wrapper
    state = body.state_dict()
    starts, end = _starts(state)
    arrived = match.convert(ours, _numbered(state, starts, source), source)
    values = torch.zeros(end)
    own = ours.state_dict()
    for name in list(arrived):
        places = arrived.pop(name).flatten().long()
        values[places] = own[name].detach().flatten().float().cpu()
    parameters = {name for name, _ in body.named_parameters()}
    with torch.no_grad():
        for key in parameters & set(starts):
            tensor = state[key]
            tensor.copy_(values[starts[key] : starts[key] + tensor.numel()].view_as(tensor))
    still(theirs)
    if library == FUSED:
        for module in theirs.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", True)  # noqa: B010  # not known to be a bool
    return theirs.eval()


def _starts(state: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    """The number of the first element of every tensor of floats; 0 is nobody's."""
    starts, n = {}, 1
    for key, tensor in state.items():
        if tensor.is_floating_point():
            starts[key], n = n, n + tensor.numel()
    return starts, n


def _numbered(state: dict[str, Tensor], starts: dict[str, int], source: str) -> dict[str, Tensor]:
    out = dict(state)
    cosine = any(key.endswith("logit_scale") for key in state)
    for key, start in starts.items():
        shape = state[key].shape
        # float64 has a number of its own for each of 2^53
        n = torch.arange(start, start + shape.numel(), dtype=torch.float64).view(shape)
        if source == "torchvision" and cosine and key.endswith("attn.qkv.bias"):
            n.chunk(3)[1].zero_()  # Swin V2 has no key bias: they keep one that is always 0
        out[key] = n
    return out


def still(model: nn.Module) -> None:
    """Switches off what drops at random in training, which would be another amount of work."""
    for module in model.modules():
        for name in ("drop_prob", "p", "drop_path_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
