"""Shared parts of all command lines: one-line errors, exit codes, plug-ins, sizes, output."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transom import files
from transom.errors import SpecError, cause_of
from transom.fields import read_size
from transom.table import FORMATS, harmless, plain

AGREED, DIFFER, BAD_REQUEST = 0, 1, 2


def parser(module: str, doc: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """A parser for ``python -m module`` with the option --plugin.

    Args:
        module: dotted name of the command's module.
        doc: description, usually the module's docstring.
        epilog: examples and exit codes.

    Returns:
        The parser; `load_plugins` imports what its --plugin collects.

    Example:
        >>> from transom import cli
        >>> cli.parser("my.command", "Counts.").parse_args(["--plugin", "my_mixers"]).plugin
        ['my_mixers']
    """
    command = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE",
        help="import a module that registers mixers of your own; repeatable",
    )  # fmt: skip
    return command


def load_plugins(modules: Sequence[str]) -> None:
    """Imports modules that register mixers.  Raises SpecError for whatever an import raises."""
    for module in modules:
        try:
            importlib.import_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # errors of a user's module are a bad request
            raise SpecError(f"--plugin {module}: {type(error).__name__}: {error}") from None


def add_output(to: argparse.ArgumentParser, formats: Sequence[str] = FORMATS) -> None:
    default = f"default: {formats[0]}, or by the ending of --out"
    to.add_argument("--format", choices=formats, help=default)
    to.add_argument(
        "--out", action=files.OutFile, metavar="FILE", help="write there instead of the terminal"
    )


def image_size(text: str) -> tuple[int, int]:
    try:
        return read_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {error}") from None


def count_from_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


LEAST_MEMORY = 2**20  # bytes; a smaller number most likely lacks its unit
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_size(text: str) -> int:
    """Bytes from ``4G``, ``512M`` or a plain number of bytes."""
    number, unit = text.rstrip("KMGTkmgt"), text.lstrip("0123456789.").upper()
    try:
        size = float(number) * _UNITS[unit]
        n_bytes = int(size)
    except (ValueError, KeyError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 4G or 512M") from None
    if not unit and 0 < size < LEAST_MEMORY:
        likely = "G" if size < 64 else "M"
        raise argparse.ArgumentTypeError(f"{text!r} is in bytes; did you mean {text}{likely}?")
    return n_bytes


def chosen_format(args: argparse.Namespace) -> str:
    """The value of --format, or the format that the ending of --out stands for."""
    endings = {"md": "md", "csv": "csv", "json": "json", "tex": "latex", "html": "html"}
    return args.format or (endings.get(args.out.suffix[1:], "table") if args.out else "table")


def emit(text: str, out: Path | None) -> None:
    """Prints a text, or replaces a file by it; control characters become spaces.

    Args:
        text: without the last line end.
        out: path of the file; None prints.

    Raises:
        SpecError: if the file cannot be written.

    Example:
        >>> from transom import cli
        >>> cli.emit("3 rows agree", None)
        3 rows agree
    """
    if out is None:
        print(harmless(text))
    else:
        files.write(out, (harmless(text) + "\n").encode())


def run(main: Callable[[], int]) -> None:
    """Runs a command and ends the process with its exit code.

    Args:
        main: returns the exit code.  Where it raises, the code is 2 for a SpecError, whose line
            goes to stderr, 141 for a closed pipe and 130 for an interrupt.

    Importing torch makes millions of objects that live to the end; searching them for garbage and
    destroying them one by one costs a quarter of a short command, so neither is done.
    """
    gc.set_threshold(100_000, 50, 50)
    try:
        code = main()
        sys.stdout.flush()
    except SpecError as error:
        print(f"error: {plain(cause_of(error))}", file=sys.stderr)
        code = BAD_REQUEST
    except BrokenPipeError:  # the reader has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt:
        code = 130
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # a reader that has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
