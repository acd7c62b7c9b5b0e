"""One measurement at a time on a machine: a lock on a file that a process's death releases."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from transom.errors import SpecError, one_line
from transom.table import plain

fcntl: Any
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

HELD_BY = "TRANSOM_MEASURING"  # tells a worker that its parent, of this process id, has the lock
MOST = 120  # characters of a command that a sentence shows


def place() -> Path:
    """The locked file: in the user's runtime folder, or in that for temporary files."""
    folder = os.environ.get("XDG_RUNTIME_DIR") or ""
    if not os.access(folder or "-", os.W_OK):
        folder = tempfile.gettempdir()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(folder) / f"transom-measures-{user}.lock"


@contextlib.contextmanager
def measuring(*, wait: bool = True) -> Iterator[None]:
    """Holds the lock of this machine's measurements while the block runs.

    The kernel releases the lock when the process ends, however it ends.  A worker whose parent
    has the lock, and a platform or folder where no file can be locked, measure without it.

    Args:
        wait: wait for the process that has the lock, with a line on stderr that names it.

    Raises:
        SpecError: where the lock is taken and `wait` is False.

    Example:
        >>> from analysis.results import lock
        >>> with lock.measuring():
        ...     1 + 1
        2
    """
    if os.environ.get(HELD_BY) == str(os.getppid()) or (file := _opened()) is None:
        yield
        return
    with file:
        if not _is_locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            said = f"another measurement runs on this machine: {_holder(file)}"
            if not wait:
                raise SpecError(f"--no-wait: {said}")
            print(f"{said}; waiting for its end (--no-wait refuses)", file=sys.stderr, flush=True)
            _is_locked(file, fcntl.LOCK_EX)
        _write(file, f"process {os.getpid()}, {_command()}")
        try:
            yield
        finally:
            _write(file, "")


def _opened() -> IO[str] | None:
    if fcntl is None:
        return None
    try:  # not "w", which would erase the name of the process that has the lock
        number = os.open(place(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    return open(number, "r+", encoding="utf-8", errors="replace")


def _is_locked(file: IO[str], how: int) -> bool:
    """Locks a file; False where another process has the lock and `how` does not wait."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: measured without
        pass
    return True


def _command() -> str:
    words = [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    return one_line(" ".join(words))[:MOST]


def _write(locked: IO[str], text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk is no reason not to measure
        locked.seek(0)
        locked.truncate()
        locked.write(text)
        locked.flush()


def _holder(locked: IO[str]) -> str:
    locked.seek(0)
    return plain(locked.read(400)) or "a process that has not written its name yet"
