"""Peak memory of a step, in a fresh process.

CPU: growth of the resident set, read as VmHWM after its mark is reset (Linux), elsewhere as
ru_maxrss, which cannot be reset.  CUDA: the peak of torch's allocator.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from analysis.results.measurement import Measurement
from analysis.timing import build_model


def peak(measurement: Measurement) -> dict[str, Any]:
    """Memory of a measurement in bytes.

    weight_bytes: parameters and buffers.  growth_bytes: peak of one step over the idle model
    (input, activations, gradients, workspaces).  peak_bytes: their sum.
    """
    attempt = _on_cuda if measurement.device == "cuda" else _on_cpu
    found, batch = build_model.fitting(measurement, attempt)
    return {**found, "batch_used": batch}


def _on_cpu(measurement: Measurement) -> dict[str, Any]:
    # the first steps allocate what libraries cache per thread, and choose the backend
    built = build_model.build(measurement, check=False)
    built.model.zero_grad(set_to_none=True)
    growth, by = growth_of(lambda: built.runner.call(built.runner.fresh(1)))
    return _row(built, growth, built.weight_bytes + growth, by)


def _on_cuda(measurement: Measurement) -> dict[str, Any]:
    built = build_model.build(measurement, check=False)
    built.model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    idle = torch.cuda.memory_allocated()
    built.runner.call(built.runner.fresh(1))
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated()
    return _row(built, most - idle, most, "torch.cuda.max_memory_allocated")


def _row(built: build_model.Built, growth: int, most: int, by: str) -> dict[str, Any]:
    return {
        "weight_bytes": built.weight_bytes, "growth_bytes": growth, "peak_bytes": most, "by": by,
        "compiled": built.compiled,
    }  # fmt: skip


def growth_of(step: Callable[[], Any]) -> tuple[int, str]:
    """(bytes, how they were read): peak growth of the resident set during a step."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        step()
        return max(0, _status("VmHWM") - before), "VmHWM"
    except (OSError, KeyError):
        before = _largest_resident()
        step()
        return max(0, _largest_resident() - before), "ru_maxrss"


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) * 1024


def _largest_resident() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
