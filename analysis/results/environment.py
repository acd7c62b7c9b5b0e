"""The environment of a measurement: hardware, settings and versions, without the machine's name.

No host name, path or environment variable is stored.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from transom import packages

MEASURED = ("attention", "backbones")  # packages whose code is measured
LIBRARIES = ("torch", "timm", "torchvision", "transformers")
# fields that may change between two measurements of one thing
TRANSIENT = ("mhz_now", "load", "commit", "commit_dirty")


def header(device: str = "cpu", threads: int = 0) -> dict[str, Any]:
    """The environment of this process.

    threads: number that the process is set to; 0 reads it from torch.  Clocks are in MHz, memory in
    GiB; None stands for a value that cannot be read.
    """
    import torch

    environment: dict[str, Any] = {
        "device": device, "processor": _processor(), "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": threads or torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "mhz_now": _cpu_clock(), "mhz_most": _number(_CPUFREQ / "cpuinfo_max_freq", 1e-3),
        "governor": _text(_CPUFREQ / "scaling_governor"),
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "tf32": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "code": packages.digest(MEASURED), **_commit(),
    }  # fmt: skip
    if device == "cuda":
        environment |= _gpu()
    return environment


def lasting(environment: dict[str, Any]) -> dict[str, Any]:
    """The fields that two measurements must share to be comparable."""
    return {name: value for name, value in environment.items() if name not in TRANSIENT}


def version(distribution: str) -> str | None:
    """The installed version of a distribution, without an import; None if it is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def _number(path: Path, scale: float) -> float | None:
    text = _text(path)
    return float(text) * scale if text and text.isdigit() else None


def _cpuinfo(field: str) -> list[str]:
    text = _text(Path("/proc/cpuinfo")) or ""
    return re.findall(rf"^{field}\s*: (.+)$", text, re.MULTILINE)


def _processor() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor() or platform.machine())


def _cpu_clock() -> float | None:
    clocks = [float(text) for text in _cpuinfo("cpu MHz")]
    return max(clocks) if clocks else None


def _memory() -> float | None:
    try:
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    return round(pages * page / 2**30, 1)


def _commit() -> dict[str, Any]:
    """The commit of the measured code, and whether code files differ from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(packages.HOME), *words],
                capture_output=True, text=True, timeout=20,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != packages.HOME:  # installed inside another repository
        return {"commit": None, "commit_dirty": None}
    changes = git("status", "--porcelain", "--", *packages.NAMES)
    dirty = None if changes is None else any(
        line and not line.endswith((".jsonl", ".md", ".png", ".svg", ".csv"))
        for line in changes.splitlines()
    )  # fmt: skip
    return {"commit": git("rev-parse", "--short=12", "HEAD"), "commit_dirty": dirty}


def _gpu() -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_properties(0)
    fields: dict[str, Any] = {
        "gpu": device.name, "gpu_memory_gib": round(device.total_memory / 2**30, 1),
        "gpu_processors": device.multi_processor_count, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
    }  # fmt: skip
    names = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        values = done.stdout.splitlines()[0].split(", ")
    except (OSError, IndexError, subprocess.TimeoutExpired):
        values = []
    keys = ("driver", "gpu_mhz_most", "gpu_memory_mhz_most", "gpu_watts_most")
    return fields | dict(zip(keys, values, strict=False))
