"""Triton kernels of attention inside groups: positions of tokens, and groups of one tile.

`attention.kernels.launch` imports this module on first use; Triton is needed here and in
`many_tiles` only.

A kernel reads queries, keys and values where they lie on the padded map that was not rolled: the
position of token i of group g on an axis is (g // token * run + g % token + i * token + shift) mod
padded, for every pattern: `token` is the interval of a group's tokens, `run` what as many groups
reach over.  Scores are in units of log2, so that softmax is `exp2`.  Sums, softmax and accumulators
are float32; the operands of a product have the inputs' type.

    items    batch * groups, the groups of one image in a row
    L        tokens of a group              BLOCK  a power of two that holds them
    D        channels of a head             DP     a power of two that holds them
    SHIFT    0 none, 1 pairs separated by the shift are masked, 2 they are penalised
    FAR      an image has 2**31 numbers or more
    COSINE   q and k are normalised here, and `logit_scale` (heads,) is the scale

Rows of a tile beyond L repeat the last token's position with q = 0: finite, and never stored.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MASKED_SCORE = tl.constexpr(float("-inf"))
MIN_NORM = tl.constexpr(1e-12)  # as torch.nn.functional.normalize

# Integers of the geometry: no kernel is compiled anew because a map has another size.
RUNTIME = [
    "L", "items", "groups", "steps", "width", "across",
    "row_run", "row_token", "row_padded", "row_shift", "row_first", "row_end",
    "col_run", "col_token", "col_padded", "col_shift", "col_first", "col_end",
]  # fmt: skip


@triton.jit
def token_position(
    i, group, width, across,
    row_run, row_token, row_padded, row_shift, row_first, row_end,
    col_run, col_token, col_padded, col_shift, col_first, col_end,
):  # fmt: skip
    """Row, column, side of the cyclic shift, and whether it is a pad, of tokens i of a group."""
    down, right = group // across, group % across
    row = down // row_token * row_run + down % row_token + (i // width) * row_token
    col = right // col_token * col_run + right % col_token + (i % width) * col_token
    side = 2 * (row >= row_padded - row_shift).to(tl.int32)
    side += (col >= col_padded - col_shift).to(tl.int32)
    row += row_shift
    col += col_shift
    row = tl.where(row >= row_padded, row - row_padded, row)
    col = tl.where(col >= col_padded, col - col_padded, col)
    pad = (row < row_first) | (row >= row_end) | (col < col_first) | (col >= col_end)
    return row, col, side, pad


@triton.jit
def channel_offsets(start, row, col, step_row, step_col, d, FAR: tl.constexpr):
    """Offsets (tokens, channels) in memory, from `start` of the image and head."""
    if FAR:
        row, col = row.to(tl.int64), col.to(tl.int64)
    return start + ((row * step_row + col * step_col)[:, None] + d[None, :])


@triton.jit
def in_range(i, L, d, D: tl.constexpr, DP: tl.constexpr):
    """(tokens, channels) bool: the elements of a tile that exist."""
    inside = (i < L)[:, None]
    if D != DP:
        inside = inside & (d < D)[None, :]
    return inside


@triton.jit
def normalize_rows(x, COSINE: tl.constexpr):
    """Rows of x at unit length, if scores are cosines, and the rows' norms."""
    wide = x.to(tl.float32)
    length = tl.sqrt(tl.sum(wide * wide, 1))
    if COSINE:
        x = (wide / tl.maximum(length, MIN_NORM)[:, None]).to(x.dtype)
    return x, length


@triton.jit
def normalize_rows_backward(gradient, x, length, COSINE: tl.constexpr):
    """The gradient of the input of `normalize_rows`, whose rows are x, and the sums gradient * x.

    For x = y / |y|: dy = (dx - x (dx . x)) / |y|.
    """
    along = tl.sum(gradient * x.to(tl.float32), 1)
    if COSINE:
        radial = tl.where(length > MIN_NORM, along, 0.0)  # below it the divisor is a constant
        gradient = gradient - x.to(tl.float32) * radial[:, None]
        gradient = gradient / tl.maximum(length, MIN_NORM)[:, None]
    return gradient, along


@triton.jit
def bias_tile(bias, head, i, j, L, BIAS: tl.constexpr):
    """The bias of a tile of scores in units of log2, with -inf where no key exists."""
    if BIAS:
        table = bias + head.to(tl.int64) * L * L
        both = (i < L)[:, None] & (j < L)[None, :]
        tile = tl.load(table + (i[:, None] * L + j[None, :]), mask=both, other=0.0)
        tile = tile.to(tl.float32) * LOG2E
    else:
        tile = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    return tl.where((j < L)[None, :], tile, MASKED_SCORE)


@triton.jit
def mask_scores(
    s, i, j, side_i, side_j, pad_j, penalty, SHIFT: tl.constexpr, MASK_PADDING: tl.constexpr
):  # fmt: skip
    """Scores with the mask applied.  A query always attends to itself."""
    if SHIFT == 1:
        s = tl.where(side_i[:, None] == side_j[None, :], s, MASKED_SCORE)
    if SHIFT == 2:
        s = tl.where(side_i[:, None] == side_j[None, :], s, s + penalty * LOG2E)
    if MASK_PADDING:
        s = tl.where(pad_j[None, :] & (i[:, None] != j[None, :]), MASKED_SCORE, s)
    return s


@triton.jit
def head_scale(scale, logit_scale, head, COSINE: tl.constexpr):
    """The factor of products q k: `scale`, or the head's logit scale."""
    if COSINE:
        scale = tl.load(logit_scale + head).to(tl.float32)
    return scale


@triton.jit(do_not_specialize=RUNTIME)
def forward_one_tile(
    q, k, v, bias, logit_scale, out,
    heads, L, items, groups, steps, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, width, across,
    row_run, row_token, row_padded, row_shift, row_first, row_end,
    col_run, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, MASK_PADDING: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """Output of one head in every `steps`-th group; the tile of biases is read once."""
    head = tl.program_id(0) % heads
    i, d = tl.arange(0, BLOCK), tl.arange(0, DP)
    here = tl.minimum(i, L - 1)
    inside = in_range(i, L, d, D, DP)
    added = bias_tile(bias, head, i, i, L, BIAS)
    s_scale2 = head_scale(scale, logit_scale, head, COSINE) * LOG2E
    for item in range(tl.program_id(0) // heads, items, steps):
        row, col, side, pad = token_position(
            here, item % groups, width, across,
            row_run, row_token, row_padded, row_shift, row_first, row_end,
            col_run, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        image = (item // groups).to(tl.int64)
        at = channel_offsets(image * in_b + head * D, row, col, in_h, in_w, d, FAR)
        qt, _size = normalize_rows(tl.load(q + at, mask=inside, other=0.0), COSINE)
        kt, _size = normalize_rows(tl.load(k + at, mask=inside, other=0.0), COSINE)
        vt = tl.load(v + at, mask=inside, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * s_scale2 + added
        s = mask_scores(s, here, here, side, side, pad, penalty, SHIFT, MASK_PADDING)
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        total = tl.sum(p, 1)
        o = tl.dot(p.to(vt.dtype), vt, input_precision=PRECISION) / total[:, None]
        at = channel_offsets(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
        tl.store(out + at, o.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUNTIME)
def backward_one_tile(
    q, k, v, bias, logit_scale, gout, gq, gk, gv, gbias, gscale,
    heads, L, items, groups, steps, scale, penalty,
    in_b, in_h, in_w, out_b, out_h, out_w, grad_b, grad_h, grad_w, width, across,
    row_run, row_token, row_padded, row_shift, row_first, row_end,
    col_run, col_token, col_padded, col_shift, col_first, col_end,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    COSINE: tl.constexpr, SHIFT: tl.constexpr, MASK_PADDING: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """All gradients of one head in every `steps`-th group, from q, k, v and the output's.

    The probabilities P = softmax(S) are computed again, with S = Q K^T * scale + bias + mask.
    From the gradient dY of the output:

        dV = P^T dY
        dP = dY V^T
        dS = P * (dP - sum(dP * P))
        dQ = dS K * scale
        dK = dS^T Q * scale

    gbias (steps, heads, L, L) and gscale (steps, heads): sums of dS, and of the gradient of the
    logit scale, over this program's groups.
    """
    step, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    i, d = tl.arange(0, BLOCK), tl.arange(0, DP)
    here = tl.minimum(i, L - 1)
    inside = in_range(i, L, d, D, DP)
    added = bias_tile(bias, head, i, i, L, BIAS)
    s_scale = head_scale(scale, logit_scale, head, COSINE)
    bias_sum = tl.zeros((BLOCK, BLOCK), tl.float32)
    scale_sum = tl.zeros((BLOCK,), tl.float32)
    for item in range(step, items, steps):
        row, col, side, pad = token_position(
            here, item % groups, width, across,
            row_run, row_token, row_padded, row_shift, row_first, row_end,
            col_run, col_token, col_padded, col_shift, col_first, col_end,
        )  # fmt: skip
        image = (item // groups).to(tl.int64)
        at = channel_offsets(image * in_b + head * D, row, col, in_h, in_w, d, FAR)
        qt, q_length = normalize_rows(tl.load(q + at, mask=inside, other=0.0), COSINE)
        kt, k_length = normalize_rows(tl.load(k + at, mask=inside, other=0.0), COSINE)
        vt = tl.load(v + at, mask=inside, other=0.0)
        at = channel_offsets(image * out_b + head * D, row, col, out_h, out_w, d, FAR)
        ot = tl.load(gout + at, mask=inside, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * (s_scale * LOG2E) + added
        s = mask_scores(s, here, here, side, side, pad, penalty, SHIFT, MASK_PADDING)
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
        at = channel_offsets(image * grad_b + head * D, row, col, grad_h, grad_w, d, FAR)
        dv = tl.dot(tl.trans(p.to(ot.dtype)), ot, input_precision=PRECISION)
        tl.store(gv + at, dv.to(gv.dtype.element_ty), mask=inside)
        dp = tl.dot(ot, tl.trans(vt), input_precision=PRECISION)
        ds = p * (dp - tl.sum(p * dp, 1)[:, None])
        if BIAS:
            bias_sum += ds
        narrow = ds.to(qt.dtype)
        dq = tl.dot(narrow, kt, input_precision=PRECISION)
        dk = tl.dot(tl.trans(narrow), qt, input_precision=PRECISION)
        dq, along = normalize_rows_backward(dq, qt, q_length, COSINE)
        dk, _along = normalize_rows_backward(dk, kt, k_length, COSINE)
        if COSINE:
            scale_sum += along
        tl.store(gq + at, (dq * s_scale).to(gq.dtype.element_ty), mask=inside)
        tl.store(gk + at, (dk * s_scale).to(gk.dtype.element_ty), mask=inside)
    if BIAS:
        table = gbias + tl.program_id(0).to(tl.int64) * L * L
        both = (i < L)[:, None] & (i < L)[None, :]
        tl.store(table + (i[:, None] * L + i[None, :]), bias_sum, mask=both)
    if COSINE:
        tl.store(gscale + tl.program_id(0), tl.sum(tl.where(i < L, scale_sum, 0.0), 0))
