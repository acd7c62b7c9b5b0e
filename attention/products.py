"""The product of a linear layer, as each path makes it.

On a CPU oneDNN's products are faster here than those of BLAS, which torch takes for float32, and
apply GELU to what they still hold.
"""

from __future__ import annotations

from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

ROWS = 784  # for which weights are packed; right for any number

# Said by torch from 2.7 on; an earlier one may always be exporting.
_exporting = getattr(torch.compiler, "is_exporting", lambda: True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """x @ weight.T + bias, then GELU; no gradient."""
    if x.numel() and _onednn(x):
        if gelu:
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    y = F.linear(x, weight, bias)
    return torch.ops.aten.gelu_(y) if gelu else y


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


def _kept(weight: Tensor) -> Tensor:
    """The packed copy, if somebody keeps one of what the weight is now."""
    copy, made_from = _packed.get(weight, (lambda: None, None))
    packed: Tensor | None = copy()
    return weight if packed is None or made_from != state(weight) else packed


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's own product, or in a graph that is compiled for inference `linear`'s."""
    if _taken(x, weight):
        return torch.ops.transom.linear(x, weight, bias, False)
    return F.linear(x, weight, bias)


def layer(module: nn.Linear, x: Tensor, *, gelu: bool = False) -> Tensor:
    """The module on x, then GELU; in a graph that is compiled for inference `linear`'s product,
    where nothing but the weights can make a difference."""
    bare = type(module) is nn.Linear and not (module._forward_hooks or module._forward_pre_hooks)
    if bare and _taken(x, module.weight):
        return torch.ops.transom.linear(x, module.weight, module.bias, gelu)
    y = module(x)
    return F.gelu(y) if gelu else y


@torch.library.custom_op(
    "transom::linear", mutates_args=(), device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor",
)  # fmt: skip
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """`linear`, which a compiler takes as it is: it would turn torch's into BLAS's.  A graph holds
    weights as they are; the copies of a folded model are looked up when it runs."""
    return linear(x, _kept(weight), bias, gelu=gelu)


@_linear.register_fake
def _(x, weight, bias, gelu):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def compiled() -> bool:
    """Is a graph traced here that will run here, without gradients?"""
    traced = torch.compiler.is_dynamo_compiling() and not _exporting()
    return traced and not torch.is_grad_enabled()


def _taken(x: Tensor, weight: Tensor) -> bool:
    """Is it `linear` that a compiled graph calls?"""
    if not compiled() or torch.is_autocast_enabled("cpu"):
        return False
    if torch._C._are_functorch_transforms_active():  # vmap has no rule for the operator
        return False
    from torch._inductor import config

    if config.freezing:  # the compiler packs the weights itself
        return False
    return type(weight) is nn.Parameter and weight.dtype == x.dtype and _onednn(x)


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
