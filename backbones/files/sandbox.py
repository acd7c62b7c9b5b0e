"""A process for files that may be hostile, with limits of memory, time and output.

The child sets the kernel's limits (setrlimit) after its imports, on top of what it already uses;
only Linux tells how much that is, so no process is started elsewhere.
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
SECONDS = 1, 50e6  # of CPU time, and bytes of the file per second
WAIT = 120, 10e6  # seconds until the process has ended, and bytes of the file per second
STATUS = Path("/proc/self/statm")
REFUSED = 3  # the exit code that comes with a line for the user


class Stopped(Exception):
    """The child gave no result; the message is one line with the reason."""


def supported() -> bool:
    """True if this system can set the limits."""
    try:
        import resource  # noqa: F401  (not on Windows)
    except ImportError:
        return False
    return STATUS.exists()


def run(module: str, arguments: Sequence[str], size: int) -> None:
    """Runs ``python -m module ARGUMENTS``, which calls `limit` with the size of its input in bytes.

    The child imports from the paths of this process, and nothing from the current folder.
    Raises Stopped.
    """
    path = os.pathsep.join([str(HOME), *(os.path.abspath(folder) for folder in sys.path if folder)])
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
    """Limits memory, time and output of this process, for an input of `size` bytes."""
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
