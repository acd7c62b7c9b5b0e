"""Spatial-reduction attention by its definition: a list of tokens for every key."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def axis(n: int, ratio: int, keys: int | None, pad: bool) -> list[list[int]]:
    """The positions of each key along an axis of n tokens; those from n on are pads."""
    if keys is not None:  # the tokens that a key's share of the axis touches
        return [
            [t for t in range(n) if t * keys < (i + 1) * n and (t + 1) * keys > i * n]
            for i in range(keys)
        ]
    whole = [list(range(start, start + ratio)) for start in range(0, n, ratio)]
    return whole if pad else [cell for cell in whole if cell[-1] < n] or whole


def cells(mixer, h: int, w: int) -> list[list[tuple[int, int]]]:
    """The positions (row, column) of every key, row by row."""
    config = mixer.config
    pool = config.pool or (None, None)
    rows, cols = (
        axis(n, ratio, keys, config.remainder == "pad")
        for n, ratio, keys in zip((h, w), config.ratio, pool, strict=True)
    )
    return [[(r, c) for r in row for c in col] for row in rows for col in cols]


def pairs(mixer, h: int, w: int, leaks: bool = False) -> torch.Tensor:
    """(h w, h w) bool: every output reads the tokens of all keys, and its own to choose."""
    keys = cells(mixer, h, w)
    allowed = torch.eye(h * w, dtype=torch.bool) & (len(keys) > 1)
    for cell in keys:
        for r, c in cell:
            if r < h and c < w:
                allowed[:, r * w + c] = True
    return allowed


def _linear(p, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def _norm(p, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return unit * p["norm.weight"] + p["norm.bias"]


def _key(p, mixer, x: torch.Tensor, cell: list[tuple[int, int]]) -> torch.Tensor:
    """(b, c): what the key and the value of one cell are projected from."""
    h, w = x.shape[1:3]
    tokens = [x[:, r, c] if r < h and c < w else 0 * x[:, 0, 0] for r, c in cell]
    if "norm.weight" not in p:
        return tokens[0]
    weight = p["reduction.weight"].unflatten(1, (-1, mixer.dim)).mT  # (out, in, positions)
    if mixer.config.pool is not None:
        tokens = [sum(tokens) / len(tokens)]
    out = p["reduction.bias"] + sum(t @ weight[..., i].mT for i, t in enumerate(tokens))
    out = _norm(p, out)
    if mixer.config.pool is None:
        return out
    return out * (1 + torch.erf(out / math.sqrt(2))) / 2


def forward(mixer, x: torch.Tensor) -> torch.Tensor:
    p, config = dict(mixer.named_parameters()), mixer.config
    h, w = x.shape[1:3]
    reduced = torch.stack([_key(p, mixer, x, cell) for cell in cells(mixer, h, w)], dim=1)
    q = _linear(p, "q", x.flatten(1, 2))
    k, v = _linear(p, "kv", reduced).split(mixer.dim, dim=-1)
    if "v_bias" in p:
        v = v + p["v_bias"]
    out, d = [], mixer.dim // mixer.heads
    for head in range(mixer.heads):
        c = slice(head * d, (head + 1) * d)
        if config.scores == "cosine":
            scale = p["scores.logit_scale"][head].clamp(max=math.log(100)).exp()
            logits = F.normalize(q[..., c], dim=-1) @ F.normalize(k[..., c], dim=-1).mT * scale
        else:
            scale = d**-0.5 if config.qk_scale is None else config.qk_scale
            logits = q[..., c] @ k[..., c].mT * scale
        out.append(logits.softmax(dim=-1) @ v[..., c])
    return _linear(p, "proj", torch.cat(out, dim=-1)).unflatten(1, (h, w))


def cost(mixer, h: int, w: int) -> tuple[int, int, int, int]:
    """Two layers of queries, two of keys, the reduction, and two products a pair."""
    c, keys, config = mixer.dim, cells(mixer, h, w), mixer.config
    projection = 2 * c * c * h * w + 2 * c * c * len(keys)
    padding = 0
    if config.pool is not None:
        projection += c * c * len(keys)
    elif config.ratio != (1, 1):
        projection += c * c * sum(map(len, keys))
        padding = c * c * sum(r >= h or s >= w for cell in keys for r, s in cell)
    return projection, 2 * c * h * w * len(keys), 0, padding
