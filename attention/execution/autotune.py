"""Autotuning: for one kind of call all backends are run, compared and timed, the fastest is taken.

The reference is always among them.  A backend that fails or gives another result is refused with
a warning.  A choice holds for the life of the process; `save` and `load` carry choices from one
process to another.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from attention.execution import torch_private
from attention.execution.backends import BY_NAME, CPU, KERNEL, REFERENCE, Choice, Reference, running
from transom import files
from transom.errors import SpecError, cause_of, printable

ROUNDS = 3  # timings of each backend, interleaved; the least counts
# How many times as fast as the reference a backend must be.  The kernel sums in another order.
# Parts save a third of the memory, and least times of shared machines differ by 5% between calls.
REQUIRED_SPEEDUP = {KERNEL.name: 1.03, CPU.name: 0.95}
# ||a - b|| / ||b|| of results; gradients are rounded twice and may differ twice as much
LIMITS = {
    torch.bfloat16: 4e-2, torch.float16: 5e-3, torch.float32: 5e-5, torch.float64: 1e-10,
}  # fmt: skip

Run = Callable[[Tensor, Reference], "Tensor | tuple[Tensor, ...]"]

_choices: dict[str, Choice] = {}


def fastest(
    key: str, backends: Sequence[Reference], run: Run, x: Tensor, parameters: Sequence[Tensor]
) -> Choice:
    """The fastest backend of `run(x, backend)`, measured on the first call of the kind `key`.

    Neither x nor a gradient is changed.

    Args:
        key: the kind of the call.
        backends: the backends to compare, REFERENCE among them.
        run: the body of the module.
        x: its input.
        parameters: those whose gradients are part of the work, if they require any.
    """
    if key in _choices:
        return _choices[key]
    trainable = [p for p in parameters if p.requires_grad]
    if _ranks() > 1:
        return Choice(REFERENCE, "ranks must agree: load saved choices, or name a backend")
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return Choice(REFERENCE, "a CUDA graph is captured")
    if any(map(torch_private.tensor_hooked, trainable)):
        return Choice(REFERENCE, "a parameter has a hook")
    choice = _measured(backends, run, x, trainable)
    if choice is None:
        return Choice(REFERENCE, "its answer is not finite here, which decides nothing")
    _choices[key] = choice
    return choice


def _ranks() -> int:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def _measured(
    backends: Sequence[Reference], run: Run, x: Tensor, parameters: Sequence[Tensor]
) -> Choice | None:  # fmt: skip
    leaf = x.detach().requires_grad_(x.requires_grad)
    leaves = [t for t in (leaf, *parameters) if t.requires_grad]

    def forward_backward(backend: Reference) -> list[Tensor]:
        result = run(leaf, backend)
        out = [result] if isinstance(result, Tensor) else list(result)
        if not (torch.is_grad_enabled() and leaves):
            return out
        given = [t.detach() for t in out]
        return [*out, *torch.autograd.grad(out, leaves, given, materialize_grads=True)]

    def step(backend: Reference) -> list[Tensor]:
        with running(Choice(backend, "measured")):
            return forward_backward(backend)

    limit, accepted, refused = LIMITS.get(x.dtype, 0.0), list[Reference](), list[str]()
    if torch.get_float32_matmul_precision() != "highest" and x.dtype is torch.float32:
        limit = LIMITS[torch.float16]  # TF32 has float16's ten bits
    if torch.is_autocast_enabled(x.device.type):
        limit = LIMITS.get(torch.get_autocast_dtype(x.device.type), limit)
    with saved_tensors_hooks(lambda t: t, lambda t: t):  # a caller's hooks see no tensor of ours
        want = step(REFERENCE)
        if not all(t.isfinite().all() for t in want):
            return None
        for backend in backends:
            if backend is REFERENCE or not (reason := _refusal(step, backend, want, limit)):
                accepted.append(backend)
                continue
            warnings.warn(f"the {backend.name} backend is not used here: {reason}", stacklevel=2)
            refused.append(f"{backend.name} is refused: {reason}")
        del want
        times: dict[str, list[float]] = {backend.name: [] for backend in accepted}
        for _ in range(ROUNDS if len(accepted) > 1 else 0):
            for backend in accepted:
                times[backend.name].append(seconds(partial(step, backend), x.device))
    return _best({name: min(rounds) for name, rounds in times.items() if rounds}, refused)


def _best(times: Mapping[str, float], refused: Sequence[str]) -> Choice:
    if not times:
        return Choice(REFERENCE, "; ".join(refused))
    scaled = {name: REQUIRED_SPEEDUP.get(name, 1.0) * least for name, least in times.items()}
    name = min(scaled, key=scaled.__getitem__)
    timings = ", ".join(f"{other} {1e3 * least:.3g} ms" for other, least in times.items())
    return Choice(BY_NAME[name], "; ".join([f"measured: {timings}", *refused]))


def _refusal(
    step: Callable[[Reference], list[Tensor]], backend: Reference, want: list[Tensor],
    limit: float,
) -> str:  # fmt: skip
    """Why the backend is refused; "" if its result equals the reference's within the limit."""
    try:
        out, *grads = step(backend)
    except Exception as error:  # any error of a compiler or a driver: the reference remains
        return cause_of(error, named=True)[:300]
    difference = max(distance([out], want[:1]), distance(grads, want[1:]) / 2)
    if difference <= limit:
        return ""
    return f"its result is off by {difference:.2g}, more than {limit}"


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """||a - b|| / ||b|| over all tensors together: a single one may hold rounding alone."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, wanted, strict=True)]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    ratio = (off / max(size, 1e-30)) ** 0.5
    return ratio if ratio == ratio else float("inf")


def seconds(call: Callable[[], object], on: torch.device) -> float:
    """Seconds of the call and of the kernels that it started."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    start = time.perf_counter()
    call()
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.perf_counter() - start


# -- choices of other processes ----------------------------------------------------------------


def choices() -> dict[str, Choice]:
    """Every choice that was measured in this process or loaded into it, by kind of call."""
    return dict(_choices)


def save(path: str | os.PathLike[str]) -> None:
    """Writes every choice of this process to a JSON file, atomically.

    Args:
        path: the file, which is replaced if it exists; a link is followed.

    Raises:
        SpecError: where the folder cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from attention.execution import autotune
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     autotune.save(pathlib.Path(folder, "choices.json"))
        ...     autotune.load(pathlib.Path(folder, "choices.json"))
    """
    content = {key: {"backend": c.name, "reason": c.reason} for key, c in sorted(_choices.items())}
    files.write(Path(path), (json.dumps(content, indent=1) + "\n").encode("ascii"), option="")


def load(path: str | os.PathLike[str]) -> None:
    """Reads choices that `save` wrote, which then hold in this process without a measurement.

    Args:
        path: a file that `save` wrote.

    Raises:
        SpecError: for any other file; no choice is taken from it.

    Example:
        >>> from attention.execution import autotune
        >>> autotune.load("no_such.json")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        transom.errors.SpecError: no_such.json: no file of saved choices (FileNotFoundError: ...)
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        choices = {
            str(key): Choice(BY_NAME[saved["backend"]], f"loaded: {saved['reason']}"[:300])
            for key, saved in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = cause_of(error, named=True)[:200]
        raise SpecError(f"{printable(path)}: no file of saved choices ({text})") from None
    _choices.update(choices)


def forget() -> None:
    """Drops every choice of this process: the next call of each kind is measured."""
    _choices.clear()
