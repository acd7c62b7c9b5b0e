"""Finds the column of the token in a notation that an error is about."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from attention.configs import notation, registry
from transom.errors import SpecError


class Edit(NamedTuple):
    """One edit of a notation.

    column: of its first character, from 1.  stage: from 1; 0 for a field of the backbone.  text:
    the edit as it was written.
    """

    column: int
    stage: int
    field: str
    value: str
    text: str


def at(column: int, error: SpecError) -> SpecError:
    return SpecError(f"{error}, at column {column}", error.token)


def located(error: SpecError, cls: type, edits: list[Edit]) -> SpecError:
    """The error with the column of its token, if it has one.

    The token is in the first edit, in the order in which the fields of `cls` are read, that cannot
    be read by itself.
    """
    if not error.token:
        return error
    read = {field.name: field.metadata["read"] for field in dataclasses.fields(cls)}
    order = list(read)
    for edit in sorted(edits, key=lambda edit: order.index(edit.field)):
        if _reads(read[edit.field], edit.value):
            continue
        column = edit.column + len(edit.text) - len(edit.value)
        if edit.field == "mixers" and error.token != edit.value:
            for part in edit.value.split("+"):
                if not _reads(notation.parse, part):
                    column += _offset_in(part, error.token)
                    break
                column += len(part) + 1
        return at(column, error)
    return at(edits[0].column, error)


def _reads(read: Callable[[str], Any], value: str) -> bool:
    try:
        read(value)
    except ValueError:
        return False
    return True


def _offset_in(part: str, token: str) -> int:
    """Offset in the notation of a mixer of a token: its name, an option, a key or a value."""
    name, _, rest = part.partition(":")
    if token == part or not _reads(registry.config_class, name):
        return 0
    order = [field.name for field in dataclasses.fields(registry.config_class(name))]
    start, offsets = len(name) + 1, []
    for item in rest.split(","):
        key, _, value = item.partition("=")
        if token == item:
            offsets.append((-1, -start, start))  # of an option that is given twice, the later
        elif key not in order:
            offsets += [(0, start, start)] if token == key else []
        elif token == value and not _reads(functools.partial(_one_option, name, key), value):
            offsets.append((order.index(key), start, start + len(key) + 1))
        start += len(item) + 1
    return min(offsets)[2] if offsets else 0


def _one_option(name: str, key: str, text: str) -> Any:
    return notation.make_config(name, **{key: text})
