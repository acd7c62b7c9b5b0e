"""Triton kernels of attention inside groups of many tiles: online softmax over key tiles.

The names and rules are those of `attention.kernels.one_tile`.  Backward reads the logarithm of each
query's softmax sum, `lse` (items, heads, L) in log2, and runs three kernels, each of which sums
in registers and in one order, so that no result depends on timing:

    backward_queries   dQ = dS K * scale, the gradient of the logit scale, and `delta`
    backward_keys      dK = dS^T Q * scale and dV = P^T dY
    backward_bias      the sum of dS over every `steps`-th group

Here P = softmax(S), dP = dY V^T and dS = P * (dP - delta); `delta` (items, heads, L), the row sums
of dP * P, equals the row sums of dY * Y, which takes no second loop over the keys.
"""

import triton
import triton.language as tl

from attention.kernels.one_tile import (
    LOG2E,
    MASKED_SCORE,
    RUNTIME,
    bias_tile,
    channel_offsets,
    head_scale,
    in_range,
    mask_scores,
    normalize_rows,
    normalize_rows_backward,
    token_position,
)


@triton.jit(do_not_specialize=RUNTIME)
def forward_tiled(
    q, k, v, bias, logit_scale, out, lse,
    heads, L, items, groups, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, width, across,
    row_run, row_token, row_padded, row_shift, row_first, row_end,
    col_run, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, MASK_PADDING: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """Output and `lse` of one head in one tile of queries of a group."""
    tiles = tl.cdiv(L, BLOCK)
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    item, i = rest // tiles, (rest % tiles) * BLOCK + tl.arange(0, BLOCK)
    d, here = tl.arange(0, DP), tl.minimum(i, L - 1)
    image, group = (item // groups).to(tl.int64), item % groups
    row, col, side, _pad = token_position(
        here, group, width, across,
        row_run, row_token, row_padded, row_shift, row_first, row_end,
        col_run, col_token, col_padded, col_shift, col_first, col_end,
    )  # fmt: skip
    start = image * in_b + head * D
    at = channel_offsets(start, row, col, in_h, in_w, d, FAR)
    inside = in_range(i, L, d, D, DP)
    qt, _size = normalize_rows(tl.load(q + at, mask=inside, other=0.0), COSINE)
    s_scale2 = head_scale(scale, logit_scale, head, COSINE) * LOG2E
    top = tl.full((BLOCK,), MASKED_SCORE, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, DP), tl.float32)
    for first in range(0, L, BLOCK):
        j = first + tl.arange(0, BLOCK)
        key_row, key_col, key_side, key_pad = token_position(
            tl.minimum(j, L - 1), group, width, across,
            row_run, row_token, row_padded, row_shift, row_first, row_end,
            col_run, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        key_at = channel_offsets(start, key_row, key_col, in_h, in_w, d, FAR)
        key_inside = in_range(j, L, d, D, DP)
        kt, _size = normalize_rows(tl.load(k + key_at, mask=key_inside, other=0.0), COSINE)
        vt = tl.load(v + key_at, mask=key_inside, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * s_scale2
        s += bias_tile(bias, head, i, j, L, BIAS)
        s = mask_scores(s, here, j, side, key_side, key_pad, penalty, SHIFT, MASK_PADDING)
        higher = tl.maximum(top, tl.max(s, 1))
        finite = tl.where(higher == MASKED_SCORE, 0.0, higher)  # every key so far is masked
        p = tl.exp2(s - finite[:, None])
        shrink = tl.exp2(top - finite)
        total = total * shrink + tl.sum(p, 1)
        o = o * shrink[:, None] + tl.dot(p.to(vt.dtype), vt, input_precision=PRECISION)
        top = higher
    at = channel_offsets(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
    tl.store(out + at, (o / total[:, None]).to(out.dtype.element_ty), mask=inside)
    line = ((image * groups + group) * heads + head) * L + i
    tl.store(lse + line, top + tl.log2(total), mask=i < L)


@triton.jit(do_not_specialize=RUNTIME)
def backward_queries(
    q, k, v, bias, logit_scale, lse, out, gout, gq, delta, gscale,
    heads, L, items, groups, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, grad_b, grad_h, grad_w, width, across,
    row_run, row_token, row_padded, row_shift, row_first, row_end,
    col_run, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, MASK_PADDING: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries for one head.  gscale (programs,)."""
    tiles = tl.cdiv(L, BLOCK)
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    item, i = rest // tiles, (rest % tiles) * BLOCK + tl.arange(0, BLOCK)
    d, here = tl.arange(0, DP), tl.minimum(i, L - 1)
    image, group = (item // groups).to(tl.int64), item % groups
    row, col, side, _pad = token_position(
        here, group, width, across,
        row_run, row_token, row_padded, row_shift, row_first, row_end,
        col_run, col_token, col_padded, col_shift, col_first, col_end,
    )  # fmt: skip
    start = image * in_b + head * D
    at = channel_offsets(start, row, col, in_h, in_w, d, FAR)
    inside = in_range(i, L, d, D, DP)
    qt, length = normalize_rows(tl.load(q + at, mask=inside, other=0.0), COSINE)
    at = channel_offsets(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
    ot = tl.load(gout + at, mask=inside, other=0.0)
    y = tl.load(out + at, mask=inside, other=0.0)
    row_sum = tl.sum(ot.to(tl.float32) * y.to(tl.float32), 1)
    line = ((image * groups + group) * heads + head) * L + i
    tl.store(delta + line, row_sum, mask=i < L)
    sums = tl.load(lse + line, mask=i < L, other=0.0)
    s_scale = head_scale(scale, logit_scale, head, COSINE)
    dq = tl.zeros((BLOCK, DP), tl.float32)
    for first in range(0, L, BLOCK):
        j = first + tl.arange(0, BLOCK)
        key_row, key_col, key_side, key_pad = token_position(
            tl.minimum(j, L - 1), group, width, across,
            row_run, row_token, row_padded, row_shift, row_first, row_end,
            col_run, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        key_at = channel_offsets(start, key_row, key_col, in_h, in_w, d, FAR)
        key_inside = in_range(j, L, d, D, DP)
        kt, _size = normalize_rows(tl.load(k + key_at, mask=key_inside, other=0.0), COSINE)
        vt = tl.load(v + key_at, mask=key_inside, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * (s_scale * LOG2E)
        s += bias_tile(bias, head, i, j, L, BIAS)
        s = mask_scores(s, here, j, side, key_side, key_pad, penalty, SHIFT, MASK_PADDING)
        p = tl.exp2(s - sums[:, None])
        dp = tl.dot(ot, tl.trans(vt), input_precision=PRECISION)
        ds = p * (dp - row_sum[:, None])
        dq += tl.dot(ds.to(kt.dtype), kt, input_precision=PRECISION)
    dq, along = normalize_rows_backward(dq, qt, length, COSINE)
    at = channel_offsets(image * grad_b + head * D, row, col, grad_h, grad_w, d, FAR)
    tl.store(gq + at, (dq * s_scale).to(gq.dtype.element_ty), mask=inside)
    if COSINE:
        tl.store(gscale + tl.program_id(0), tl.sum(tl.where(i < L, along, 0.0), 0))


@triton.jit(do_not_specialize=RUNTIME)
def backward_keys(
    q, k, v, bias, logit_scale, lse, delta, gout, gk, gv,
    heads, L, items, groups, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, grad_b, grad_h, grad_w, width, across,
    row_run, row_token, row_padded, row_shift, row_first, row_end,
    col_run, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, MASK_PADDING: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values for one head."""
    tiles = tl.cdiv(L, BLOCK)
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    item, j = rest // tiles, (rest % tiles) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, DP)
    image, group = (item // groups).to(tl.int64), item % groups
    key_row, key_col, key_side, key_pad = token_position(
        tl.minimum(j, L - 1), group, width, across,
        row_run, row_token, row_padded, row_shift, row_first, row_end,
        col_run, col_token, col_padded, col_shift, col_first, col_end,
    )  # fmt: skip
    start = image * in_b + head * D
    key_at = channel_offsets(start, key_row, key_col, in_h, in_w, d, FAR)
    key_inside = in_range(j, L, d, D, DP)
    kt, length = normalize_rows(tl.load(k + key_at, mask=key_inside, other=0.0), COSINE)
    vt = tl.load(v + key_at, mask=key_inside, other=0.0)
    s_scale = head_scale(scale, logit_scale, head, COSINE)
    dk = tl.zeros((BLOCK, DP), tl.float32)
    dv = tl.zeros((BLOCK, DP), tl.float32)
    for first in range(0, L, BLOCK):
        i = first + tl.arange(0, BLOCK)
        here = tl.minimum(i, L - 1)
        row, col, side, _pad = token_position(
            here, group, width, across,
            row_run, row_token, row_padded, row_shift, row_first, row_end,
            col_run, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        inside = in_range(i, L, d, D, DP)
        at = channel_offsets(start, row, col, in_h, in_w, d, FAR)
        qt, _size = normalize_rows(tl.load(q + at, mask=inside, other=0.0), COSINE)
        at = channel_offsets(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
        ot = tl.load(gout + at, mask=inside, other=0.0)
        line = ((image * groups + group) * heads + head) * L + i
        sums = tl.load(lse + line, mask=i < L, other=0.0)
        row_sum = tl.load(delta + line, mask=i < L, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * (s_scale * LOG2E)
        s += bias_tile(bias, head, i, j, L, BIAS)
        s = mask_scores(s, here, j, side, key_side, key_pad, penalty, SHIFT, MASK_PADDING)
        p = tl.exp2(s - sums[:, None])
        dv += tl.dot(tl.trans(p.to(ot.dtype)), ot, input_precision=PRECISION)
        dp = tl.dot(ot, tl.trans(vt), input_precision=PRECISION)
        ds = p * (dp - row_sum[:, None])
        dk += tl.dot(tl.trans(ds.to(qt.dtype)), qt, input_precision=PRECISION)
    dk, _along = normalize_rows_backward(dk, kt, length, COSINE)
    at = channel_offsets(image * grad_b + head * D, key_row, key_col, grad_h, grad_w, d, FAR)
    tl.store(gk + at, (dk * s_scale).to(gk.dtype.element_ty), mask=key_inside)
    tl.store(gv + at, dv.to(gv.dtype.element_ty), mask=key_inside)


@triton.jit(do_not_specialize=RUNTIME)
def backward_bias(
    q, k, v, bias, logit_scale, lse, delta, gout, gbias,
    heads, L, items, groups, steps, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, width, across,
    row_run, row_token, row_padded, row_shift, row_first, row_end,
    col_run, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, MASK_PADDING: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of one head's bias: gbias (steps, heads, L, L)."""
    tiles = tl.cdiv(L, BLOCK)
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    j = (rest % tiles) * BLOCK + tl.arange(0, BLOCK)
    i = (rest // tiles % tiles) * BLOCK + tl.arange(0, BLOCK)
    step = rest // (tiles * tiles)
    d, here = tl.arange(0, DP), tl.minimum(i, L - 1)
    inside, key_inside = in_range(i, L, d, D, DP), in_range(j, L, d, D, DP)
    added = bias_tile(bias, head, i, j, L, BIAS)
    s_scale2 = head_scale(scale, logit_scale, head, COSINE) * LOG2E
    bias_sum = tl.zeros((BLOCK, BLOCK), tl.float32)
    for item in range(step, items, steps):
        image, group = (item // groups).to(tl.int64), item % groups
        row, col, side, _pad = token_position(
            here, group, width, across,
            row_run, row_token, row_padded, row_shift, row_first, row_end,
            col_run, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        key_row, key_col, key_side, key_pad = token_position(
            tl.minimum(j, L - 1), group, width, across,
            row_run, row_token, row_padded, row_shift, row_first, row_end,
            col_run, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        start = image * in_b + head * D
        at = channel_offsets(start, row, col, in_h, in_w, d, FAR)
        key_at = channel_offsets(start, key_row, key_col, in_h, in_w, d, FAR)
        qt, _size = normalize_rows(tl.load(q + at, mask=inside, other=0.0), COSINE)
        kt, _size = normalize_rows(tl.load(k + key_at, mask=key_inside, other=0.0), COSINE)
        vt = tl.load(v + key_at, mask=key_inside, other=0.0)
        at = channel_offsets(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
        ot = tl.load(gout + at, mask=inside, other=0.0)
        line = ((image * groups + group) * heads + head) * L + i
        sums = tl.load(lse + line, mask=i < L, other=0.0)
        row_sum = tl.load(delta + line, mask=i < L, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * s_scale2 + added
        s = mask_scores(s, here, j, side, key_side, key_pad, penalty, SHIFT, MASK_PADDING)
        dp = tl.dot(ot, tl.trans(vt), input_precision=PRECISION)
        bias_sum += tl.exp2(s - sums[:, None]) * (dp - row_sum[:, None])
    table = gbias + (step * heads + head).to(tl.int64) * L * L
    both = (i < L)[:, None] & (j < L)[None, :]
    tl.store(table + (i[:, None] * L + j[None, :]), bias_sum, mask=both)
