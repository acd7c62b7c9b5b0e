"""Where the time of a model goes: by stage, from wrapped forwards (hooks would send our models
to their plain path), and by kind of operator, from torch's profiler.  Both slow what they watch;
by how much is said."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from analysis.results.measurement import Entry
from analysis.timing import build_model, steps
from transom.errors import SpecError

Row = dict[str, Any]
CALLS = 5
# the first that is in an operator's name decides
KINDS = {
    "attention": ("attention", "flash", "sdpa"), "convolution": ("conv",),
    "matrix product": ("addmm", "mm", "linear", "matmul", "gemm"),
    "softmax": ("softmax",), "norm": ("norm",), "activation": ("gelu", "relu", "sigmoid"),
    "copy": ("copy", "clone", "contiguous", "cat", "roll", "index", "pad", "gather", "scatter",
             "stack", "fill", "zero", "_to", "slice", "select"),
    "elementwise": ("add", "mul", "div", "sub", "mean", "sum", "exp", "clamp", "pow", "where"),
}  # fmt: skip


def split(entry: Entry) -> Row:
    """{"split": rows of stage and operator}; ms of one call, and how much watching costs."""
    if entry.compile:
        raise SpecError("--by: a compiled model has no stages and operators of its own")
    built, _ = build_model.fitting(entry, lambda own: build_model.build(own, check=False))
    sync = steps.sync_of(entry.device)
    call, x = built.runner.call, built.runner.fresh(1)

    def once() -> float:
        sync()
        start = time.perf_counter()
        call(x)
        sync()
        return time.perf_counter() - start

    for _ in range(3):
        once()
    bare = median(once() for _ in range(CALLS))
    return {"split": [*_stages(built.model, once, sync, bare), *_operators(once, bare)]}


def trunk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The stages: the elements of the list that holds the most parameters, outermost first."""

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
    model: nn.Module, once: Callable[[], float], sync: Callable[[], None], bare: float
) -> list[Row]:
    """Forward only: what lies outside the stages, and all of the backward pass, is the rest."""
    spent: defaultdict[str, list[float]] = defaultdict(list)
    stages = trunk(model)

    def watched_by(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **named: Any) -> Any:
            sync()
            start = time.perf_counter()
            answer = forward(*args, **named)
            sync()
            spent[name].append(time.perf_counter() - start)
            return answer

        return watched

    for name, module in stages:
        module.forward = watched_by(name, module.forward)
    watched = median(once() for _ in range(CALLS))
    for _, module in stages:
        del module.forward  # the class's own again
    parts = {name: median(times) for name, times in spent.items()}
    parts["rest"] = max(0.0, watched - sum(parts.values()))
    return _rows("stage", parts, watched, bare)


def _operators(once: Callable[[], float], bare: float) -> list[Row]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    cuda = torch.cuda.is_available()
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        watched = median(once() for _ in range(CALLS))
    parts: defaultdict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        parts[kind_of(event.key)] += own / 1e6 / CALLS
    return _rows("operator", dict(parts), watched, bare)


def kind_of(operator: str) -> str:
    name = operator.lower()
    return next((k for k, words in KINDS.items() if any(w in name for w in words)), "other")


def _rows(of: str, parts: dict[str, float], watched: float, bare: float) -> list[Row]:
    total = sum(parts.values()) or 1.0
    ordered = parts.items() if of == "stage" else sorted(parts.items(), key=lambda p: -p[1])
    rows = [
        {"of": of, "part": name, "ms": 1e3 * seconds, "share_%": 100 * seconds / total}
        for name, seconds in ordered
    ]  # fmt: skip
    overhead = 100 * (watched / bare - 1)
    return [{**row, "calls": CALLS, "watching_%": overhead} for row in rows]
