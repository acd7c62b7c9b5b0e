"""Which of two ways through a module is the faster one on this GPU: both are run, compared, timed.

The usual way stays wherever the other one fails, gives another result, or is not faster; the
first two are said in a warning.  A verdict holds for one device, one question (`key`) and inputs
of about one size for the life of the process, so that recomputation in backward takes the way
that forward took.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

ROUNDS = 5  # timings of each way, one after the other
GAIN = 1.03  # less is not worth another order of sums
# ||a - b|| / ||b||, of results; gradients went through two roundings and may differ twice as much
LIMITS = {torch.bfloat16: 4e-2, torch.float16: 5e-3, torch.float32: 5e-5}

Way = Callable[..., Tensor]

_verdicts: dict[Hashable, bool] = {}


def won(
    key: Hashable, other: Way, usual: Way, inputs: Sequence[Tensor], parameters: Iterable[Tensor]
) -> bool:
    """Is `other(*inputs)` faster than `usual(*inputs)`, with gradients where somebody asks for
    those of the inputs or parameters?  Decided the first time; nothing outside is changed."""
    x, learned = inputs[0], [p for p in parameters if p.requires_grad]
    key = key, x.device, torch.is_grad_enabled(), bool(learned), *(_about(t) for t in inputs)
    if key not in _verdicts:
        capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if capturing or any(p._backward_hooks for p in learned):
            return False
        verdict = _held(other, usual, inputs, learned)
        if verdict is None:
            return False
        _verdicts[key] = verdict
    return _verdicts[key]


def _about(t: Tensor) -> tuple[int, ...]:
    """Its channels, and how often its numbers double: training on many sizes asks a few times."""
    return t.shape[-1], t.numel().bit_length(), t.requires_grad


def _held(
    other: Way, usual: Way, inputs: Sequence[Tensor], parameters: list[Tensor]
) -> bool | None:  # fmt: skip
    """None where the usual way has no finite answer to compare with."""
    leaves = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
    wanted = [t for t in leaves if t.requires_grad] + parameters
    learns = torch.is_grad_enabled() and bool(wanted)

    def run(way: Way) -> list[Tensor]:
        out = way(*leaves)
        if not learns:
            return [out]
        return [out, *torch.autograd.grad(out, wanted, out.detach(), materialize_grads=True)]

    with saved_tensors_hooks(lambda t: t, lambda t: t):  # none of a caller's who counts tensors
        try:
            same, *wanted_grads = run(usual)
            if not all(t.isfinite().all() for t in (same, *wanted_grads)):
                return None
            (out, *grads), limit = run(other), _limit(same.dtype)
            apart = _apart([out], [same]), _apart(grads, wanted_grads) / 2
            if not max(apart) <= limit:
                return _warned(f"its result is off by {max(apart):.2g}, more than {limit}")
            return _faster(lambda: run(other), lambda: run(usual), inputs[0].device)
        except Exception as error:  # whatever a compiler or a driver says, the usual way is there
            return _warned(" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _limit(dtype: torch.dtype) -> float:
    """TF32, where torch may use it, has float16's ten bits."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return LIMITS[dtype if exact or dtype is not torch.float32 else torch.float16]


def _warned(reason: str) -> bool:
    warnings.warn(f"the fused attention kernel is not used here: {reason}", stacklevel=2)
    return False


def _apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """||a - b|| / ||b|| of all numbers together: single ones may be nothing but rounding."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, wanted, strict=True)]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    return (off / max(size, 1e-30)) ** 0.5


def _faster(other: Callable[[], object], usual: Callable[[], object], on: torch.device) -> bool:
    times = [(seconds(other, on), seconds(usual, on)) for _ in range(ROUNDS)]
    one, two = (statistics.median(column) for column in zip(*times, strict=True))
    return two >= GAIN * one


def seconds(call: Callable[[], object], on: torch.device) -> float:
    """Of the kernels and whatever they wait for."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    start = time.perf_counter()
    call()
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.perf_counter() - start
