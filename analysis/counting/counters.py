"""Two counters independent of our formulas: fvcore on a real forward, torch on the meta device.

Both give MACs and norm elements per module for one image; modules are named as in
`named_modules`, and the count of a module includes its children.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from analysis.counting.operator_costs import COST_RULES, FREE, NORM, UNKNOWN


@dataclass
class Tally:
    """Costs of one forward of one image by one counter."""

    macs: Counter[str] = field(default_factory=Counter)  # by module; "" is the model
    norms: Counter[str] = field(default_factory=Counter)  # elements, by module
    operators: Counter[str] = field(default_factory=Counter)  # MACs by operator
    uncounted: tuple[str, ...] = ()
    sampling: tuple[str, ...] = ()  # interpolations at computed places, which count 0
    peak_bytes: int = 0  # most memory of activations that are alive together
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of the first output
    activations: int = 0  # elements that convolutions, linear layers and matrix products write


@contextlib.contextmanager
def quiet_eval(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Evaluation mode without warnings; restores every module's mode."""
    modes = {module: module.training for module in model.modules()}
    logging.disable(logging.WARNING)
    try:
        with torch.set_grad_enabled(gradients), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.eval()
            yield
    finally:
        logging.disable(logging.NOTSET)
        for module, mode in modes.items():
            module.training = mode


# -- torch, on the meta device ---------------------------------------------------------------

_aten = torch.ops.aten
_NAMES = """
    native_layer_norm native_batch_norm native_group_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training _fused_rms_norm cudnn_batch_norm
"""  # not every version of torch has all of them
_NORMS = frozenset(getattr(_aten, name) for name in _NAMES.split() if hasattr(_aten, name))
_NORM_COSTS = {norm: lambda x, *args, **kwargs: math.prod(x) for norm in _NORMS}
VECTORS = {  # torch's counter has no vector products
    _aten.mv: lambda matrix, vector, **kwargs: 2 * math.prod(matrix),
    _aten.dot: lambda left, right, **kwargs: 2 * math.prod(left),
}

# Products that torch's counter does not know; operators outside aten are always unknown.
_UNKNOWN = """
    vdot addmv addr ger outer _trilinear _cdist_forward linalg_matmul matrix_exp
    _native_multi_head_attention _transformer_encoder_layer_fwd
    _scaled_dot_product_flash_attention_for_cpu
"""
_SUMS = frozenset((_aten.addmm, _aten.baddbmm))
_UNKNOWN_PRODUCTS = frozenset(_UNKNOWN.split())


def _unknown(func: Any) -> set[str]:
    """The name of an operator, if torch's counter would miss its products."""
    namespace, name = func._schema.name.split("::")
    missed = namespace not in ("aten", "prim", "prims") or name in _UNKNOWN_PRODUCTS
    return {func._schema.name} if missed else set()


class _Skipped(TorchDispatchMode):
    """Records operators that the counter skips."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.unknown |= _unknown(func)
        return func(*args, **(kwargs or {}))


class Observer(TorchDispatchMode):
    """Records operators that the counter skips, the most memory that is alive together, and the
    MACs that the products foretell for the backward pass: once for every operand that needs a
    gradient, because a gradient of a product is a product of that size."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.unknown: set[str] = set()
        self.sampling: set[str] = set()
        self.peak = self.now = self.activations = self.foretold = 0
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.known = {t.untyped_storage()._cdata for t in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.unknown |= _unknown(func)
        if func._schema.name.startswith("aten::grid_sampler"):
            self.sampling.add(func._schema.name)
        for key, (ref, size) in list(self.live.items()):
            if ref.expired():
                self.now -= size
                del self.live[key]
        if func._overloadpacket in flop_registry:
            written = next((t for t in tree_leaves(out) if isinstance(t, Tensor)), None)
            self.activations += 0 if written is None else written.numel()
            macs = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
            summand = func._overloadpacket in _SUMS  # which takes no product
            operands = [t for t in args[summand:] if isinstance(t, Tensor)][:2]
            self.foretold += macs * sum(t.requires_grad for t in operands)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in self.live:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return out


@contextlib.contextmanager
def _shapes(model: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shape of every module's first output, by the module's name, in the order of the ends."""
    found: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Any:
        def told(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if tensors:
                found.setdefault(name, tuple(tensors[0].shape))

        return told

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def without_data(model: nn.Module) -> Iterator[list[Tensor]]:
    """Replaces every parameter and buffer by a meta tensor, and restores them, shared ones too."""
    meta: dict[int, Tensor] = {}
    replaced = [
        (store, name, tensor)
        for module in model.modules()
        for store in (module._parameters, module._buffers)
        for name, tensor in store.items()
        if tensor is not None
    ]
    try:
        for store, name, tensor in replaced:
            if id(tensor) not in meta:
                replacement = torch.empty_like(tensor, device="meta")
                meta[id(tensor)] = replacement.requires_grad_(tensor.requires_grad)
            store[name] = meta[id(tensor)]  # type: ignore[assignment]
        yield list(meta.values())
    finally:
        for store, name, tensor in replaced:
            store[name] = tensor  # type: ignore[assignment]


def on_meta(model: nn.Module, shape: tuple[int, ...]) -> Tally:
    """Counts with torch.utils.flop_counter on tensors without data, at any size.

    shape: (b, c, h, w) of images, or (b, h, w, c) of a mixer's map.
    """
    counter = _flop_counter()
    with without_data(model) as state, quiet_eval(model):
        dtype = next((t.dtype for t in state if t.is_floating_point()), torch.float32)
        x = torch.empty(shape, device="meta", dtype=dtype)
        observer = Observer([x, *state])
        with counter, observer, _shapes(model) as shapes:
            model(x)
    tally = Tally(
        uncounted=tuple(sorted(observer.unknown)),
        sampling=tuple(sorted(observer.sampling)),
        peak_bytes=observer.peak,
        shapes=shapes,
        activations=observer.activations,
    )
    return _filled(tally, counter, model)


def computed(model: nn.Module, shape: tuple[int, ...]) -> Tally:
    """Counts with torch.utils.flop_counter on a real forward: `macs`, `norms` and `uncounted` of
    `on_meta`, and `operators`, some of which have other names.

    It is sooner done, because torch finds the shapes of small tensors by Python code more slowly
    than it computes them.  Attention runs without fused kernels, which torch's counter does not
    know on the CPU.
    """
    counter, real, skipped = _flop_counter(), materialised(model), _Skipped()
    x = _zeros(real, shape)
    with quiet_eval(real), sdpa_kernel(SDPBackend.MATH), counter, skipped:
        real(x)
    return _filled(Tally(uncounted=tuple(sorted(skipped.unknown))), counter, real)


def _flop_counter() -> FlopCounterMode:
    """Torch's counter, with our rules for norms and vectors."""
    # torch imports it inside a first call; up to torch 2.6 that import runs matrix products
    importlib.import_module("torch._dynamo")
    return FlopCounterMode(display=False, custom_mapping=_NORM_COSTS | VECTORS)


def _filled(tally: Tally, counter: FlopCounterMode, model: nn.Module) -> Tally:
    """The tally with what torch's counter has counted in a forward of the model."""
    root = type(model).__name__
    for module, by_operator in counter.get_flop_counts().items():
        if module == "Global":
            name = ""
        elif module.startswith(root + "."):
            name = module.removeprefix(root + ".")
        else:
            continue
        for operator, value in by_operator.items():
            if operator in _NORMS:
                tally.norms[name] += value
            else:
                assert value % 2 == 0, "torch counts two operations per MAC"
                tally.macs[name] += value // 2
                if not name:
                    tally.operators[str(operator).removeprefix("aten.")] += value // 2
    return tally


# -- fvcore, on a traced forward -------------------------------------------------------------


def materialised(model: nn.Module) -> nn.Module:
    """The model; if it is on the meta device, a copy on the CPU with zeros, since counts do not
    depend on values."""
    if not any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        return model
    real = copy.deepcopy(model).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*real.parameters(), *real.buffers()):
            tensor.zero_()
    return real


def _zeros(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Zeros on the device and of the type of the model's first float parameter or buffer."""
    like = next(
        (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()),
        torch.zeros(0),
    )
    return torch.zeros(shape, device=like.device, dtype=like.dtype)


@contextlib.contextmanager
def _slow_multihead() -> Iterator[None]:
    """Disables the fused path of nn.MultiheadAttention, which is one opaque operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _tensors_alone(model: nn.Module) -> Iterator[None]:
    """The tracer takes tensors: what else a forward returns beside them (names, sizes, None) is
    left out of its result."""
    forward = model.forward

    def told(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        tensors = tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return tensors if tensors and len(tensors) < len(tree_leaves(out)) else out

    own = "forward" in vars(model)
    model.forward = told
    try:
        yield
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward


class _PlainSizes(TorchFunctionMode):
    """Sizes of tensors are plain numbers while a forward is traced.

    The tracer else records an operator for every size that is read and each sum and product of
    sizes, with the place in the code: a quarter of its time, of which no count depends.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _READ_SIZES:
            return func(*args, **(kwargs or {}))
        tracer: Any = torch._C
        state = tracer._get_tracing_state()
        tracer._set_tracing_state(None)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            tracer._set_tracing_state(state)


_READ_SIZES = (Tensor.shape.__get__, Tensor.size, Tensor.numel)  # type: ignore[attr-defined]


def traced(model: nn.Module, shape: tuple[int, ...]) -> Tally:
    """Counts with fvcore on a traced forward, by the rules of `operator_costs` only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn.jit_analysis import JitModelAnalysis

    real = materialised(model)
    x = _zeros(real, shape)
    with quiet_eval(real), _slow_multihead(), _tensors_alone(real), _PlainSizes():
        analysis = JitModelAnalysis(real, (x,))
        analysis.clear_op_handles().set_op_handle(**COST_RULES)
        analysis.set_op_handle(**dict.fromkeys(FREE))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        by_module = analysis.by_module_and_operator()
        unknown = set(analysis.unsupported_ops())
    tally = Tally()
    for module, operators in by_module.items():
        for operator, value in operators.items():
            if operator.startswith(UNKNOWN):
                unknown.add(operator.removeprefix(UNKNOWN))
            elif operator == NORM:
                tally.norms[module] += value
            else:
                tally.macs[module] += value
                if not module:
                    tally.operators[operator] += value
    tally.uncounted = tuple(sorted(unknown))
    return tally


def parameters(model: nn.Module) -> Counter[str]:
    """Parameters per module, children included; a shared parameter counts once in each module that
    holds it, and once in the model ("")."""
    seen: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path = name.split(".")[:-1]
        for i in range(len(path) + 1):
            seen[".".join(path[:i])][id(parameter)] = parameter.numel()
    return Counter({module: sum(sizes.values()) for module, sizes in seen.items()})
