"""Hypothesis strategies over the registry: any mixer, any legal options, any map.

A mixer or an option that is added to `attention` and not here is a KeyError, not a silence.
"""

from __future__ import annotations

import dataclasses
import math
import random

import hypothesis.strategies as st
import torch

import attention

BUILT_IN = (
    "axial", "axial_deeplab", "cosine", "cross", "deformable", "full", "halo", "messenger",
    "neighbourhood", "pale", "shuffle", "sra", "token_mlp", "window",
)  # fmt: skip

OWN_OPTIONS = {
    ("deformable", "position"): ["none", "bias", "conv"],
    ("deformable", "kernel"): [3, 3, 4, 5],
    ("halo", "position"): ["none", "bias", "log_cpb", "relative", "relative"],
}
OPTIONS = {
    "kernel": [1, 3, 3, 5, 7],
    "dilation": [1, 1, 2, 3],
    "block": [1, 2, 3, 4],
    "radius": [0, 1, 2, 3],
    "proj": [True, False],
    "stride": [1, 1, 2, 3],
    "groups": [1, 1, 2],
    "reach": [None, 0.5, 2.0],
    "table": [1, (3, 5), (4, 4)],
    "size": [1, 2, 3, 4, 5, 7, (1, 3), (2, 3), (3, 2), (4, 2), (2, 5), (5, 1), (4, 7), (8, 3)],
    "shift": [True, True, True, False],
    "scores": ["dot", "cosine"],
    "position": ["none", "bias", "log_cpb", "lepe", "dpb"],
    "interval": [None, None, 1, 2, 3],
    "qkv_bias": [True, True, False],
    "qk_scale": [None, 0.25, 1.5],
    "pretrained_window": [None, 1, 3, (4, 9)],
    "mask_value": [None, None, -100.0, -1.5],
    "mask_padding": [False, True],
    "order": ["parallel", "sequential"],
    "span": [1, 2, 3, 5, 9, 14],
    "ratio": [1, 2, 2, 2, 3, 4, (1, 3), (3, 2), 8],
    "pool": [None, None, None, 1, 3, (2, 5), 7],
    "remainder": ["drop", "drop", "pad"],
    "region": [1, 2, 2, 3],
    "hidden": [None, None, 3, 8],
    "along": ["both", "both", "height", "width"],
}


def legal(name: str, **options: object) -> bool:
    try:
        attention.make_config(name, **options)
    except attention.SpecError:
        return False
    return True


def fields_of(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(attention.make_config(name))]


SOFTMAX = tuple(name for name in BUILT_IN if "scores" in fields_of(name))


def fitting(config, heads: int, head_dim: int) -> tuple[int, int]:
    """(dim, heads) that the config takes: two branches share the heads, halves a head's width,
    the messengers of a region a width."""
    parts = getattr(config, "region", 1) ** 2
    head_dim *= parts // math.gcd(parts, heads * head_dim)
    for h, d in ((heads, head_dim), (2 * heads, head_dim), (heads, 2 * head_dim)):
        try:
            config.check(h * d, h)
            return h * d, h
        except attention.SpecError:
            continue
    raise AssertionError(f"{config} takes no {heads} heads of {head_dim}")


def draw_config(rng: random.Random, name: str, **fixed: object) -> attention.MixerConfig:
    """A legal config of mixer `name`; `fixed` options where the mixer has them."""
    chosen = {}
    for field in fields_of(name):
        values = OWN_OPTIONS.get((name, field)) or OPTIONS[field]
        chosen[field] = fixed[field] if field in fixed else rng.choice(values)
    if "position" in chosen:
        unshifted = {"shift": False} if "shift" in chosen else {}
        if not legal(name, position=chosen["position"], **unshifted):
            chosen["position"] = "log_cpb"  # what the message of the error points to
        if chosen["position"] != "log_cpb" and "pretrained_window" in chosen:
            chosen["pretrained_window"] = None
        if chosen["position"] == "lepe":
            chosen |= unshifted
    if chosen.get("scores") == "cosine" and "qk_scale" in chosen:
        chosen["qk_scale"] = None
    if chosen.get("pool") is not None:
        chosen |= {"ratio": 2, "remainder": "drop"}  # their defaults
    return attention.make_config(name, **chosen)


@dataclasses.dataclass(frozen=True)
class Case:
    """One mixer on one map, with weights drawn from a seed.  `text` rebuilds it by hand."""

    text: str
    dim: int
    heads: int
    index: int
    h: int
    w: int
    seed: int

    def build(self, dtype: torch.dtype = torch.float64, hot: bool = False) -> torch.nn.Module:
        mixer = attention.create(self.text, dim=self.dim, heads=self.heads, index=self.index)
        return randomise(mixer, self.seed, hot).to(dtype).eval()

    def input(self, batch: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        g = torch.Generator().manual_seed(self.seed + 1)
        x = torch.randn(batch, self.h, self.w, self.dim, generator=g, dtype=torch.float64)
        return x.to(dtype)


def draw_case(rng, name, *, side=14, head_dims=(1, 2, 3, 4), **fixed) -> Case:
    config = draw_config(rng, name, **fixed)
    if name == "sra":  # the norm of one channel, and the cosine of one number, read nothing
        head_dims = [d for d in head_dims if d > 1]
    heads, head_dim = rng.choice([1, 2, 4]), rng.choice(head_dims)
    dim, heads = fitting(config, heads, head_dim)
    return Case(
        text=str(config),
        dim=dim,
        heads=heads,
        index=rng.choice([0, 1, 1, 2, 3]),
        h=rng.choice([1, rng.randint(2, side), rng.randint(side // 2, side)]),
        w=rng.choice([1, rng.randint(2, side), rng.randint(side // 2, side)]),
        seed=rng.randrange(2**20),
    )


def cases(name: str, **options) -> st.SearchStrategy[Case]:
    """Cases of mixer `name` on maps of at most side x side tokens.

    One seed makes the whole case.  Drawn field by field, hypothesis repeats and varies a few
    examples: of 40 windows none was shifted on a map that its window did not cover.
    """
    return st.integers(0, 2**62).map(
        lambda seed: draw_case(random.Random(f"{name} {seed}"), name, **options)
    )


def randomise(mixer, seed: int, hot: bool = False):
    """Redraws every parameter and statistic, so that nothing rests on an initial 0 or 1.

    Outputs stay near 1 and logits near 3.  hot: half of the cosine scales beyond their clamp.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(like, std):
        return torch.randn(like.shape, generator=g, dtype=torch.float64) * std

    def uniform(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=g, dtype=torch.float64)

    with torch.no_grad():
        for name, p in [*mixer.named_parameters(), *mixer.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("logit_scale"):
                top = math.log(1000) if hot else math.log(8)
                p.copy_(uniform(p, math.log(2), top))
            elif name.endswith("running_var") or ".norm.weight" in name:
                p.copy_(uniform(p, 0.5, 2))
            elif p.ndim > 1 and not name.endswith("table"):
                p.copy_(normal(p, p[0].numel() ** -0.5))
            else:
                p.copy_(normal(p, 0.5))
    return mixer
