"""Small models for tests: every family, at sizes that run in milliseconds."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

import backbones
from analysis.models.influence import randomise

# Two blocks a stage, so that every mixer has its even and its odd form; even heads for branches.
_SMALL = [
    f"{i}.{field}={value}"
    for i, (dim, heads) in enumerate([(8, 2), (16, 2), (16, 4), (32, 4)], start=1)
    for field, value in (("dim", dim), ("heads", heads), ("depth", 2))
]
_SMALL += ["num_classes=10", "img_size=64"]

FAMILIES = {
    "swin": "swin_t",
    "swinv2": "swinv2_t_w8",
    "swinmlp": "swin_mlp_t_c24",
    "cswin": "cswin_t",
    "pale": "pale_t",
    "axial": "axial_t",
    "shuffle": "shuffle_t",
    "full": "full_t",
    "hybrid": "swin_t/1=window:size=4+axial/2=cross:size=2/3=pale:size=3/4=cosine:size=2",
}


def notation(family: str, *edits: str) -> str:
    """A small model of a family, as notation; the last edit of a field counts."""
    name, *own = FAMILIES[family].split("/")
    by_field = {edit.partition("=")[0]: edit for edit in (*_SMALL, *own, *edits)}
    return "/".join([name, *by_field.values()])


def create(family: str, *edits: str, seed: int = 0, **fields):
    """A small model of a family in eval mode, every parameter drawn anew."""
    model = backbones.create(notation(family, *edits), **fields)
    return randomise(model, seed).eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state_hash(model: nn.Module) -> str:
    """A digest of every name, shape and bit of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def error(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; NaN and another shape are infinitely wrong."""
    if found.shape != wanted.shape:
        return float("inf")
    difference = (found - wanted).detach().abs()
    return float("inf") if difference.isnan().any() else float(difference.amax())
