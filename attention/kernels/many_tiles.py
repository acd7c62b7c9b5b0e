"""Triton kernels of attention inside groups of many tiles: online softmax over key tiles.

The names and rules are those of `attention.kernels.one_tile`.  Backward reads the logarithm of each
query's softmax sum, `lse` (items, heads, L) in log2, and runs three kernels, each of which sums
in registers and in one order, so that no result depends on timing:

    backward_queries   gradients of q and of the gain; `delta` (items, heads, L) for the others
    backward_keys      gradients of k and v
    backward_bias      gradient of the bias, summed over every `steps`-th group
"""

import triton
import triton.language as tl

from attention.kernels.one_tile import (
    HIDDEN_SCORE,
    LOG2E,
    RUNTIME,
    bias_tile,
    hide,
    place,
    slope,
    spread,
    unit,
    unit_gradient,
    within,
)


@triton.jit(do_not_specialize=RUNTIME)
def forward_tiled(
    q, k, v, bias, gain, out, lse,
    heads, L, items, groups, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, width, across,
    row_group, row_token, row_padded, row_shift, row_first, row_end,
    col_group, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """One head and one tile of queries of a group."""
    tiles = tl.cdiv(L, BLOCK)
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    item, i = rest // tiles, (rest % tiles) * BLOCK + tl.arange(0, BLOCK)
    d, here = tl.arange(0, DP), tl.minimum(i, L - 1)
    image, group = (item // groups).to(tl.int64), item % groups
    row, col, side, _pad = place(
        here, group, width, across,
        row_group, row_token, row_padded, row_shift, row_first, row_end,
        col_group, col_token, col_padded, col_shift, col_first, col_end,
    )  # fmt: skip
    start = image * in_b + head * D
    at = spread(start, row, col, in_h, in_w, d, FAR)
    inside = within(i, L, d, D, DP)
    qt, _size = unit(tl.load(q + at, mask=inside, other=0.0), COSINE)
    slope2 = slope(scale, gain, head, COSINE) * LOG2E
    top = tl.full((BLOCK,), HIDDEN_SCORE, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, DP), tl.float32)
    for first in range(0, L, BLOCK):
        j = first + tl.arange(0, BLOCK)
        key_row, key_col, key_side, key_pad = place(
            tl.minimum(j, L - 1), group, width, across,
            row_group, row_token, row_padded, row_shift, row_first, row_end,
            col_group, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        key_at = spread(start, key_row, key_col, in_h, in_w, d, FAR)
        key_inside = within(j, L, d, D, DP)
        kt, _size = unit(tl.load(k + key_at, mask=key_inside, other=0.0), COSINE)
        vt = tl.load(v + key_at, mask=key_inside, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * slope2
        s += bias_tile(bias, head, i, j, L, BIAS)
        s = hide(s, here, j, side, key_side, key_pad, penalty, SHIFT, HIDDEN)
        higher = tl.maximum(top, tl.max(s, 1))
        finite = tl.where(higher == HIDDEN_SCORE, 0.0, higher)  # nothing seen yet
        p = tl.exp2(s - finite[:, None])
        shrink = tl.exp2(top - finite)
        total = total * shrink + tl.sum(p, 1)
        o = o * shrink[:, None] + tl.dot(p.to(vt.dtype), vt, input_precision=PRECISION)
        top = higher
    at = spread(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
    tl.store(out + at, (o / total[:, None]).to(out.dtype.element_ty), mask=inside)
    line = ((image * groups + group) * heads + head) * L + i
    tl.store(lse + line, top + tl.log2(total), mask=i < L)


@triton.jit(do_not_specialize=RUNTIME)
def backward_queries(
    q, k, v, bias, gain, lse, out, gout, gq, delta, ggain,
    heads, L, items, groups, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, grad_b, grad_h, grad_w, width, across,
    row_group, row_token, row_padded, row_shift, row_first, row_end,
    col_group, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """One head and one tile of queries of a group.  ggain: a number per program."""
    tiles = tl.cdiv(L, BLOCK)
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    item, i = rest // tiles, (rest % tiles) * BLOCK + tl.arange(0, BLOCK)
    d, here = tl.arange(0, DP), tl.minimum(i, L - 1)
    image, group = (item // groups).to(tl.int64), item % groups
    row, col, side, _pad = place(
        here, group, width, across,
        row_group, row_token, row_padded, row_shift, row_first, row_end,
        col_group, col_token, col_padded, col_shift, col_first, col_end,
    )  # fmt: skip
    start = image * in_b + head * D
    at = spread(start, row, col, in_h, in_w, d, FAR)
    inside = within(i, L, d, D, DP)
    qt, length = unit(tl.load(q + at, mask=inside, other=0.0), COSINE)
    at = spread(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
    ot = tl.load(gout + at, mask=inside, other=0.0)
    made = tl.load(out + at, mask=inside, other=0.0)
    mean = tl.sum(ot.to(tl.float32) * made.to(tl.float32), 1)
    line = ((image * groups + group) * heads + head) * L + i
    tl.store(delta + line, mean, mask=i < L)
    sums = tl.load(lse + line, mask=i < L, other=0.0)
    slope1 = slope(scale, gain, head, COSINE)
    dq = tl.zeros((BLOCK, DP), tl.float32)
    for first in range(0, L, BLOCK):
        j = first + tl.arange(0, BLOCK)
        key_row, key_col, key_side, key_pad = place(
            tl.minimum(j, L - 1), group, width, across,
            row_group, row_token, row_padded, row_shift, row_first, row_end,
            col_group, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        key_at = spread(start, key_row, key_col, in_h, in_w, d, FAR)
        key_inside = within(j, L, d, D, DP)
        kt, _size = unit(tl.load(k + key_at, mask=key_inside, other=0.0), COSINE)
        vt = tl.load(v + key_at, mask=key_inside, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * (slope1 * LOG2E)
        s += bias_tile(bias, head, i, j, L, BIAS)
        s = hide(s, here, j, side, key_side, key_pad, penalty, SHIFT, HIDDEN)
        p = tl.exp2(s - sums[:, None])
        dp = tl.dot(ot, tl.trans(vt), input_precision=PRECISION)
        ds = p * (dp - mean[:, None])
        dq += tl.dot(ds.to(kt.dtype), kt, input_precision=PRECISION)
    dq, along = unit_gradient(dq, qt, length, COSINE)
    at = spread(image * grad_b + head * D, row, col, grad_h, grad_w, d, FAR)
    tl.store(gq + at, (dq * slope1).to(gq.dtype.element_ty), mask=inside)
    if COSINE:
        tl.store(ggain + tl.program_id(0), tl.sum(tl.where(i < L, along, 0.0), 0))


@triton.jit(do_not_specialize=RUNTIME)
def backward_keys(
    q, k, v, bias, gain, lse, delta, gout, gk, gv,
    heads, L, items, groups, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, grad_b, grad_h, grad_w, width, across,
    row_group, row_token, row_padded, row_shift, row_first, row_end,
    col_group, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """One head and one tile of keys of a group."""
    tiles = tl.cdiv(L, BLOCK)
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    item, j = rest // tiles, (rest % tiles) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, DP)
    image, group = (item // groups).to(tl.int64), item % groups
    key_row, key_col, key_side, key_pad = place(
        tl.minimum(j, L - 1), group, width, across,
        row_group, row_token, row_padded, row_shift, row_first, row_end,
        col_group, col_token, col_padded, col_shift, col_first, col_end,
    )  # fmt: skip
    start = image * in_b + head * D
    key_at = spread(start, key_row, key_col, in_h, in_w, d, FAR)
    key_inside = within(j, L, d, D, DP)
    kt, length = unit(tl.load(k + key_at, mask=key_inside, other=0.0), COSINE)
    vt = tl.load(v + key_at, mask=key_inside, other=0.0)
    slope1 = slope(scale, gain, head, COSINE)
    dk = tl.zeros((BLOCK, DP), tl.float32)
    dv = tl.zeros((BLOCK, DP), tl.float32)
    for first in range(0, L, BLOCK):
        i = first + tl.arange(0, BLOCK)
        here = tl.minimum(i, L - 1)
        row, col, side, _pad = place(
            here, group, width, across,
            row_group, row_token, row_padded, row_shift, row_first, row_end,
            col_group, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        inside = within(i, L, d, D, DP)
        at = spread(start, row, col, in_h, in_w, d, FAR)
        qt, _size = unit(tl.load(q + at, mask=inside, other=0.0), COSINE)
        at = spread(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
        ot = tl.load(gout + at, mask=inside, other=0.0)
        line = ((image * groups + group) * heads + head) * L + i
        sums = tl.load(lse + line, mask=i < L, other=0.0)
        mean = tl.load(delta + line, mask=i < L, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * (slope1 * LOG2E)
        s += bias_tile(bias, head, i, j, L, BIAS)
        s = hide(s, here, j, side, key_side, key_pad, penalty, SHIFT, HIDDEN)
        p = tl.exp2(s - sums[:, None])
        dv += tl.dot(tl.trans(p.to(ot.dtype)), ot, input_precision=PRECISION)
        dp = tl.dot(ot, tl.trans(vt), input_precision=PRECISION)
        ds = p * (dp - mean[:, None])
        dk += tl.dot(tl.trans(ds.to(qt.dtype)), qt, input_precision=PRECISION)
    dk, _along = unit_gradient(dk, kt, length, COSINE)
    at = spread(image * grad_b + head * D, key_row, key_col, grad_h, grad_w, d, FAR)
    tl.store(gk + at, (dk * slope1).to(gk.dtype.element_ty), mask=key_inside)
    tl.store(gv + at, dv.to(gv.dtype.element_ty), mask=key_inside)


@triton.jit(do_not_specialize=RUNTIME)
def backward_bias(
    q, k, v, bias, gain, lse, delta, gout, gbias,
    heads, L, items, groups, steps, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, width, across,
    row_group, row_token, row_padded, row_shift, row_first, row_end,
    col_group, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """One head, one tile of queries by keys, every `steps`-th group: gbias (steps, heads, L, L)."""
    tiles = tl.cdiv(L, BLOCK)
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    j = (rest % tiles) * BLOCK + tl.arange(0, BLOCK)
    i = (rest // tiles % tiles) * BLOCK + tl.arange(0, BLOCK)
    step = rest // (tiles * tiles)
    d, here = tl.arange(0, DP), tl.minimum(i, L - 1)
    inside, key_inside = within(i, L, d, D, DP), within(j, L, d, D, DP)
    added = bias_tile(bias, head, i, j, L, BIAS)
    slope2 = slope(scale, gain, head, COSINE) * LOG2E
    bias_sum = tl.zeros((BLOCK, BLOCK), tl.float32)
    for item in range(step, items, steps):
        image, group = (item // groups).to(tl.int64), item % groups
        row, col, side, _pad = place(
            here, group, width, across,
            row_group, row_token, row_padded, row_shift, row_first, row_end,
            col_group, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        key_row, key_col, key_side, key_pad = place(
            tl.minimum(j, L - 1), group, width, across,
            row_group, row_token, row_padded, row_shift, row_first, row_end,
            col_group, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        start = image * in_b + head * D
        at = spread(start, row, col, in_h, in_w, d, FAR)
        key_at = spread(start, key_row, key_col, in_h, in_w, d, FAR)
        qt, _size = unit(tl.load(q + at, mask=inside, other=0.0), COSINE)
        kt, _size = unit(tl.load(k + key_at, mask=key_inside, other=0.0), COSINE)
        vt = tl.load(v + key_at, mask=key_inside, other=0.0)
        at = spread(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
        ot = tl.load(gout + at, mask=inside, other=0.0)
        line = ((image * groups + group) * heads + head) * L + i
        sums = tl.load(lse + line, mask=i < L, other=0.0)
        mean = tl.load(delta + line, mask=i < L, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * slope2 + added
        s = hide(s, here, j, side, key_side, key_pad, penalty, SHIFT, HIDDEN)
        dp = tl.dot(ot, tl.trans(vt), input_precision=PRECISION)
        bias_sum += tl.exp2(s - sums[:, None]) * (dp - mean[:, None])
    table = gbias + (step * heads + head).to(tl.int64) * L * L
    both = (i < L)[:, None] & (j < L)[None, :]
    tl.store(table + (i[:, None] * L + j[None, :]), bias_sum, mask=both)
