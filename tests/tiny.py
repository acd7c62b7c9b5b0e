"""Small models for tests: every family, at sizes that run in milliseconds."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
from torch import Tensor, nn

import attention
import backbones
from analysis.models.influence import randomise

# Two blocks a stage, so that every mixer has its even and its odd form; even heads for branches.
_STAGES = [
    [f"{i}.dim={dim}", f"{i}.heads={heads}", f"{i}.depth=2"]
    for i, (dim, heads) in enumerate([(8, 2), (16, 2), (16, 4), (32, 4)], start=1)
]
_SMALL = ["num_classes=10", "img_size=64"]

FAMILIES = {
    "swin": "swin_t",
    "swinv2": "swinv2_t_w8",
    "swinmlp": "swin_mlp_t_c24",
    "cswin": "cswin_t",
    "pale": "pale_t",
    "axial": "axial_t",
    "shuffle": "shuffle_t",
    "shuffletransformer": "shuffletransformer_t",
    "crossformer": "crossformer_t/1.dim=48/2.dim=48/3.dim=64/4.dim=64/"  # dpb needs some width
    "1=shuffle:size=3,interval=2,position=dpb,mask_padding=true/"
    "2=shuffle:size=2x3,interval=2,position=dpb/4=shuffle:size=2,interval=1,position=dpb",
    "maxvit": "maxvit_t/stem_dim=12/1=shuffle:size=4/2=shuffle:size=3/1.depth=3",
    "nat": "dinat_base/1=neighbourhood:kernel=3+neighbourhood:kernel=3,dilation=2/"
    "2=neighbourhood:kernel=3/3=halo:block=2,radius=1/4=halo:block=1,radius=1,position=bias",
    "dat": "dat_t/1=window:size=4/2=deformable:kernel=3,position=bias,table=4/"
    "3=axial_deeplab:span=3/4=deformable:stride=1,kernel=3,reach=none,position=conv,groups=2",
    "full": "full_t",
    "pvt": "pvt_v2_b0/1=sra:ratio=4/2=sra:ratio=2",
    "twins": "twins_svt_s/2=window:size=3,shift=false,position=none+sra:ratio=2/"
    "4=window:size=2,shift=false,position=none+sra:pool=2",
    "msg": "msg_t/1=messenger:size=3,region=2/2=messenger:size=3,region=2/"
    "3=messenger:size=3,region=2/4=messenger:size=3,region=1,position=none",  # logits read no bias
    "vit": "vit_tiny_patch16_224/patch_size=8/1.tokens=3",  # a class token and two registers
    "pvt1": "pvt_tiny/1=sra:ratio=4/2=sra:ratio=2",
    "hybrid": "swin_t/1=window:size=4+axial/2=cross:size=2/3=pale:size=3/4=cosine:size=2",
}


LATER = ("axial", "shuffle", "full", "twins", "shuffletransformer", "pvt1")
SOME = [  # families whose parts the fast tier has not seen in another
    pytest.param(family, marks=[pytest.mark.slow] * (family in LATER)) for family in FAMILIES
]


def notation(family: str, *edits: str) -> str:
    """A small model of a family, as notation; the last edit of a field counts."""
    name, *own = FAMILIES[family].split("/")
    stages = _STAGES[: len(backbones.parse(name).stages)]
    small = (*itertools.chain(*stages), *_SMALL)
    by_field = {edit.partition("=")[0]: edit for edit in (*small, *own, *edits)}
    return "/".join([name, *by_field.values()])


def create(family: str, *edits: str, seed: int = 0, **fields):
    """A small model of a family in eval mode, every parameter drawn anew."""
    model = randomise(backbones.create(notation(family, *edits), **fields), seed)
    normed = any(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) for part in model.modules())
    return settled(model) if normed else model.eval()


@torch.no_grad()
def settled(model):
    """The model with the statistics of a batch in its batch norms, as training leaves them.

    With statistics of other maps nothing is normed, and rounding grows from block to block.
    """
    norms = [part for part in model.modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with attention.backend("reference"):  # a part of a batch would have statistics of its own
        model(images(8, model.spec.in_channels, 64, 64, seed=1))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
    return model.eval()


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
