"""Fields of frozen specs: readers of their values, and one-line errors for values refused."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

from transom.errors import LONGEST_WORD, SpecError

LARGEST = 2**16  # no side, width or depth beyond this is a model; a typo is


def read_count(value: Any) -> int:
    """A whole number from 1 to 65536, from an int or its digits."""
    digits = isinstance(value, str) and value.isdecimal() and len(value) < 20
    number = int(value) if digits else value
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= LARGEST:
        raise ValueError(f"a whole number from 1 to {LARGEST}")
    return number


def read_count_or_zero(value: Any) -> int:
    """A whole number from 0.  Raises ValueError with what was expected."""
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    try:
        return read_count(value)
    except ValueError as error:
        raise ValueError(f"0 or {error}") from None


def read_size(value: Any) -> tuple[int, int]:
    """(height, width) from ``7``, ``"7"``, ``"7x14"`` or ``(7, 14)``, height first."""
    parts = value.split("x") if isinstance(value, str) else value
    if isinstance(parts, int):
        parts = [parts]
    if isinstance(parts, (list, tuple)) and 1 <= len(parts) <= 2:
        try:
            return read_count(parts[0]), read_count(parts[-1])
        except ValueError:
            pass
    raise ValueError(f"7 or 7x14, height first, each from 1 to {LARGEST}")


def read_flag(value: Any) -> bool:
    known = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def read_number(value: Any) -> float:
    """A finite number, from a number or its text."""
    spaced = isinstance(value, str) and ("_" in value or value != value.strip())
    try:
        number = math.nan if isinstance(value, bool) or spaced else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def choice(*allowed: str) -> Callable[[Any], str]:
    """A reader that accepts these words only."""

    def read(value: Any) -> str:
        if value in allowed:
            return str(value)
        close = difflib.get_close_matches(str(value)[:LONGEST_WORD], allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"one of {', '.join(allowed)}{hint}")

    read.allowed = allowed  # type: ignore[attr-defined]  # for listings
    return read


def optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A reader that also accepts None and "none"."""

    def read_optional(value: Any) -> Any:
        return None if value is None or value == "none" else read(value)

    return read_optional


def option(default: Any, read: Callable[[Any], Any], doc: str) -> Any:
    """A field of a frozen config that reads, checks and documents its value.

    Args:
        default: value where none is given.
        read: turns a value or its text into the field's value; raises ValueError with what it
            expects.  `transom.fields` has `read_count`, `read_size`, `choice` and more.
        doc: one line for listings.

    Returns:
        A `dataclasses.field` with `read` and `doc` as metadata.

    Example:
        >>> from dataclasses import dataclass
        >>> from attention import MixerConfig, option
        >>> from transom.fields import read_count
        >>> @dataclass(frozen=True, kw_only=True)
        ... class PoolConfig(MixerConfig):
        ...     size: int = option(3, read_count, "side of the pooled square, in tokens")
        >>> PoolConfig(size="5").size
        5
    """
    return dataclasses.field(default=default, metadata={"read": read, "doc": doc})


_READERS: dict[type, Callable[[Any], Any]] = {
    bool: read_flag, int: read_count, float: read_number, str: read_text, tuple: read_size,
}  # fmt: skip


def read_fields(instance: Any, place: str) -> None:
    """Replaces every field of a frozen dataclass by what its reader makes of the value.

    A field without a stated reader is read by the type of its default.

    Args:
        instance: the dataclass, in its `__post_init__`.
        place: its name in errors.

    Raises:
        SpecError: with place, field, value and what the reader expects.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        read = field.metadata.get("read") or _READERS.get(type(field.default))
        if read is None:
            continue
        try:
            object.__setattr__(instance, field.name, read(value))
        except SpecError:
            raise  # the error of a nested spec names place and value already
        except ValueError as error:
            shown = repr(value[:60] if isinstance(value, str) else value)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            token = value if isinstance(value, str) else ""
            raise SpecError(f"{place}: {field.name}={shown}: expected {error}", token) from None


def write(value: Any) -> str:
    """The text of a value, which its reader turns back into an equal value."""
    if isinstance(value, tuple):
        return str(value[0]) if value[0] == value[-1] else "x".join(map(str, value))
    if isinstance(value, float):
        text = f"{value:g}" if float(f"{value:g}") == value else repr(value)
        return text.replace("e+", "e")  # a + parts the mixers of a pattern
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
