"""Where a command writes: refused before the work, and whole or as it was after it.

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

from transom.errors import SpecError, one_line


class OutFile(argparse.Action):
    """The action of an option that names a file to write, which is `checked` as it is read."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, checked(Path(value), option or self.dest, value))


def checked(out: Path, option: str = "--out", text: str | None = None) -> Path:
    """The path, if a file can be written there.

    Args:
        out: where a command will write.
        option: the option that names it.
        text: the name as it was typed, which tells ``folder/`` from ``folder``.

    Raises:
        SpecError: for a folder, or a name in a folder that is missing or cannot be written to.

    Example:
        >>> checked(Path("no/such/notes.txt"))
        Traceback (most recent call last):
        transom.errors.SpecError: --out no/such/notes.txt: No such file or directory: folder ...
    """
    text = str(out) if text is None else text
    if reason := _refusal(text):
        raise SpecError(f"{option} {one_line(text) or repr(text)}: {reason}")
    return out


def _refusal(text: str) -> str | None:
    if not text or text.endswith(os.sep):
        return "expected the name of a file"
    try:
        there: os.stat_result | None = os.stat(text)
    except FileNotFoundError:
        there = None
    except (OSError, ValueError) as error:  # a name too long, a circle of links, no name at all
        return getattr(error, "strerror", None) or str(error)
    if there and stat.S_ISDIR(there.st_mode):
        return "it is a folder; name a file in it"
    if there and _stream(there) is not None:
        return None
    if there and not os.access(text, os.W_OK):
        return "it cannot be written to"
    if there and not stat.S_ISREG(there.st_mode):
        return None
    folder = os.path.dirname(os.path.realpath(text))
    if not os.path.isdir(folder):
        return f"No such file or directory: folder {one_line(folder)}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"its folder {one_line(folder)} cannot be written to"
    return None


def write(out: Path, data: bytes) -> None:
    """Writes a file that is whole or as it was, or into a device or pipe.

    Args:
        out: a file keeps its mode; a link leads to it.
        data: all of it.

    Raises:
        SpecError: with the reason of the system.
        BrokenPipeError: where nobody reads any more.

    Example:
        >>> write(Path("notes.txt"), b"text")
    """
    try:
        there = out.stat() if out.exists() else None
        if there and (own := _stream(there)) is not None:
            sys.stdout.flush()
            with os.fdopen(os.dup(own), "wb") as file:
                file.write(data)
        elif there and not stat.S_ISREG(there.st_mode):
            with out.open("wb") as file:
                file.write(data)
        else:
            _replace(Path(os.path.realpath(out)), data)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"--out {one_line(str(out))}: {reason}") from None


def _stream(there: os.stat_result) -> int | None:
    """1 or 2 where the file is what stdout or stderr lead to, as /dev/stdout is: another handle
    would start at its beginning, and another file in its place would not be read."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(there, os.fstat(stream)):
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
