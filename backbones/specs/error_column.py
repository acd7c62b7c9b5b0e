"""The column of an error: where in a notation the token stands that cannot be read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from attention import registry
from transom.errors import SpecError


class Edit(NamedTuple):
    """One edit as it was written.  column: of its first character, from 1.  stage: 0 for none."""

    column: int
    stage: int
    field: str
    value: str
    text: str


def at(column: int, error: SpecError) -> SpecError:
    return SpecError(f"{error}, at column {column}", error.token)


def located(error: SpecError, cls: type, group: list[Edit]) -> SpecError:
    """The error with the column of its token, if it is about one: the first of these edits, in
    the order in which fields are read, that cannot be read by itself."""
    if not error.token:
        return error
    read = {field.name: field.metadata["read"] for field in dataclasses.fields(cls)}
    order = list(read)
    for made in sorted(group, key=lambda made: order.index(made.field)):
        if _reads(read[made.field], made.value):
            continue
        column = made.column + len(made.text) - len(made.value)
        if made.field == "mixers" and error.token != made.value:
            for part in made.value.split("+"):
                if not _reads(registry.parse, part):
                    column += _inside(part, error.token)
                    break
                column += len(part) + 1
        return at(column, error)
    return at(group[0].column, error)


def _reads(read: Callable[[str], Any], value: str) -> bool:
    try:
        read(value)
    except ValueError:
        return False
    return True


def _inside(part: str, token: str) -> int:
    """Where in the notation of one mixer the token is: its name, an option, a key or a value."""
    name, _, rest = part.partition(":")
    if token == part or not _reads(registry.config_class, name):
        return 0
    order = [field.name for field in dataclasses.fields(registry.config_class(name))]
    start, found = len(name) + 1, []
    for item in rest.split(","):
        key, _, value = item.partition("=")
        if token == item:
            found.append((-1, -start, start))  # of an option that is given twice, the later
        elif key not in order:
            found += [(0, start, start)] if token == key else []
        elif token == value and not _reads(functools.partial(_alone, name, key), value):
            found.append((order.index(key), start, start + len(key) + 1))
        start += len(item) + 1
    return min(found)[2] if found else 0


def _alone(name: str, key: str, text: str) -> Any:
    return registry.make_config(name, **{key: text})
