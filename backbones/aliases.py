"""Saved names: the table [aliases] of ./transom.toml, ``mine = "swin_t/3=pale"``."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

from attention.options import SpecError, one_line

FILE = Path("transom.toml")


def read() -> dict[str, str]:
    """Every alias of the working folder.  Raises SpecError if its file cannot be read."""
    try:
        data = tomllib.loads(FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{FILE}: cannot be read: {one_line(str(error))}") from None
    saved = data.pop("aliases", {})
    texts = isinstance(saved, dict) and all(isinstance(text, str) for text in saved.values())
    if data or not texts:
        raise SpecError(f"{FILE}: expected one table [aliases] of name = \"notation\"")
    return saved


def save(name: str, text: str) -> None:
    """Adds or replaces one alias; the file is whole at every moment.  Raises SpecError."""
    if not name.isidentifier():
        raise SpecError(f"{one_line(name)!r} cannot be an alias: letters, digits and _ only")
    saved = read() | {name: text}
    lines = [f"{key} = {json.dumps(value)}" for key, value in saved.items()]
    temporary = FILE.with_name(f".{FILE.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text("\n".join(["[aliases]", *lines, ""]), encoding="utf-8")
        temporary.replace(FILE)
    except OSError as error:
        raise SpecError(f"{FILE}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
