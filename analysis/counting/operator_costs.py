"""Cost rules of the operators of a traced graph for fvcore, and the operators that are free.

fvcore's built-in handles miss fused attention, count a broadcast product by its first operand only
and round einsum to four digits, so none of them is used.  A rule returns {operator: MACs}; norms
return {"norm": elements}, which are counted separately; a call that a rule cannot read returns
{"?operator": 1}, which is an error downstream, and so is an operator that is neither in COST_RULES
nor in FREE.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

CostRule = Callable[[list[Any], list[Any]], Counter]

NORM, UNKNOWN = "norm", "?"


def _shape(value: Any) -> list[int]:
    sizes = value.type().sizes() if value.isCompleteTensor() else None
    if sizes is None:
        raise ValueError("a tensor without a known shape")
    return sizes


def _count(name: str, rule: Callable[[list[Any], list[Any]], int]) -> CostRule:
    """Wraps a rule, so that a call it cannot read is named instead of skipped."""

    def cost_rule(inputs: list[Any], outputs: list[Any]) -> Counter:
        try:
            return Counter({name: rule(inputs, outputs)})
        except (ValueError, IndexError, AttributeError, TypeError, RuntimeError):
            return Counter({f"{UNKNOWN}aten::{name}": 1})

    return cost_rule


def _product(left: int) -> Callable[[list[Any], list[Any]], int]:
    """Elements of the result times the length of the last axis of operand `left`."""
    return lambda inputs, outputs: math.prod(_shape(outputs[0])) * _shape(inputs[left])[-1]


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    x, weight, out = _shape(inputs[0]), _shape(inputs[1]), _shape(outputs[0])
    transposed = len(inputs) > 6 and bool(inputs[6].toIValue())
    return math.prod(x if transposed else out) * math.prod(weight[1:])


def _sdpa(inputs: list[Any], outputs: list[Any]) -> int:
    """Scores and the weighted sum; the mask and the softmax are free."""
    q, k, v = (_shape(inputs[i]) for i in range(3))
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Two operands: one product per combination of the shared and the remaining indices."""
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(shapes) != 2 or not arrow or "." in equation:
        raise ValueError("only two operands with a stated result are counted")
    sizes = dict(zip("".join(terms), [s for shape in shapes for s in shape], strict=True))
    indices = set(terms[0]) & set(terms[1]) | set(right)
    return math.prod(sizes[i] for i in indices)


def _norm(inputs: list[Any], outputs: list[Any]) -> Counter:
    return Counter({NORM: math.prod(_shape(inputs[0]))})


COST_RULES: dict[str, CostRule] = {
    "aten::linear": _count("linear", _product(0)),
    "aten::matmul": _count("matmul", _product(0)),
    "aten::mm": _count("matmul", _product(0)),
    "aten::bmm": _count("matmul", _product(0)),
    "aten::mv": _count("matmul", _product(0)),
    "aten::dot": _count("matmul", _product(0)),
    "aten::addmm": _count("matmul", _product(1)),
    "aten::baddbmm": _count("matmul", _product(1)),
    "aten::einsum": _count("einsum", _einsum),
    "aten::_convolution": _count("conv", _convolution),
    "aten::_convolution_mode": _count("conv", _convolution),
    "aten::conv1d": _count("conv", lambda i, o: _convolution(i[:2], o)),
    "aten::conv2d": _count("conv", lambda i, o: _convolution(i[:2], o)),
    "aten::conv3d": _count("conv", lambda i, o: _convolution(i[:2], o)),
    "aten::scaled_dot_product_attention": _count("attention", _sdpa),
    "aten::layer_norm": _norm,
    "aten::batch_norm": _norm,
    "aten::group_norm": _norm,
    "aten::instance_norm": _norm,
    "aten::rms_norm": _norm,
}

# Elementwise arithmetic, reductions, softmax, pooling, resizing, and everything that only moves,
# makes or indexes memory: no multiply-add of a matrix, by the convention of every paper here.
_FREE = """
    abs add add_ sub sub_ rsub mul mul_ div div_ neg pow sqrt rsqrt exp exp_ log log1p log2 sin
    cos tanh sigmoid sigmoid_ square sign reciprocal floor ceil round floor_divide remainder
    fmod clamp clamp_ clamp_min clamp_max clamp_min_ minimum maximum where lerp erf trunc hypot
    atan2 softmax log_softmax _softmax gelu gelu_ relu relu_ relu6 relu6_ silu silu_ mish
    hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ leaky_relu leaky_relu_ elu
    elu_ selu prelu softplus glu celu logsigmoid threshold sum mean max min amax amin argmax
    argmin prod var std var_mean norm linalg_vector_norm cumsum all any topk sort argsort unique
    nonzero bincount logsumexp normalize adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_max_pool1d adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d max_pool1d
    max_pool2d max_pool3d upsample_nearest1d upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa grid_sampler pixel_shuffle
    pixel_unshuffle eq ne lt le gt ge logical_and logical_or logical_not logical_xor __and__
    __or__ __xor__ __not__ bitwise_and bitwise_or bitwise_not bitwise_xor __is__ __isnot__ Bool
    Float Int IntImplicit ScalarImplicit FloatImplicit is_nonzero item numel size dim len warn
    dropout dropout_ feature_dropout alpha_dropout native_dropout bernoulli bernoulli_ rand
    rand_like randn randn_like randint randperm uniform_ normal_ embedding index index_put
    index_put_ index_select index_add index_copy gather scatter scatter_ scatter_add take
    masked_fill masked_fill_ masked_select tril triu diagonal diag roll flip one_hot meshgrid
    arange linspace full full_like ones ones_like zeros zeros_like empty empty_like eye
    new_empty new_full new_ones new_zeros fill_ zero_ tensor scalar_tensor as_tensor cat concat
    stack hstack vstack chunk split split_with_sizes unsafe_chunk tensor_split unbind narrow
    slice select squeeze squeeze_ unsqueeze unsqueeze_ expand expand_as repeat repeat_interleave
    tile view view_as reshape reshape_as flatten unflatten permute transpose t swapaxes movedim
    contiguous clone copy_ detach detach_ to type_as alias lift lift_fresh as_strided unfold
    im2col col2im pad constant_pad_nd reflection_pad2d replication_pad2d _reshape_alias
    resolve_conj resolve_neg numpy_T mT adjoint atleast_1d broadcast_to real imag view_as_real
    view_as_complex _shape_as_tensor is_floating_point channel_shuffle feature_alpha
"""
FREE = frozenset("aten::" + name for name in _FREE.split())
