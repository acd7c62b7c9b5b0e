"""The product of a linear layer, as the fast path makes it.

On a CPU oneDNN's products are faster here than those of BLAS, which torch takes for float32, and
apply GELU to what they still hold.
"""

from __future__ import annotations

from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from attention import fast

ROWS = 784  # for which weights are packed; right for any number


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """x @ weight.T + bias, then GELU; no gradient."""
    if x.numel() and _onednn(x):
        if gelu:
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    y = F.linear(x, weight, bias)
    return torch.ops.aten.gelu_(y) if gelu else y


def back(grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """(rows, outputs) -> (rows, inputs): grad @ weight, what a linear layer hands back."""
    if _MKL_AT_HOME or not _onednn(grad):
        return torch.mm(grad, weight, out=out)
    y = linear(grad.contiguous(), weight.t(), None)
    return y if out is None else out.copy_(y)


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """(rows, dim) -> (rows, dim): two linear layers with GELU between them, rows by rows, so that
    the hidden layer is never whole; no gradient.  b1: its length is the hidden layer's width."""

    def run(rows: Tensor) -> Tensor:
        return linear(linear(rows, w1, b1, gelu=True), w2, b2)

    return fast.each(x, fast.chunks(len(x), len(b1), x), run)


def pack(weight: Tensor) -> Tensor:
    """The weight in the layout that oneDNN's products read, which they otherwise make every
    time; a second copy of it."""
    if not _onednn(weight):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    _packed[weight] = ref(packed), state(weight)
    return packed


def state(t: Tensor) -> tuple[int, int]:
    """Another tensor, or another version of the same one, is in another state."""
    return t.data_ptr(), 0 if t.is_inference() else t._version


_packed = WeakIdKeyDictionary()  # by weight: its packed copy, and the state that was made from


def kept(weight: Tensor) -> Tensor:
    """The packed copy, if somebody keeps one of what the weight is now."""
    copy, made_from = _packed.get(weight, (lambda: None, None))
    packed: Tensor | None = copy()
    return weight if packed is None or made_from != state(weight) else packed


def _onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _ONEDNN


def _find_onednn() -> tuple[torch.dtype, ...]:
    """The types oneDNN multiplies on this processor; none where torch was built without it."""
    built = torch.backends.mkldnn.is_available()
    if not built or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if half else (torch.float32,)


_ONEDNN = _find_onednn()


def _find_mkl_at_home() -> bool:
    """Is BLAS MKL, on a processor of its maker's?  There it multiplies by weights as they lie in
    memory faster than oneDNN by transposed ones, of some widths (3072 by 768) by half."""
    if not torch.backends.mkl.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return False
    return "Intel" in str(torch.cpu.get_capabilities().get("cpu_name"))


_MKL_AT_HOME = _find_mkl_at_home()
