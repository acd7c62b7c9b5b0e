"""Hypothesis strategies over the registry: any mixer, any legal options, any map.

A mixer or an option that is added to `attention` and not here is a KeyError, not a silence.
"""

from __future__ import annotations

import dataclasses
import math

import hypothesis.strategies as st
import torch

import attention

BUILT_IN = (
    "axial", "cosine", "cross", "full", "pale", "shuffle", "token_mlp", "window",
)  # fmt: skip
SOFTMAX = tuple(name for name in BUILT_IN if name != "token_mlp")

sizes = st.one_of(
    st.integers(1, 7), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.sampled_from([9, (2, 8)])
)
OPTIONS = {
    "size": sizes,
    "shift": st.booleans(),
    "scores": st.sampled_from(["dot", "cosine"]),
    "position": st.sampled_from(["none", "bias", "log_cpb", "lepe"]),
    "qkv_bias": st.booleans(),
    "qk_scale": st.sampled_from([None, 0.25, 1.5]),
    "pretrained_window": st.sampled_from([None, 1, 3, (4, 9)]),
    "mask_value": st.sampled_from([None, None, -100.0, -1.5]),
    "mask_padding": st.booleans(),
    "order": st.sampled_from(["parallel", "sequential"]),
}


def legal(name: str, **options: object) -> bool:
    try:
        attention.make_config(name, **options)
    except attention.SpecError:
        return False
    return True


def fields_of(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(attention.make_config(name))]


@st.composite
def configs(draw, name: str, **fixed):
    """A legal config of mixer `name`; `fixed` options where the mixer has them."""
    chosen = {}
    for field in fields_of(name):
        chosen[field] = fixed[field] if field in fixed else draw(OPTIONS[field])
    if "position" in chosen:
        unshifted = {"shift": False} if "shift" in chosen else {}
        if not legal(name, position=chosen["position"], **unshifted):
            chosen["position"] = "log_cpb"  # what the message of the error points to
        if chosen["position"] != "log_cpb":
            chosen["pretrained_window"] = None
        if chosen["position"] == "lepe":
            chosen |= unshifted
        if chosen["scores"] == "cosine":
            chosen["qk_scale"] = None
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


@st.composite
def cases(draw, name: str, *, side: int = 14, head_dims=(1, 2, 3, 4), **fixed):
    """A Case of mixer `name` on a map of at most side x side tokens."""
    config = draw(configs(name, **fixed))
    heads = draw(st.sampled_from([1, 2, 4]))
    head_dim = draw(st.sampled_from(head_dims))
    try:
        config.check(heads * head_dim, heads)
    except attention.SpecError:
        heads = 2 * heads  # two branches share the heads
    return Case(
        text=str(config),
        dim=heads * head_dim,
        heads=heads,
        index=draw(st.integers(0, 3)),
        h=draw(st.integers(1, side)),
        w=draw(st.integers(1, side)),
        seed=draw(st.integers(0, 2**20)),
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
