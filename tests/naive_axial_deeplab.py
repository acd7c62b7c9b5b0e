"""Axial-DeepLab's layer by its definition: one query and one key at a time."""

from __future__ import annotations

import torch


def pairs(mixer, h: int, w: int, leaks: bool = False) -> torch.Tensor:
    """(h w, h w) bool: which token may influence which output."""
    allowed = torch.zeros(h * w, h * w, dtype=torch.bool)
    along = mixer.config.along
    for r in range(h):
        for c in range(w):
            for i in range(h):
                for j in range(w):
                    down = along != "width" and abs(r - i) < mixer.config.span
                    across = along != "height" and abs(c - j) < mixer.config.span
                    allowed[r * w + c, i * w + j] = (down or r == i) and (across or c == j)
    return allowed


def forward(mixer, x: torch.Tensor) -> torch.Tensor:
    p = dict(mixer.named_parameters()) | dict(mixer.named_buffers())
    for axis in ("height", "width"):
        if f"layers.{axis}.table" not in p:
            continue
        turned = x.transpose(1, 2) if axis == "height" else x
        b, lines, n, c = turned.shape
        y = _axis(p, f"layers.{axis}.", turned.reshape(b * lines, n, c), mixer)
        y = y.reshape(b, lines, n, c)
        x = y.transpose(1, 2) if axis == "height" else y
    return x


def _norm(p, name: str, x: torch.Tensor, training: bool) -> torch.Tensor:
    """Batch norm of the last axis."""
    mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    if training:
        rest = tuple(range(x.dim() - 1))
        mean, var = x.mean(rest), x.var(rest, correction=0)
    return (x - mean) / (var + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def _axis(p, prefix: str, x: torch.Tensor, mixer) -> torch.Tensor:
    (b, n, _), heads, span = x.shape, mixer.heads, mixer.config.span
    d = mixer.dim // heads
    qkv = _norm(p, prefix + "norm_qkv", x @ p[prefix + "qkv.weight"].mT, mixer.training)
    table = p[prefix + "table"]  # (2 d, 2 span - 1): of queries, keys, values
    visible = [[j for j in range(n) if abs(i - j) < span] for i in range(n)]
    terms = x.new_zeros(b, n, n, 3 * heads)

    def position(i: int, j: int) -> torch.Tensor:  # beyond the span: of the last step inside
        return table[:, min(max(i - j, 1 - span), span - 1) + span - 1]

    parts = [qkv[..., 2 * d * m : 2 * d * (m + 1)] for m in range(heads)]
    rows = []
    for i in range(n):
        columns = []
        for j in range(n):
            q_at, k_at = position(i, j)[: d // 2], position(j, i)[d // 2 : d]
            products, of_q, of_k = [], [], []
            for part in parts:
                q, k = part[:, i, : d // 2], part[:, j, d // 2 : d]
                products.append((q * k).sum(-1))
                of_q.append((q * q_at).sum(-1))
                of_k.append((k * k_at).sum(-1))
            columns.append(torch.stack(products + of_q + of_k, dim=-1))
        rows.append(torch.stack(columns, dim=1))
    terms = _norm(p, prefix + "norm_scores", torch.stack(rows, dim=1), mixer.training)
    scores = terms[..., :heads] + terms[..., heads : 2 * heads] + terms[..., 2 * heads :]
    out = []
    for i in range(n):
        weights = scores[:, i, visible[i]].softmax(dim=1)  # (b, keys, heads)
        channels = []
        for m, part in enumerate(parts):
            for c in range(d):
                value = x.new_zeros(b)
                offset = x.new_zeros(b)
                for at, j in enumerate(visible[i]):
                    value = value + weights[:, at, m] * part[:, j, d + c]
                    offset = offset + weights[:, at, m] * position(i, j)[d + c]
                channels += [value, offset]
        out.append(torch.stack(channels, dim=-1))
    both = _norm(p, prefix + "norm_out", torch.stack(out, dim=1), mixer.training)
    return both[..., 0::2] + both[..., 1::2]


def cost(mixer, h: int, w: int) -> tuple[int, int, int, int]:
    """(projection, mixing, position, padding): every pair of an axis is computed."""
    c, projection, mixing, position = mixer.dim, 0, 0, 0
    for axis, n in (("height", h), ("width", w)):
        if mixer.config.along in ("both", axis):
            projection += 2 * h * w * c * c
            for _ in range(h * w * n):
                mixing += c // 2 + 2 * c
                position += c
    return projection, mixing, position, 0
