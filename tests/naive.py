"""The definition of every built-in mixer, written slowly: who may attend to whom, and with what.

Nothing of `attention/` is used but the config, the numbers in it and the names of the parameters.
Each axis of a map is a list of positions; a position knows the piece it is computed in, the part
of that piece it may attend to, and its step inside the group.  Everything else (dense masked
softmax over all pairs, regions, costs) is read off these lists.

    forward(mixer, x)              what mixer(x) must be, differentiable in x and the parameters
    pairs(mixer, h, w)             (h w, h w) bool: which token may influence which output
    region(mixer, h, w, query)     (h, w) bool: one row of it
    cost(mixer, h, w)              (projection, mixing, position, padding) in multiply-adds
"""

from __future__ import annotations

import math
from typing import NamedTuple

import naive_axial_deeplab
import naive_deformable
import naive_neighbours
import naive_sra
import torch
import torch.nn.functional as F


class Axis(NamedTuple):
    """One padded axis.  Position `before + i` is token i; what is outside the map is a pad."""

    length: int  # tokens
    before: int  # pads in front of them
    total: int  # tokens and pads
    extent: int  # steps in a group
    piece: list[int]  # positions with equal numbers are computed together
    part: list[int]  # of these, the ones that may attend to each other
    step: list[int]  # the coordinate inside the group


def whole(n: int, total: int | None = None) -> Axis:
    total = total or n
    return Axis(n, 0, total, total, [0] * total, [0] * total, list(range(total)))


def contiguous(n: int, side: int, shift: int = 0, split: bool = False) -> Axis:
    """Runs of `side`; shifted, token i belongs to run floor((i - shift) / side).

    A cyclic shift computes the first and the last, incomplete, run as one piece of two parts.
    split: the pads stand on both ends, the smaller share first.
    """
    total = -(-n // side) * side
    if total == side:
        shift = 0  # one window covers the axis: nothing to shift
    at = range(total)
    return Axis(
        length=n,
        before=(total - n) // 2 if split else 0,
        total=total,
        extent=side,
        piece=[((i - shift) % total) // side for i in at],
        part=[(i - shift) // side for i in at],
        step=[(i - shift) % side for i in at],
    )


def interlaced(n: int, side: int) -> Axis:
    """`count` groups of `side`: group g holds g, g + count, g + 2 count, ..."""
    count = -(-n // side)
    at = range(count * side)
    group = [i % count for i in at]
    return Axis(n, 0, count * side, side, group, group, [i // count for i in at])


def nested(n: int, side: int, interval: int) -> Axis:
    """Pieces of side * interval tokens, in each of which `interval` groups are interlaced."""
    whole = side * interval
    at = range(-(-n // whole) * whole)
    group = [interval * (i // whole) + i % interval for i in at]
    return Axis(n, 0, len(at), side, group, group, [i % whole // interval for i in at])


def displaced(n: int, side: int, shift: int) -> Axis:
    """Swin-MLP: instead of a cyclic shift, side - shift pads in front, then up to whole windows.

    That is [side - shift, shift] and one window more where `side` divides n, as published.
    """
    if shift == 0 or n <= side:
        return contiguous(n, side)
    before = side - shift
    at = range(-(-(before + n) // side) * side)
    run = [i // side for i in at]
    return Axis(n, before, len(at), side, run, run, [i % side for i in at])


class Branch(NamedTuple):
    """A share of the channels and heads that attends inside one cut of the map."""

    rows: Axis
    cols: Axis
    prefix: str  # of its parameters
    share: int = 1  # 2: the branch has half of the channels and half of the heads

    def spread(self, field: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A per-axis list as two columns over the flattened padded map."""
        rows, cols = getattr(self.rows, field), getattr(self.cols, field)
        return (
            torch.tensor([r for r in rows for _ in cols]),
            torch.tensor([c for _ in rows for c in cols]),
        )

    def same(self, field: str) -> torch.Tensor:
        """(P, P): do query and key agree in both columns of `field`?"""
        r, c = self.spread(field)
        return (r[:, None] == r) & (c[:, None] == c)

    def real(self) -> torch.Tensor:
        """(P,): the positions that are tokens."""
        rows, cols = self.rows, self.cols
        return torch.tensor([
            0 <= i - rows.before < rows.length and 0 <= j - cols.before < cols.length
            for i in range(rows.total)
            for j in range(cols.total)
        ])  # fmt: skip

    def distance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(P, P) twice: steps of the query minus steps of the key, by row and by column."""
        r, c = self.spread("step")
        return r[:, None] - r, c[:, None] - c

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """(b, h, w, c) -> (b, P, c), zeros where no token is."""
        out = x.new_zeros(x.shape[0], self.rows.total * self.cols.total, x.shape[3])
        at = self.real().nonzero().flatten()
        return out.index_copy(1, at, x.flatten(1, 2))

    def crop(self, x: torch.Tensor) -> torch.Tensor:
        """(b, P, c) -> (b, h, w, c)"""
        return x[:, self.real()].unflatten(1, (self.rows.length, self.cols.length))


def kind_of(mixer) -> str:
    return str(mixer.config).partition(":")[0]


ELSEWHERE = {  # mixers that are no groups of tokens
    "axial_deeplab": naive_axial_deeplab,
    "deformable": naive_deformable,
    "halo": naive_neighbours,
    "neighbourhood": naive_neighbours,
    "sra": naive_sra,
}
PAD_FIRST = ("window", "cosine", "shuffle", "messenger")  # whose pads are projected
SAMPLED = ("deformable",)  # whose keys depend on the data, so that a region is an upper bound


def layers(mixer, h: int, w: int) -> list[list[Branch]]:
    """The cuts of one mixer on an (h, w) map: layers in sequence, branches side by side."""
    kind, config = kind_of(mixer), mixer.config
    gh, gw = getattr(config, "size", (1, 1))
    odd = mixer.index % 2 == 1
    if kind in ("window", "cosine"):
        sh, sw = (gh // 2, gw // 2) if odd and config.shift else (0, 0)
        return [[Branch(contiguous(h, gh, sh), contiguous(w, gw, sw), "branch.")]]
    if kind == "messenger":  # without messengers: windows that are never shifted
        return [[Branch(contiguous(h, gh), contiguous(w, gw), "branch.")]]
    if kind == "shuffle":
        cut = interlaced if odd else contiguous
        if odd and config.interval:
            rows, cols = (nested(n, g, config.interval) for n, g in ((h, gh), (w, gw)))
            return [[Branch(rows, cols, "branch.")]]
        return [[Branch(cut(h, gh), cut(w, gw), "branch.")]]
    if kind == "token_mlp":
        sh, sw = (gh // 2, gw // 2) if odd and config.shift else (0, 0)
        return [[Branch(displaced(h, gh, sh), displaced(w, gw, sw), "")]]
    if kind == "full":
        return [[Branch(whole(h), whole(w), "branches.0.")]]
    if kind == "cross":
        vertical = Branch(whole(h), contiguous(w, gw, split=True), "branches.0.", 2)
        horizontal = Branch(contiguous(h, gh, split=True), whole(w), "branches.1.", 2)
        return [[vertical, horizontal]]
    if kind == "pale":
        rows, cols = interlaced(h, gh), interlaced(w, gw)
        in_rows = Branch(rows, whole(w, cols.total), "branches.0.", 2)
        in_cols = Branch(whole(h, rows.total), cols, "branches.1.", 2)
        return [[in_rows, in_cols]]
    if kind == "axial":
        height, width = (whole(h), contiguous(w, 1)), (contiguous(h, 1), whole(w))
        if config.order == "sequential":
            return [
                [Branch(*height, "layers.0.branches.0.")],
                [Branch(*width, "layers.1.branches.0.")],
            ]
        return [[
            Branch(*height, "layers.0.branches.0.", 2), Branch(*width, "layers.0.branches.1.", 2),
        ]]  # fmt: skip
    raise NotImplementedError(f"no definition of {kind} here")


# -- who may attend to whom ------------------------------------------------------------------


def may_attend(branch: Branch, config) -> torch.Tensor:
    """(P, P) bool: query p may look at key k; every query at itself."""
    allowed = branch.same("part")
    if getattr(config, "mask_padding", False):
        allowed = allowed & branch.real()
    return allowed | torch.eye(len(allowed), dtype=torch.bool)


def _neighbours(branch: Branch) -> torch.Tensor:
    """(P, P) bool: pairs at most one position apart on each axis of the padded map."""
    i = torch.arange(branch.rows.total).repeat_interleave(branch.cols.total)
    j = torch.arange(branch.cols.total).repeat(branch.rows.total)
    return ((i[:, None] - i).abs() <= 1) & ((j[:, None] - j).abs() <= 1)


def _leaks(branch: Branch, config) -> torch.Tensor:
    """(P, P) bool: pairs that a shift parts by a finite mask_value only."""
    if getattr(config, "mask_value", None) is None:
        return torch.zeros_like(branch.same("part"))
    parted = branch.same("piece") & ~branch.same("part")
    return parted & branch.real() if config.mask_padding else parted


def branch_pairs(mixer, branch: Branch, leaks: bool = False) -> torch.Tensor:
    """(h w, h w) bool: which token may influence which output of one branch."""
    reach = may_attend(branch, mixer.config)
    if leaks:
        reach = reach | _leaks(branch, mixer.config)
    if kind_of(mixer) == "pale":  # q, k and v of a position read the 3x3 around it
        reach = (reach.double() @ _neighbours(branch).double()) > 0
    real = branch.real()
    return reach[real][:, real]


def pairs(mixer, h: int, w: int, leaks: bool = False) -> torch.Tensor:
    """(h w, h w) bool: which token (column) may influence which output (row).

    leaks: also what a finite mask_value lets through, which the documented region leaves out.
    """
    if kind_of(mixer) in ELSEWHERE:
        return ELSEWHERE[kind_of(mixer)].pairs(mixer, h, w, leaks)
    reach = torch.eye(h * w, dtype=torch.float64)
    for layer in layers(mixer, h, w):
        union = torch.stack([branch_pairs(mixer, branch, leaks) for branch in layer]).any(0)
        reach = union.double() @ reach
    return reach > 0


def region(mixer, h: int, w: int, query: tuple[int, int]) -> torch.Tensor:
    return pairs(mixer, h, w)[query[0] * w + query[1]].view(h, w)


# -- the values ------------------------------------------------------------------------------


def forward(mixer, x: torch.Tensor) -> torch.Tensor:
    """(b, h, w, c) -> (b, h, w, c) by dense masked softmax over every pair of positions."""
    if kind_of(mixer) in ELSEWHERE:
        return ELSEWHERE[kind_of(mixer)].forward(mixer, x)
    p = dict(mixer.named_parameters()) | dict(mixer.named_buffers())
    kind, (h, w) = kind_of(mixer), x.shape[1:3]
    for number, branches in enumerate(layers(mixer, h, w)):
        if kind == "token_mlp":
            x = _token_mlp(p, branches[0], x, mixer.heads)
        elif kind == "pale":
            x = _pale(p, branches, x, mixer)
        elif kind in PAD_FIRST:
            (branch,) = branches  # pads are tokens of zeros: their q, k and v are the bias
            q, k, v = _qkv(p, "", branch.pad(x))
            x = branch.crop(_linear(p, "proj", _attend(p, branch, q, k, v, mixer)))
        else:
            prefix = f"layers.{number}." if kind == "axial" else ""
            halves = []
            for i, branch in enumerate(branches):  # pads have q = k = v = 0
                c = slice(i * mixer.dim // branch.share, (i + 1) * mixer.dim // branch.share)
                q, k, v = (branch.pad(t[..., c]) for t in _qkv(p, prefix, x))
                halves.append(branch.crop(_attend(p, branch, q, k, v, mixer)))
            x = _linear(p, prefix + "proj", torch.cat(halves, dim=-1))
    return x


def _linear(p, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def _qkv(p, prefix: str, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Channels in the order (q, k, v), each (heads, head_dim); cosine has no key bias."""
    bias = p.get(prefix + "qkv.bias")
    if prefix + "q_bias" in p:
        q_bias = p[prefix + "q_bias"]
        bias = torch.cat([q_bias, torch.zeros_like(q_bias), p[prefix + "v_bias"]])
    return F.linear(x, p[prefix + "qkv.weight"], bias).chunk(3, dim=-1)


def _pale(p, branches: list[Branch], x: torch.Tensor, mixer) -> torch.Tensor:
    rows, cols = branches[0].rows, branches[0].cols
    grid = branches[0].pad(x).unflatten(1, (rows.total, cols.total))
    q, k, v = (_separable(p, name, grid, mixer.training) for name in "qkv")
    halves, half = [], mixer.dim // 2
    for branch, c in zip(branches, (slice(0, half), slice(half, None)), strict=True):
        halves.append(branch.crop(_attend(p, branch, q[..., c], k[..., c], v[..., c], mixer)))
    return _linear(p, "proj", torch.cat(halves, dim=-1))


def _separable(p, name: str, x: torch.Tensor, training: bool) -> torch.Tensor:
    """Depthwise 3x3, batch norm, pointwise: (b, h, w, c) -> (b, h w, c)."""
    h, w = x.shape[1:3]
    weight = p[f"{name}.depthwise.weight"]
    around = F.pad(x, (0, 0, 1, 1, 1, 1))
    out = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            out = out + around[:, i : i + h, j : j + w] * weight[:, 0, i, j]
    mean, var = p[f"{name}.norm.running_mean"], p[f"{name}.norm.running_var"]
    if training:
        mean = out.mean(dim=(0, 1, 2))
        var = (out - mean).square().mean(dim=(0, 1, 2))
    out = (out - mean) / (var + 1e-5).sqrt()
    out = out * p[f"{name}.norm.weight"] + p[f"{name}.norm.bias"]
    return _linear(p, f"{name}.pointwise", out).flatten(1, 2)


def _attend(p, branch: Branch, q, k, v, mixer) -> torch.Tensor:
    """q, k, v: (b, P, c) of one branch over the padded map."""
    config, heads = mixer.config, mixer.heads // branch.share
    d = mixer.dim // mixer.heads
    allowed, leaks = may_attend(branch, config), _leaks(branch, config)
    visible = q.new_full(allowed.shape, -math.inf)
    if leaks.any():
        visible[leaks] = config.mask_value
    visible[allowed] = 0.0
    out = []
    for head in range(heads):
        c = slice(head * d, (head + 1) * d)
        if config.scores == "cosine":
            scale = p[branch.prefix + "logit_scale"][head].clamp(max=math.log(100)).exp()
            logits = F.normalize(q[..., c], dim=-1) @ F.normalize(k[..., c], dim=-1).mT * scale
        else:
            scale = d**-0.5 if config.qk_scale is None else config.qk_scale
            logits = q[..., c] @ k[..., c].mT * scale
        logits = logits + _position(p, branch, config, head)
        out.append((logits + visible).softmax(dim=-1) @ v[..., c])
    out = torch.cat(out, dim=-1)
    return out + _lepe(p, branch, config, v) if config.position == "lepe" else out


def _position(p, branch: Branch, config, head: int) -> torch.Tensor | float:
    """(P, P): what is added to the logits of one head."""
    gh, gw = branch.rows.extent, branch.cols.extent
    dr, dc = branch.distance()
    if config.position == "bias":
        return p[branch.prefix + "bias.table"][(dr + gh - 1) * (2 * gw - 1) + dc + gw - 1, head]
    if config.position == "dpb":
        return _dynamic(p, branch.prefix + "bias.layers.", gh, gw, head)[dr + gh - 1, dc + gw - 1]
    if config.position != "log_cpb":
        return 0.0
    first = p[branch.prefix + "bias.mlp.0.weight"]
    span = [max(side - 1, 1) for side in (config.pretrained_window or (gh, gw))]
    table = []
    for r in range(1 - gh, gh):
        for c in range(1 - gw, gw):
            signed = [
                math.copysign(math.log2(1 + 8 * abs(t) / s) / math.log2(8), t)
                for t, s in zip((r, c), span, strict=True)
            ]
            table.append(signed)
    hidden = _linear(p, branch.prefix + "bias.mlp.0", first.new_tensor(table)).relu()
    values = 16 * (hidden @ p[branch.prefix + "bias.mlp.2.weight"][head]).sigmoid()
    return values.view(2 * gh - 1, 2 * gw - 1)[dr + gh - 1, dc + gw - 1]


def _dynamic(p, name: str, gh: int, gw: int, head: int) -> torch.Tensor:
    """(2 gh - 1, 2 gw - 1): of the steps, a layer, then thrice norm, ReLU and a layer."""
    first = p[name + "0.weight"]
    x = first.new_tensor([[r, c] for r in range(1 - gh, gh) for c in range(1 - gw, gw)])
    x = _linear(p, name + "0", x)
    for norm in (1, 4, 7):
        variance = x.var(-1, keepdim=True, correction=0)
        spread = (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()
        x = (spread * p[f"{name}{norm}.weight"] + p[f"{name}{norm}.bias"]).relu()
        x = _linear(p, f"{name}{norm + 2}", x)
    return x[:, head].view(2 * gh - 1, 2 * gw - 1)


def _lepe(p, branch: Branch, config, v: torch.Tensor) -> torch.Tensor:
    """Depthwise 3x3 over the steps of a group: a neighbour outside the group is zero."""
    weight = p[branch.prefix + "lepe.conv.weight"]
    dr, dc = branch.distance()
    together = branch.same("piece")
    if getattr(config, "mask_padding", False):
        together = together & branch.real()
    out = p[branch.prefix + "lepe.conv.bias"]
    for r in (-1, 0, 1):
        for c in (-1, 0, 1):
            picks = (together & (dr == -r) & (dc == -c)).to(v.dtype)  # key = query + (r, c)
            out = out + picks @ v * weight[:, 0, r + 1, c + 1]
    return out


def _token_mlp(p, branch: Branch, x: torch.Tensor, heads: int) -> torch.Tensor:
    """weight (heads, out, in), bias (heads, out): a head is a block of channels.

    With weight2 (heads, out, hidden) the first matrix is (heads, hidden, in): window by window.
    """
    row, col = branch.spread("step")
    token = row * branch.cols.extent + col
    together = branch.same("piece")
    out = []
    for head, part in enumerate(branch.pad(x).chunk(heads, dim=-1)):
        if "weight2" in p:
            out.append(_hidden_mlp(p, head, token, together, part))
            continue
        matrix = p["weight"][head][token][:, token] * together
        out.append(matrix @ part + p["bias"][head][token][:, None])
    return branch.crop(torch.cat(out, dim=-1))


def _hidden_mlp(p, head: int, token, together, part: torch.Tensor) -> torch.Tensor:
    """(b, P, c) of one head: every position computes the hidden values of its window again."""
    out = []
    for position, window in enumerate(together):
        own = window.nonzero().flatten()
        hidden = p["weight"][head][:, token[own]] @ part[:, own] + p["bias"][head][:, None]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # (b, hidden, c)
        second = p["weight2"][head][token[position]]  # (hidden,)
        out.append(second @ hidden + p["bias2"][head][token[position]])
    return torch.stack(out, dim=1)


# -- the cost --------------------------------------------------------------------------------


def cost(mixer, h: int, w: int) -> tuple[int, int, int, int]:
    """(projection, mixing, position, padding) by counting pairs and tokens one by one."""
    if kind_of(mixer) in ELSEWHERE:
        return ELSEWHERE[kind_of(mixer)].cost(mixer, h, w)
    kind, c = kind_of(mixer), mixer.dim
    projection = mixing = position = padding = 0
    for branches in layers(mixer, h, w):
        for branch in branches:
            width, heads = c // branch.share, mixer.heads // branch.share
            real, computed = branch.real(), branch.same("piece")
            if hidden := getattr(mixer.config, "hidden", None):  # to and from, every position
                mixing += 2 * hidden * width * len(real)
                padding += 2 * hidden * width * int((~real).sum())
                continue
            products = width if kind == "token_mlp" else 2 * width  # per pair: q k and a v
            mixing += products * int(computed.sum())
            padding += products * int((computed & ~(real[:, None] & real)).sum())
            where = getattr(mixer.config, "position", "none")
            if where == "lepe":
                position += 9 * width * len(real)
                padding += 9 * width * int((~real).sum())
            if where == "dpb":
                offsets = (2 * branch.rows.extent - 1) * (2 * branch.cols.extent - 1)
                inner = max(width // 16, 4)
                position += offsets * (2 * inner + 2 * inner * inner + inner * heads)
            if where == "log_cpb":
                offsets = (2 * branch.rows.extent - 1) * (2 * branch.cols.extent - 1)
                position += offsets * (2 * 512 + 512 * heads)
        pads = int((~branches[0].real()).sum())
        if kind in PAD_FIRST:
            projection += 4 * c * c * (h * w + pads)
            padding += 4 * c * c * pads
        elif kind == "pale":
            projection += 3 * (c * c + 9 * c) * (h * w + pads) + c * c * h * w
            padding += 3 * (c * c + 9 * c) * pads
        elif kind != "token_mlp":
            projection += 4 * c * c * h * w
    return projection, mixing, position, padding
