"""The profile of a model: time by stage, from wrapped forwards (hooks would select the reference
backend), and by kind of operator, from torch's profiler.  Rows state how much both slow a call."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from analysis.results.measurement import Measurement
from analysis.timing import build_model, steps
from transom.errors import SpecError

Row = dict[str, Any]
CALLS = 5
# the first kind with a word in the operator's name
KINDS = {
    "attention": ("attention", "flash", "sdpa"), "convolution": ("conv",),
    "matrix product": ("addmm", "mm", "linear", "matmul", "gemm"),
    "softmax": ("softmax",), "norm": ("norm",), "activation": ("gelu", "relu", "sigmoid"),
    "copy": ("copy", "clone", "contiguous", "cat", "roll", "index", "pad", "gather", "scatter",
             "stack", "fill", "zero", "_to", "slice", "select"),
    "elementwise": ("add", "mul", "div", "sub", "mean", "sum", "exp", "clamp", "pow", "where"),
}  # fmt: skip


def profile_of(measurement: Measurement) -> Row:
    """{"split": rows by stage and by operator}: ms of one call, and the slowdown by observing."""
    if measurement.compile:
        raise SpecError("--by: a compiled model has no stages and operators of its own")
    built, _ = build_model.fitting(
        measurement, lambda attempt: build_model.build(attempt, check=False)
    )
    sync = steps.sync_of(measurement.device)
    call, x = built.runner.call, built.runner.fresh(1)

    def time_call() -> float:
        sync()
        start = time.perf_counter()
        call(x)
        sync()
        return time.perf_counter() - start

    for _ in range(3):
        time_call()
    unobserved = median(time_call() for _ in range(CALLS))
    by_stage = _stages(built.model, time_call, sync, unobserved)
    return {"split": [*by_stage, *_operators(time_call, unobserved)]}


def trunk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The stages by name: elements of the module list with the most parameters, outermost first."""

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    lists = [
        (name, module) for name, module in model.named_modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 1
    ]  # fmt: skip
    if not lists:
        return []
    name, found = max(lists, key=lambda pair: (size(pair[1]), -pair[0].count(".")))
    return [(f"{name}.{key}", module) for key, module in found.named_children()]


def _stages(
    model: nn.Module, time_call: Callable[[], float], sync: Callable[[], None], unobserved: float
) -> list[Row]:
    """Rows of forward time by stage; "rest" is the time outside them and of the backward pass."""
    spent: defaultdict[str, list[float]] = defaultdict(list)
    stages = trunk(model)

    def timed_forward(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*args: Any, **named: Any) -> Any:
            sync()
            start = time.perf_counter()
            answer = forward(*args, **named)
            sync()
            spent[name].append(time.perf_counter() - start)
            return answer

        return observed

    for name, module in stages:
        module.forward = timed_forward(name, module.forward)
    observed = median(time_call() for _ in range(CALLS))
    for _, module in stages:
        del module.forward  # restores the method of the class
    parts = {name: median(times) for name, times in spent.items()}
    parts["rest"] = max(0.0, observed - sum(parts.values()))
    return _rows("stage", parts, observed, unobserved)


def _operators(time_call: Callable[[], float], unobserved: float) -> list[Row]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    cuda = torch.cuda.is_available()
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        observed = median(time_call() for _ in range(CALLS))
    parts: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        parts[kind_of(event.key)] += microseconds / 1e6 / CALLS
    return _rows("operator", dict(parts), observed, unobserved)


def kind_of(operator: str) -> str:
    name = operator.lower()
    return next((k for k, words in KINDS.items() if any(w in name for w in words)), "other")


def _rows(of: str, parts: dict[str, float], observed: float, unobserved: float) -> list[Row]:
    total = sum(parts.values()) or 1.0
    ordered = parts.items() if of == "stage" else sorted(parts.items(), key=lambda p: -p[1])
    rows = [
        {"of": of, "part": name, "ms": 1e3 * seconds, "share_%": 100 * seconds / total}
        for name, seconds in ordered
    ]  # fmt: skip
    overhead = 100 * (observed / unobserved - 1)
    return [{**row, "calls": CALLS, "watching_%": overhead} for row in rows]
