"""Neighbourhood and halo attention by their definitions: the keys of one query after the other.

Along an axis a key is a position and its step to the query, in the units of the position term.
Positions outside the map are pads: of a neighbourhood tokens of zeros that are projected, of a halo
keys and values of zeros.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

Keys = list[tuple[int, int]]  # (position, step of the table: query minus key)


def inward(n: int, kernel: int, dilation: int) -> list[Keys]:
    """For every position of an axis, k members of its class, the window clamped to the class."""
    out = []
    for i in range(n):
        members = list(range(i % dilation, n, dilation))
        place = members.index(i)
        first = min(max(place - kernel // 2, 0), len(members) - kernel)
        out.append([(members[j], place - j) for j in range(first, first + kernel)])
    return out


def around(n: int, block: int, radius: int) -> list[Keys]:
    """For every position of the blocks: the block and `radius` positions on each side of it."""
    return [
        [(j, i - j) for j in range(i - i % block - radius, i - i % block + block + radius)]
        for i in range(-(-n // block) * block)
    ]


def axes(mixer, h: int, w: int) -> tuple[list[Keys], list[Keys]]:
    config = mixer.config
    if str(config).startswith("halo"):
        return around(h, config.block, config.radius), around(w, config.block, config.radius)
    least = config.kernel * config.dilation
    rows, cols = (inward(max(n, least), config.kernel, config.dilation) for n in (h, w))
    return rows, cols


def side_of(mixer) -> int:
    """Keys along an axis whose steps the tables hold."""
    config = mixer.config
    if str(config).startswith("halo"):
        return config.block + 2 * config.radius
    return config.kernel


def pairs(mixer, h: int, w: int, leaks: bool = False) -> torch.Tensor:
    rows, cols = axes(mixer, h, w)
    out = torch.zeros(h, w, h, w, dtype=torch.bool)
    for i in range(h):
        for j in range(w):
            for r, _ in rows[i]:
                for c, _ in cols[j]:
                    if 0 <= r < h and 0 <= c < w:
                        out[i, j, r, c] = True
    return out.flatten(2).flatten(0, 1)


def _linear(p, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def _table(p, config, side: int) -> torch.Tensor:
    """(steps, steps, heads), from - (side - 1) up."""
    steps = range(1 - side, side)
    if config.position == "bias":
        return p["branch.bias.table"].unflatten(0, (len(steps), len(steps)))
    spans = config.pretrained_window or (side, side)
    coords = [
        [
            math.copysign(math.log2(1 + 8 * abs(t) / max(span - 1, 1)) / math.log2(8), t)
            for t, span in zip((r, c), spans, strict=True)
        ]
        for r in steps
        for c in steps
    ]
    hidden = _linear(p, "branch.bias.mlp.0", p["branch.bias.mlp.0.weight"].new_tensor(coords))
    values = 16 * (hidden.relu() @ p["branch.bias.mlp.2.weight"].mT).sigmoid()
    return values.unflatten(0, (len(steps), len(steps)))


def forward(mixer, x: torch.Tensor) -> torch.Tensor:
    p, config = dict(mixer.named_parameters()), mixer.config
    (h, w), side, d = x.shape[1:3], side_of(mixer), mixer.dim // mixer.heads
    rows, cols = axes(mixer, h, w)
    halo = str(config).startswith("halo")
    if not halo:
        x = F.pad(x, (0, 0, 0, len(cols) - w, 0, len(rows) - h))
    bias = p.get("qkv.bias")
    if "q_bias" in p:
        bias = torch.cat([p["q_bias"], torch.zeros_like(p["q_bias"]), p["v_bias"]])
    q, k, v = F.linear(x, p["qkv.weight"], bias).chunk(3, dim=-1)
    table = _table(p, config, side) if config.position in ("bias", "log_cpb") else None
    zero = torch.zeros_like(k[:, 0, 0])
    out = []
    for i in range(h):
        for j in range(w):
            near = [(r, c, a, b) for r, a in rows[i] for c, b in cols[j]]
            on_map = [0 <= r < x.shape[1] and 0 <= c < x.shape[2] for r, c, _, _ in near]
            at = [(r, c) if on else None for (r, c, _, _), on in zip(near, on_map, strict=True)]
            keys, values = (
                torch.stack([zero if place is None else t[:, *place] for place in at], dim=1)
                for t in (k, v)
            )
            heads = []
            for m in range(mixer.heads):
                own = slice(m * d, (m + 1) * d)
                query, key = q[:, i, j, None, own], keys[..., own]
                if config.scores == "cosine":
                    scale = p["branch.logit_scale"][m].clamp(max=math.log(100)).exp()
                    logits = (F.normalize(query, dim=-1) * F.normalize(key, dim=-1)).sum(-1) * scale
                else:
                    scale = d**-0.5 if config.qk_scale is None else config.qk_scale
                    logits = (query * key).sum(-1) * scale
                if table is not None:
                    term = [table[a + side - 1, b + side - 1, m] for _, _, a, b in near]
                    logits = logits + torch.stack(term)
                if config.position == "relative":  # rows of the tables: key minus query, from 0
                    zero_step = side - 1 + config.radius
                    up = [p["branch.relative.rows.weight"][zero_step - a] for _, _, a, _ in near]
                    along = [p["branch.relative.cols.weight"][zero_step - b] for _, _, _, b in near]
                    logits = logits + (query * (torch.stack(up) + torch.stack(along))).sum(-1)
                if halo and config.mask_padding:
                    logits = logits.masked_fill(~torch.tensor(on_map), -math.inf)
                heads.append((logits.softmax(-1)[..., None] * values[..., own]).sum(1))
            out.append(torch.cat(heads, dim=-1))
    y = torch.stack(out, dim=1).unflatten(1, (h, w))
    return _linear(p, "proj", y) if "proj.weight" in p else y


def cost(mixer, h: int, w: int) -> tuple[int, int, int, int]:
    """Two products of `dim` numbers a pair; the layers, on the map that they take."""
    rows, cols = axes(mixer, h, w)
    config, c, side = mixer.config, mixer.dim, side_of(mixer)
    tokens = len(rows) * len(cols)
    count = sum(map(len, rows)) * sum(map(len, cols))
    real = int(pairs(mixer, h, w).sum())
    mixing, padding, position = 2 * c * count, 2 * c * (count - real), 0
    if config.position == "log_cpb":
        position = (2 * side - 1) ** 2 * (2 * 512 + 512 * mixer.heads)
    if config.position == "relative":
        position = 2 * c * (2 * side - 1) * tokens
        padding += 2 * c * (2 * side - 1) * (tokens - h * w)
    if str(config).startswith("halo"):
        return (4 if config.proj else 3) * c * c * h * w, mixing, position, padding
    return 4 * c * c * tokens, mixing, position, padding + 4 * c * c * (tokens - h * w)
