"""Files that a command writes: the name is checked before the work, the content replaced at once.

A link stands for the file it leads to; devices and pipes are written to, never replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import Any

from transom.errors import SpecError, printable


class OutFile(argparse.Action):
    """Argparse action of an option that names a file to write; parsing it calls `checked`."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, checked(Path(value), option or self.dest, value))


def checked(out: Path, option: str = "--out", text: str | None = None) -> Path:
    """Checks that a file can be written.

    Args:
        out: path of the file.
        option: the option that names it, for the error.
        text: the name as it was typed, which tells ``folder/`` from ``folder``.

    Returns:
        The path, unchanged.

    Raises:
        SpecError: for a folder, or a name in a folder that is missing or cannot be written to.

    Example:
        >>> from pathlib import Path
        >>> from transom import files
        >>> files.checked(Path("notes.txt")).name
        'notes.txt'
    """
    text = str(out) if text is None else text
    if reason := _refusal(text):
        raise SpecError(f"{option} {printable(text) or repr(text)}: {reason}")
    return out


def _refusal(text: str) -> str | None:
    """The reason why no file can be written under this name, or None."""
    if not text or text.endswith(os.sep):
        return "expected the name of a file"
    try:
        status: os.stat_result | None = os.stat(text)
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:  # a name too long, a circle of links, no name at all
        return getattr(error, "strerror", None) or str(error)
    if status and stat.S_ISDIR(status.st_mode):
        return "it is a folder; name a file in it"
    if status and _stream(status) is not None:
        return None
    if status and not os.access(text, os.W_OK):
        return "it cannot be written to"
    if status and not stat.S_ISREG(status.st_mode):
        return None
    folder = os.path.dirname(os.path.realpath(text))
    if not os.path.isdir(folder):
        return f"No such file or directory: folder {printable(folder)}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"its folder {printable(folder)} cannot be written to"
    return None


def write(out: Path, data: bytes, option: str = "--out") -> None:
    """Replaces a file atomically, or writes into a device or pipe.

    Args:
        out: path of the file, which keeps its mode; a link is followed.
        data: the complete content.
        option: the one that named the file, for an error; "" where none did.

    Raises:
        SpecError: with the reason of the system.
        BrokenPipeError: where nobody reads any more.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from transom import files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files.write(Path(folder) / "notes.txt", b"text")
        ...     (Path(folder) / "notes.txt").read_text()
        'text'
    """
    try:
        status = out.stat() if out.exists() else None
        if status and (stream := _stream(status)) is not None:
            sys.stdout.flush()
            with os.fdopen(os.dup(stream), "wb") as file:
                file.write(data)
        elif status and not stat.S_ISREG(status.st_mode):
            with out.open("wb") as file:
                file.write(data)
        else:
            _replace(Path(os.path.realpath(out)), data)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        named = f"{option} {printable(out)}".strip()
        raise SpecError(f"{named}: {reason}") from None


def _stream(status: os.stat_result) -> int | None:
    """1 or 2 where the file is open as stdout or stderr, as /dev/stdout is: a new handle would
    write from its beginning, and a file put in its place would not be read."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.fstat(stream)):
                return stream
    return None


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".transom-{os.urandom(8).hex()}")  # short, whatever the name
    try:
        with temporary.open("xb") as file:
            file.write(data)
        with contextlib.suppress(OSError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
