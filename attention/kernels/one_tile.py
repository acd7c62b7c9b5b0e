"""Triton kernels of attention inside groups: where a group's tokens are, and groups of one tile.

Imported on first use by `attention.kernels.fused` alone; nothing else here needs Triton.

A kernel reads queries, keys and values where they lie on the padded map that was not rolled: the
position of token i of group g on an axis is (g * group + i * token + shift) mod padded, whatever
the pattern.  Scores are kept in units of log2, so that softmax is `exp2`.  Sums, softmax and
accumulators are float32; the operands of a product have the inputs' type.

    items    batch * groups, the groups of one image in a row
    L        tokens of a group              BLOCK  a power of two that holds them
    D        channels of a head             DP     a power of two that holds them
    SHIFT    0 none, 1 pairs parted by the shift are hidden, 2 they are penalised
    FAR      an image has 2**31 numbers or more
    COSINE   q and k are made unit vectors here, and `gain` (heads,) is the scale

Rows of a tile beyond L repeat the last token's place with q = 0: finite, and never stored.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HIDDEN_SCORE = tl.constexpr(float("-inf"))
SHORTEST = tl.constexpr(1e-12)  # as torch.nn.functional.normalize

# Integers of the geometry: no kernel is compiled anew because a map has another size.
RUNTIME = [
    "L", "items", "groups", "steps", "width", "across",
    "row_group", "row_token", "row_padded", "row_shift", "row_first", "row_end",
    "col_group", "col_token", "col_padded", "col_shift", "col_first", "col_end",
]  # fmt: skip


@triton.jit
def place(
    i, group, width, across,
    row_group, row_token, row_padded, row_shift, row_first, row_end,
    col_group, col_token, col_padded, col_shift, col_first, col_end,
):  # fmt: skip
    """Of tokens i of a group: row and column on the map, the side of the seam, is it a pad."""
    row = (group // across) * row_group + (i // width) * row_token
    col = (group % across) * col_group + (i % width) * col_token
    side = 2 * (row >= row_padded - row_shift).to(tl.int32)
    side += (col >= col_padded - col_shift).to(tl.int32)
    row += row_shift
    col += col_shift
    row = tl.where(row >= row_padded, row - row_padded, row)
    col = tl.where(col >= col_padded, col - col_padded, col)
    pad = (row < row_first) | (row >= row_end) | (col < col_first) | (col >= col_end)
    return row, col, side, pad


@triton.jit
def spread(start, row, col, step_row, step_col, d, FAR: tl.constexpr):
    """Where the channels of tokens lie, from `start` of the image and head."""
    if FAR:
        row, col = row.to(tl.int64), col.to(tl.int64)
    return start + ((row * step_row + col * step_col)[:, None] + d[None, :])


@triton.jit
def within(i, L, d, D: tl.constexpr, DP: tl.constexpr):
    """Which elements of a tile (tokens, channels) exist."""
    inside = (i < L)[:, None]
    if D != DP:
        inside = inside & (d < D)[None, :]
    return inside


@triton.jit
def unit(x, COSINE: tl.constexpr):
    """Rows at unit length in the type of x, and the lengths they had."""
    wide = x.to(tl.float32)
    length = tl.sqrt(tl.sum(wide * wide, 1))
    if COSINE:
        x = (wide / tl.maximum(length, SHORTEST)[:, None]).to(x.dtype)
    return x, length


@triton.jit
def unit_gradient(gradient, x, length, COSINE: tl.constexpr):
    """From the gradient of `unit`'s rows x to that of its input; also their product, by row."""
    along = tl.sum(gradient * x.to(tl.float32), 1)
    if COSINE:
        radial = tl.where(length > SHORTEST, along, 0.0)  # below it the divisor is a constant
        gradient = gradient - x.to(tl.float32) * radial[:, None]
        gradient = gradient / tl.maximum(length, SHORTEST)[:, None]
    return gradient, along


@triton.jit
def bias_tile(bias, head, i, j, L, BIAS: tl.constexpr):
    """What every group adds to its scores, in log2: the bias, and -inf where no key is."""
    if BIAS:
        table = bias + head.to(tl.int64) * L * L
        both = (i < L)[:, None] & (j < L)[None, :]
        tile = tl.load(table + (i[:, None] * L + j[None, :]), mask=both, other=0.0)
        tile = tile.to(tl.float32) * LOG2E
    else:
        tile = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    return tl.where((j < L)[None, :], tile, HIDDEN_SCORE)


@triton.jit
def hide(
    s, i, j, side_i, side_j, pad_j, penalty, SHIFT: tl.constexpr, HIDDEN: tl.constexpr
):  # fmt: skip
    """Scores without the pairs that may not meet.  A query always sees itself."""
    if SHIFT == 1:
        s = tl.where(side_i[:, None] == side_j[None, :], s, HIDDEN_SCORE)
    if SHIFT == 2:
        s = tl.where(side_i[:, None] == side_j[None, :], s, s + penalty * LOG2E)
    if HIDDEN:
        s = tl.where(pad_j[None, :] & (i[:, None] != j[None, :]), HIDDEN_SCORE, s)
    return s


@triton.jit
def slope(scale, gain, head, COSINE: tl.constexpr):
    """What a product of query and key is multiplied by."""
    if COSINE:
        scale = tl.load(gain + head).to(tl.float32)
    return scale


@triton.jit(do_not_specialize=RUNTIME)
def forward_whole(
    q, k, v, bias, gain, out,
    heads, L, items, groups, steps, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, width, across,
    row_group, row_token, row_padded, row_shift, row_first, row_end,
    col_group, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """One head of every `steps`-th group: its tile of biases is read once and stays."""
    head = tl.program_id(0) % heads
    i, d = tl.arange(0, BLOCK), tl.arange(0, DP)
    here = tl.minimum(i, L - 1)
    inside = within(i, L, d, D, DP)
    added = bias_tile(bias, head, i, i, L, BIAS)
    slope2 = slope(scale, gain, head, COSINE) * LOG2E
    for item in range(tl.program_id(0) // heads, items, steps):
        row, col, side, pad = place(
            here, item % groups, width, across,
            row_group, row_token, row_padded, row_shift, row_first, row_end,
            col_group, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        image = (item // groups).to(tl.int64)
        at = spread(image * in_b + head * D, row, col, in_h, in_w, d, FAR)
        qt, _size = unit(tl.load(q + at, mask=inside, other=0.0), COSINE)
        kt, _size = unit(tl.load(k + at, mask=inside, other=0.0), COSINE)
        vt = tl.load(v + at, mask=inside, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * slope2 + added
        s = hide(s, here, here, side, side, pad, penalty, SHIFT, HIDDEN)
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        total = tl.sum(p, 1)
        o = tl.dot(p.to(vt.dtype), vt, input_precision=PRECISION) / total[:, None]
        at = spread(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
        tl.store(out + at, o.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUNTIME)
def backward_whole(
    q, k, v, bias, gain, gout, gq, gk, gv, gbias, ggain,
    heads, L, items, groups, steps, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, grad_b, grad_h, grad_w, width, across,
    row_group, row_token, row_padded, row_shift, row_first, row_end,
    col_group, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """All gradients of the same groups from q, k, v and that of the output: nothing was saved.

    gbias (steps, heads, L, L) and ggain (steps, heads): sums over this program's groups.
    """
    step, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    i, d = tl.arange(0, BLOCK), tl.arange(0, DP)
    here = tl.minimum(i, L - 1)
    inside = within(i, L, d, D, DP)
    added = bias_tile(bias, head, i, i, L, BIAS)
    slope1 = slope(scale, gain, head, COSINE)
    bias_sum = tl.zeros((BLOCK, BLOCK), tl.float32)
    gain_sum = tl.zeros((BLOCK,), tl.float32)
    for item in range(step, items, steps):
        row, col, side, pad = place(
            here, item % groups, width, across,
            row_group, row_token, row_padded, row_shift, row_first, row_end,
            col_group, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        image = (item // groups).to(tl.int64)
        at = spread(image * in_b + head * D, row, col, in_h, in_w, d, FAR)
        qt, q_length = unit(tl.load(q + at, mask=inside, other=0.0), COSINE)
        kt, k_length = unit(tl.load(k + at, mask=inside, other=0.0), COSINE)
        vt = tl.load(v + at, mask=inside, other=0.0)
        at = spread(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
        ot = tl.load(gout + at, mask=inside, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * (slope1 * LOG2E) + added
        s = hide(s, here, here, side, side, pad, penalty, SHIFT, HIDDEN)
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
        at = spread(image * grad_b + head * D, row, col, grad_h, grad_w, d, FAR)
        dv = tl.dot(tl.trans(p.to(ot.dtype)), ot, input_precision=PRECISION)
        tl.store(gv + at, dv.to(gv.dtype.element_ty), mask=inside)
        dp = tl.dot(ot, tl.trans(vt), input_precision=PRECISION)
        ds = p * (dp - tl.sum(p * dp, 1)[:, None])
        if BIAS:
            bias_sum += ds
        narrow = ds.to(qt.dtype)
        dq = tl.dot(narrow, kt, input_precision=PRECISION)
        dk = tl.dot(tl.trans(narrow), qt, input_precision=PRECISION)
        dq, along = unit_gradient(dq, qt, q_length, COSINE)
        dk, _along = unit_gradient(dk, kt, k_length, COSINE)
        if COSINE:
            gain_sum += along
        tl.store(gq + at, (dq * slope1).to(gq.dtype.element_ty), mask=inside)
        tl.store(gk + at, (dk * slope1).to(gk.dtype.element_ty), mask=inside)
    if BIAS:
        table = gbias + tl.program_id(0).to(tl.int64) * L * L
        both = (i < L)[:, None] & (i < L)[None, :]
        tl.store(table + (i[:, None] * L + i[None, :]), bias_sum, mask=both)
    if COSINE:
        tl.store(ggain + tl.program_id(0), tl.sum(tl.where(i < L, gain_sum, 0.0), 0))
