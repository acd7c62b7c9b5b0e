"""Deformable attention by its definition: one corner of a point's cell at a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def pairs(mixer, h: int, w: int, leaks: bool = False) -> torch.Tensor:
    """(h w, h w) bool: through the offsets every token may influence every output."""
    return torch.ones(h * w, h * w, dtype=torch.bool)


def _counts(mixer, h: int, w: int) -> tuple[int, int]:
    k, s = mixer.config.kernel, mixer.config.stride
    pad = 0 if k == s else k // 2
    rows, cols = (len(range(0, max(n + 2 * pad - k, 0) + 1, s)) for n in (h, w))
    return rows, cols


def _coordinate(index: float, count: int) -> float:
    return 2 * index / (count - 1) - 1 if count > 1 else 2 * index - 1


def _at(image: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(..., c): bilinear samples of (h, w, c) at points (...) in -1 to 1; outside are zeros."""
    h, w = image.shape[:2]
    r, c = (y + 1) / 2 * (h - 1), (x + 1) / 2 * (w - 1)
    out = image.new_zeros(*y.shape, image.shape[2])
    for below in (0, 1):
        for right in (0, 1):
            i, j = r.floor() + below, c.floor() + right
            share = (1 - (r - i).abs()) * (1 - (c - j).abs())
            share = share * ((i >= 0) & (i < h) & (j >= 0) & (j < w))
            corner = image[i.long().clamp(0, h - 1), j.long().clamp(0, w - 1)]
            out = out + corner * share[..., None]
    return out


def _offsets(p, q: torch.Tensor, mixer) -> torch.Tensor:
    """(h, w, c of a group) -> (rows, cols, 2)"""
    k, s = mixer.config.kernel, mixer.config.stride
    pad = 0 if k == s else k // 2
    h, w, c = q.shape
    rows, cols = _counts(mixer, h, w)
    total = p["offsets.depthwise.bias"].expand(rows, cols, c)
    for a in range(k):
        for b in range(k):
            weight = p["offsets.depthwise.weight"][:, 0, a, b]
            for i in range(rows):
                for j in range(cols):
                    r, t = i * s + a - pad, j * s + b - pad
                    if 0 <= r < h and 0 <= t < w:
                        here = torch.zeros(rows, cols, 1, dtype=q.dtype)
                        here[i, j] = 1
                        total = total + here * q[r, t] * weight
    centred = total - total.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = normed * p["offsets.norm.weight"] + p["offsets.norm.bias"]
    hidden = normed * 0.5 * (1 + torch.erf(normed / math.sqrt(2)))
    return hidden @ p["offsets.pointwise.weight"].mT


def forward(mixer, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([_one(mixer, image) for image in x])


def _one(mixer, x: torch.Tensor) -> torch.Tensor:
    p = dict(mixer.named_parameters())
    (h, w, dim), config, heads = x.shape, mixer.config, mixer.heads
    d, width = dim // heads, dim // config.groups

    def linear(name: str, t: torch.Tensor) -> torch.Tensor:
        return F.linear(t, p[f"{name}.weight"], p.get(f"{name}.bias"))

    q = linear("q", x)
    rows, cols = _counts(mixer, h, w)
    points, samples = [], []
    for g in range(config.groups):
        part = slice(g * width, (g + 1) * width)
        moved = _offsets(p, q[..., part], mixer)
        at = [
            torch.tensor([_coordinate(i + 0.5, n) for i in range(n)], dtype=x.dtype)
            for n in (rows, cols)
        ]
        y, c = at[0][:, None] + moved[..., 0] * 0, at[1][None] + moved[..., 1] * 0
        if config.reach is None:
            y, c = ((t + moved[..., n]).clamp(-1, 1) for n, t in enumerate((y, c)))
        else:
            span = [config.reach / (n - 1 if n > 1 else 1) for n in (rows, cols)]
            y, c = (t + moved[..., n].tanh() * span[n] for n, t in enumerate((y, c)))
        points.append((y.flatten(), c.flatten()))
        samples.append(_at(x[..., part], y.flatten(), c.flatten()))
    found = torch.cat(samples, dim=-1)  # (keys, c)
    k, v = linear("k", found), linear("v", found)
    out = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        of_q, of_k = q[..., part].reshape(h * w, d), k[:, part]
        if config.scores == "cosine":
            scale = p["scores.logit_scale"][head].clamp(max=math.log(100)).exp()
            logits = F.normalize(of_q, dim=-1) @ F.normalize(of_k, dim=-1).mT * scale
        else:
            scale = d**-0.5 if config.qk_scale is None else config.qk_scale
            logits = of_q @ of_k.mT * scale
        if config.position == "bias":
            table = p["table"][head][..., None]
            y, c = points[head // (heads // config.groups)]
            i = torch.tensor([_coordinate(i, h) for i in range(h)], dtype=x.dtype)
            j = torch.tensor([_coordinate(j, w) for j in range(w)], dtype=x.dtype)
            down = (i.repeat_interleave(w)[:, None] - y) / 2  # (h w, keys)
            across = (j.repeat(h)[:, None] - c) / 2
            logits = logits + _at(table, down, across)[..., 0]
        out.append(logits.softmax(-1) @ v[:, part])
    y = torch.cat(out, dim=-1).view(h, w, dim)
    if config.position == "conv":
        around = F.pad(q, (0, 0, 1, 1, 1, 1))
        y = y + p["conv.bias"]
        for a in range(3):
            for b in range(3):
                y = y + around[a : a + h, b : b + w] * p["conv.weight"][:, 0, a, b]
    return linear("proj", y)


def cost(mixer, h: int, w: int) -> tuple[int, int, int, int]:
    """(projection, mixing, position, padding)"""
    c, k = mixer.dim, mixer.config.kernel
    rows, cols = _counts(mixer, h, w)
    keys = rows * cols
    projection = 2 * h * w * c * c + 2 * keys * c * c + keys * c * k * k + keys * c * 2
    position = 9 * h * w * c if mixer.config.position == "conv" else 0
    return projection, 2 * h * w * keys * c, position, 0
