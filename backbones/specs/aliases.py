"""Aliases of backbones: the table [aliases] of ./transom.toml, ``mine = "swin_t/3=pale"``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from transom import files
from transom.errors import SpecError, one_line, printable

FILE = Path("transom.toml")


LONGEST = 65536  # bytes of a file; nobody writes more by hand
MOST_DOTS = 1000  # a key of n parts takes n^2 to read: 64 kB of dots take minutes and gigabytes


def load(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.  Raises FileNotFoundError, or SpecError with the reason."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise ValueError(f"the longest file read has {LONGEST} bytes")
        if data.count(b".") > MOST_DOTS:
            raise ValueError(f"the most dots read are {MOST_DOTS}")
        return tomllib.loads(data.decode())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # no file, no path, no TOML, too deep
        raise SpecError(f"{printable(path)}: cannot be read: {one_line(str(error))}") from None


def quoted(text: str) -> str:
    """Text as TOML writes it: as JSON does, but with escapes for characters that do not print.

    Raises SpecError for text that is no Unicode.
    """
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise SpecError(f"{one_line(text)!r} is no Unicode text, which a TOML file must be")
    written = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in written)


def read() -> dict[str, str]:
    """Every alias of the working folder.  Raises SpecError if its file cannot be read."""
    try:
        data = load(FILE)
    except FileNotFoundError:
        return {}
    saved = data.pop("aliases", {})
    texts = isinstance(saved, dict) and all(isinstance(text, str) for text in saved.values())
    if data or not texts:
        raise SpecError(f'{FILE}: expected one table [aliases] of name = "notation"')
    return saved


def save(name: str, text: str) -> None:
    """Adds or replaces one alias; the file is replaced at once.

    Raises SpecError if the file cannot be read or written, or the alias would stand for itself.
    """
    if not name.isidentifier():
        raise SpecError(f"{one_line(name)!r} cannot be an alias: letters, digits and _ only")
    saved = read() | {name: text}
    seen, base = {name}, text.partition("/")[0]
    while base in saved and base not in seen:
        seen.add(base)
        base = saved[base].partition("/")[0]
    if base == name:
        raise SpecError(f"{name} = {one_line(text)!r} stands for itself; choose another name")
    lines = [f"{quoted(key)} = {quoted(value)}" for key, value in saved.items()]
    files.write(FILE, "\n".join(["[aliases]", *lines, ""]).encode(), option="")
