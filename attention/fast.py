"""Where the fast path may stand in for the plain one, and what it is made of.

The plain path is what the mixers' `forward` says step by step.  The fast path computes the same
without the copies: groups in chunks that stay in the cache, one permutation in and one out,
strided views instead of split heads, results written over what is no longer needed.  It runs
where nothing can tell the two apart but a clock: on a CPU, or with a bound on memory on any
device, without hooks, tracing or modes that look at the operators.  `with plain():` keeps
everything on the plain path; counting does.

What torch.compile traces on a CPU is the fast path with gradients (`attention.learning`), whether
anyone asks for them or not: its products and its attention are operators of our own, which a graph
holds as they are, and the copies between them are the compiler's to fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode

from attention import cores

MASKS = 8 << 20  # bytes up to which one mask for all groups is kept for a forward
OURS = "torch.nn.modules.", "attention.", "backbones."  # whose layers do as they are named
# Said by torch from 2.7 on; an earlier one may always be exporting.
_exporting = getattr(torch.compiler, "is_exporting", lambda: True)
DTYPES = torch.float32, torch.float64, torch.bfloat16  # half is summed in half by some products
KEPT = 3 << 20  # bytes up to which one module's mask is kept in a forward
MAPS = 3 << 19  # bytes of the maps that a core takes through a stage together
CACHE = 1 << 20  # bytes of the widest intermediate of a chunk, for each core
ROWS = 784  # fewer rows than this, for each core, do not pay for reading the weights again

_path: ContextVar[str] = ContextVar("path", default="fast")
_bound: ContextVar[int | None] = ContextVar("bound", default=None)
_made: ContextVar[_Memory | None] = ContextVar("made", default=None)

Made = TypeVar("Made")


@contextmanager
def plain() -> Iterator[None]:
    """Inside, every mixer and layer takes the plain path."""
    with path("plain"):
        yield


@contextmanager
def path(name: str) -> Iterator[None]:
    """fast, plain or kernel (`attention.fused`)."""
    token = _path.set(name)
    try:
        yield
    finally:
        _path.reset(token)


def path_is(name: str) -> bool:
    return _path.get() == name


@contextmanager
def bounded(mebibytes: float) -> Iterator[None]:
    """Inside, inference on any device takes a few images at a time through a stage, and what is
    wider than their maps (queries, keys and values, hidden layers) in chunks that take no more
    than this (on a CPU, for each core) or hold one group, one token: less memory, more calls."""
    if not mebibytes > 0:
        raise ValueError(f"bounded: {mebibytes} MiB; a chunk needs more than 0")
    token = _bound.set(max(int(mebibytes * 2**20), 1))
    try:
        yield
    finally:
        _bound.reset(token)


class _Memory(NamedTuple):
    """again: will every module be called again?  learning: with gradients?"""

    made: dict[Hashable, Any]
    again: bool
    learning: bool


@contextmanager
def forward(*, again: bool = False, learning: bool = False) -> Iterator[None]:
    """Inside, what modules ask to `remember` is made once.  Whoever opens it has seen that
    `unseen` holds for all of them, and `learns` or not, and says whether they are called more
    than once."""
    token = _made.set(_Memory({}, again, learning))
    try:
        yield
    finally:
        _made.reset(token)


def remember(key: Hashable, make: Callable[[], Made], *, own: bool = False) -> Made:
    """`make()`; in a `forward`, its first answer for this key.

    own: of one module, for which nobody else asks.  It is made again rather than kept beside
    those of all other modules where it is large.
    """
    memory = None if torch.compiler.is_compiling() else _made.get()
    if memory is None or (own and not memory.again):
        return make()
    if key in memory.made:
        known: Made = memory.made[key]
        return known
    answer = make()
    if not (own and isinstance(answer, Tensor) and answer.nbytes > KEPT):
        memory.made[key] = answer
    return answer


def applies(x: Tensor, module: nn.Module, *layers: nn.Module) -> bool:
    """May `module`, with these linear layers, take its fast path on x, without gradients?"""
    return not learns(x, module) and unseen(x, module, *layers)


def learns(x: Tensor, module: nn.Module) -> bool:
    """Will somebody ask for gradients of x or of the parameters, or is a graph traced?"""
    if torch.compiler.is_compiling():
        return True
    if (memory := _made.get()) is not None:
        return memory.learning
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(p.requires_grad for p in module.parameters())


def unseen(x: Tensor, module: nn.Module, *layers: nn.Module) -> bool:
    """Can nobody tell from the operators, types or hooks which path is taken?"""
    if any(type(layer) is not nn.Linear or "weight" not in layer._parameters for layer in layers):
        return False
    if torch.compiler.is_compiling():
        return _traced(x) and untouched(module, x)
    if not path_is("fast"):
        return False
    if _made.get() is not None:
        return True
    if type(x) is not Tensor or not x.numel() or not (_on_cpu(x) or _bounds(x, module)):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    return not watched() and untouched(module, x)


def _traced(x: Tensor) -> bool:
    """Does torch.compile trace a graph here that will run here, on a CPU?"""
    if not torch.compiler.is_dynamo_compiling() or _exporting() or not _on_cpu(x):
        return False
    if torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
        return False
    if _hooked() or not path_is("fast"):
        return False
    from torch._inductor import config

    return torch.is_grad_enabled() or not config.freezing  # which packs the weights itself


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in DTYPES


def _bounds(x: Tensor, module: nn.Module) -> bool:
    """Was a bound asked for, where there is something to bound and it is inference?"""
    real = x.device.type not in ("cpu", "meta")
    return _bound.get() is not None and real and not learns(x, module)


def untouched(module: nn.Module, x: Tensor) -> bool:
    """Is every part of it ours or torch's, without hooks, with parameters of x's kind?"""
    parts = [module]
    while parts:
        part = parts.pop()
        parts += [inner for inner in part._modules.values() if inner is not None]
        if not type(part).__module__.startswith(OURS):
            return False
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks:
            return False
        for p in part._parameters.values():
            if p is not None and (
                type(p) is not nn.Parameter or p.dtype != x.dtype or p.device != x.device
            ):
                return False
    return True


def watched() -> bool:
    """Does somebody look at the operators (counters, fake tensors, function transforms), or ask
    for the plain ones?"""
    return (
        path_is("plain")
        or torch.jit.is_tracing()
        or _get_current_dispatch_mode() is not None
        or bool(_get_current_function_mode_stack())
        or torch._C._functorch.peek_interpreter_stack() is not None
        or _hooked()
    )


def _hooked() -> bool:
    """Is every module?"""
    everywhere = nn.modules.module
    return bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks)


def chunks(rows: int, width: int, like: Tensor, unit: int = 1) -> Iterator[slice]:
    """Slices of `rows` units of `unit` tokens, whose intermediates of `width` numbers a token
    stay in the cache."""
    bound, token = _bound.get(), width * like.element_size()
    if bound is None:
        tokens = max(CACHE // token, ROWS) * torch.get_num_threads()
    else:
        tokens = bound // token
    return slices(rows, max(tokens // unit, 1))


def parts(x: Tensor, n: int, length: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Some images and some of their `n` groups of `length` tokens: all groups of several images,
    or several groups of one, whose intermediates of `width` numbers a token stay in the cache."""
    for images in chunks(len(x), width, x, unit=n * length):
        alone = images.stop - images.start == 1
        for some in chunks(n, width, x, unit=length) if alone else [slice(0, n)]:
            yield images, some


def images(x: Tensor) -> list[slice]:
    """Equal slices of the batch whose maps stay in the cache from block to block, as many for
    every core if there are as many images."""
    n, bound, share = len(x), _bound.get(), cores.threads() if _on_cpu(x) else 1
    most = (MAPS if bound is None else bound) // max(x[:1].numel() * x.element_size(), 1)
    rounds = -(-n // (max(most, 1) * share))
    parts = max(min(rounds * share, n), 1)
    return [slice(i * n // parts, (i + 1) * n // parts) for i in range(parts)]


def each(
    x: Tensor, parts: Iterable[slice], run: Callable[[Tensor], Tensor], *, spread: bool = False
) -> Tensor:
    """`run` on parts of x, the answers one after another; a single one as it is.

    spread: over the cores.
    """
    out: list[Tensor] = []
    parts, lock = list(parts), Lock()
    if len(parts) == 1:
        return run(x)

    def one(part: slice) -> None:
        y = run(x[part])
        with lock:  # the first answer tells what all are like
            if not out:
                out.append(y.new_empty(len(x), *y.shape[1:]))
        out[0][part] = y

    if spread and _on_cpu(x):
        cores.spread(parts, one)
    else:
        for part in parts:
            one(part)
    return out[0]


def slices(rows: int, step: int) -> Iterator[slice]:
    """At least one, if only an empty one."""
    for start in range(0, max(rows, 1), step):
        yield slice(start, min(start + step, rows))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(rows, l, heads, d), of any strides -> the same; mask: (n, heads | 1, l, l) for every n
    rows."""
    n = len(mask) if mask is not None else 1
    if n in (1, len(q)):
        return _attend(q, k, v, mask, scale)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    for i in range(0, len(q), n):  # a mask repeated over the batch would outweigh the tokens
        own = slice(i, i + n)
        out[own] = _attend(q[own], k[own], v[own], mask, scale)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    if q.dtype is torch.bfloat16 and q.device.type == "cpu" and not q.requires_grad:
        # torch's kernel widens the same numbers inside, more slowly
        wide = None if mask is None else mask.float()
        return _attend(q.float(), k.float(), v.float(), wide, scale).bfloat16()
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2)
