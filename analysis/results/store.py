"""An append-only file of results: one JSON object a line.

    store = Store(path);  store.append(rows)      # returns when the rows are on the disk
    rows, problems = store.read()                 # every good row, and the numbers of bad lines

Several processes may append at once.  A line torn by a crash stays in the file: it never merges
with the next one, and the reader reports its number.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transom import table
from transom.errors import SpecError, one_line, printable

SCHEMA = 1
# by schema: converts a row to the next schema; the file is never rewritten
MIGRATE: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

Row = dict[str, Any]


class Problem(NamedTuple):
    """A line that is no valid row.  line: its number, from 1."""

    line: int
    reason: str


# -- one row ---------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """A value as strict JSON: a float that is not finite becomes {"$float": "nan"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, dict):
        inner = {str(key): encode(item) for key, item in value.items()}
        return {"$dict": inner} if _marked(inner) else inner
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if _marked(value):
            ((mark, inner),) = value.items()
            if mark == "$float":
                return float(inner)
            return {key: decode(item) for key, item in inner.items()}
        return {key: decode(item) for key, item in value.items()}
    return value


def _marked(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in ("$float", "$dict")


def to_line(row: Row) -> bytes:
    """A row as one line of ASCII; line breaks inside texts are escaped."""
    content = encode({"schema": SCHEMA, **row})
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def from_line(line: bytes) -> Row:
    """The row of a line.  Raises ValueError for an invalid line, TooNew for a later schema."""
    try:
        row = decode(json.loads(line.strip(b"\0\r ").decode("utf-8")))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"is not a whole JSON object ({one_line(str(error))})") from None
    if not isinstance(row, dict) or not isinstance(row.get("schema"), int):
        raise ValueError("is not a row: it states no schema")
    if row["schema"] > SCHEMA:
        raise TooNew(f"has schema {row['schema']}, this code knows up to {SCHEMA}; update it")
    while row["schema"] < SCHEMA:
        if row["schema"] not in MIGRATE:
            raise ValueError(f"has schema {row['schema']}, which nothing here migrates")
        row = {**MIGRATE[row["schema"]](row), "schema": row["schema"] + 1}
    return row


class TooNew(Exception):
    """Raised for a row of a later schema than this code knows."""


# -- the file --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    path: Path

    def append(self, rows: Sequence[Row]) -> None:
        """Appends rows; on return they are on the disk.

        Raises SpecError with the path and the free space; the file is then unchanged.
        """
        lines = b"".join(map(to_line, rows))
        try:
            with self._locked() as file:
                end = os.fstat(file).st_size
                torn = end > 0 and os.pread(file, 1, end - 1) != b"\n"
                try:
                    _write(file, b"\n" + lines if torn else lines)
                    os.fsync(file)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(file, end)
                    raise
        except OSError as error:
            reason = error.strerror or str(error)
            place = printable(self.path)
            raise SpecError(f"--store {place}: {reason}; {_free(self.path)}") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(ImportError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def read(self) -> tuple[list[Row], list[Problem]]:
        """All valid rows, in order, and the problems of the other lines.

        A missing file has no rows.  Raises SpecError for a row of a later schema.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], []
        except OSError as error:
            place = printable(self.path)
            raise SpecError(f"{place}: {error.strerror or error}") from None
        rows: list[Row] = []
        problems: list[Problem] = []
        for number, line in enumerate(data.split(b"\n"), start=1):
            if not line.strip(b"\0\r "):
                if line.strip(b"\r "):
                    problems.append(Problem(number, "holds nothing but NUL"))
                continue
            try:
                rows.append(from_line(line))
            except TooNew as error:
                raise SpecError(f"{printable(self.path)}: line {number} {error}") from None
            except ValueError as error:
                problems.append(Problem(number, str(error)))
        return rows, problems


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _free(path: Path) -> str:
    try:
        space = os.statvfs(path.parent if path.parent.exists() else Path("."))
    except OSError:
        return "the free space there cannot be read"
    return f"{space.f_bavail * space.f_frsize / 2**20:,.0f} MiB are free there"


def flat(row: Row) -> Row:
    """A row without nesting, for csv: keys joined by dots, lists as JSON."""
    out: Row = {}
    for key, value in row.items():
        if isinstance(value, dict):
            out |= {f"{key}.{inner}": item for inner, item in flat(value).items()}
        else:
            out[key] = json.dumps(encode(value)) if isinstance(value, (list, tuple)) else value
    return out


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as csv with the keys of all rows as columns; missing values are empty."""
    return table.csv([flat(row) for row in rows])
