"""A process of its own for files that may be hostile, with limits of memory, time and output.

The limits are the kernel's (setrlimit), set by the child after its imports, from what it already
uses; Linux alone says how much that is, so elsewhere nothing is started.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from transom.packages import HOME

MEMORY = 512 * 2**20, 4  # bytes, and in sizes of the file: read, copied, serialized
OUTPUT = 64 * 2**20, 2
SECONDS = 1, 50e6  # of computing, and bytes a second
WAIT = 120, 10e6  # for the process to end, starting included
STATUS = Path("/proc/self/statm")
REFUSED = 3  # the exit code that comes with a line for the user


class Stopped(Exception):
    """The child gave no result: one line that says why."""


def supported() -> bool:
    """Whether this system sets the limits."""
    try:
        import resource  # noqa: F401  (not on Windows)
    except ImportError:
        return False
    return STATUS.exists()


def run(module: str, arguments: Sequence[str], size: int) -> None:
    """``python -m module ARGUMENTS``, which calls `limit` with the size (bytes) of its input.

    It finds what this process finds, and reads nothing from the current folder.
    Raises Stopped.
    """
    ours = str(HOME)
    path = os.pathsep.join([ours, *(os.path.abspath(place) for place in sys.path if place)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-W", "ignore", "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=WAIT[0] + size / WAIT[1], check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Stopped(f"reading it took more than {error.timeout:.0f} seconds") from None
    except OSError as error:
        raise Stopped(f"no process to read it in: {error.strerror or error}") from None
    if done.returncode == 0:
        return
    if done.returncode == REFUSED:
        lines = done.stdout.decode(errors="replace").splitlines()
        raise Stopped(lines[-1] if lines else "no reason given")
    if done.returncode == -signal.SIGXCPU:
        raise Stopped(f"reading it takes more than {_seconds(size)} s of computing")
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    raise Stopped(f"the process that read it ended with {done.returncode} {' '.join(last)}".strip())


def limit(size: int) -> None:
    """Limits this process, for an input of `size` bytes, from now on."""
    import resource

    pages = int(STATUS.read_text().split()[0])
    used = resource.getrusage(resource.RUSAGE_SELF)
    computed = math.ceil(used.ru_utime + used.ru_stime)
    memory = pages * resource.getpagesize() + MEMORY[0] + MEMORY[1] * size
    for kind, soft, spare in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_AS, memory, 0),
        (resource.RLIMIT_FSIZE, OUTPUT[0] + OUTPUT[1] * size, 0),
        (resource.RLIMIT_CPU, computed + _seconds(size), 1),  # SIGXCPU first, then SIGKILL
    ):
        most = resource.getrlimit(kind)[1]
        ceiling = sys.maxsize if most == resource.RLIM_INFINITY else most
        resource.setrlimit(kind, (min(soft, ceiling), min(soft + spare, ceiling)))


def _seconds(size: int) -> int:
    return SECONDS[0] + math.ceil(size / SECONDS[1])
