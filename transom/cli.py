"""Shared parts of all command lines: one-line errors, exit codes, plug-ins, sizes, output."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import gc
import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from transom import files, layout
from transom.errors import SpecError, cause_of, nearest, one_line, printable
from transom.fields import read_size
from transom.table import FORMATS, Style, harmless, plain

AGREED, DIFFER, BAD_REQUEST = 0, 1, 2


_called_as: dict[str, str] = {}  # how a module's command was called, if not by python -m


def called_as(module: str, text: str) -> None:
    """Says how the help of a module's command calls it: ``transom flops``."""
    _called_as[module] = text


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest option or value.

    Names that `add_backbones` adds may stand before, between and behind the options, also of a
    subcommand.
    """

    backbones: bool | None = None  # whether names are needed; None: the command has none
    one: bool = False  # whether there is one name only
    _intermixed = False  # whether argparse is at it

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_REQUEST, f"error: {plain(self._reworded(message))}\n")

    def _reworded(self, message: str) -> str:
        """argparse's sentence with the option before its reason and the nearest known word."""
        known = [option for action in self._actions for option in action.option_strings]
        if found := re.fullmatch(r"unrecognized arguments: (.*)", message, re.S):
            word = next((w for w in found[1].split() if w.startswith("-")), found[1].split()[0])
            if not word.startswith("-"):
                return f"{printable(found[1])}: is not expected; {self.prog} --help says what is"
            word = word.partition("=")[0]
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"{self.prog} --help lists them"
            return f"there is no option {one_line(word)}; {hint}"
        pattern = r"argument (.+?): invalid choice: '(.*)' \(choose .*"
        if found := re.fullmatch(pattern, message, re.S):
            allowed = next(
                (list(map(str, action.choices)) for action in self._actions if action.choices
                 and found[1] in ("/".join(action.option_strings), action.dest, action.metavar)),
                [],
            )  # fmt: skip
            return f"{found[1]} {one_line(found[2])}: is not known{nearest(found[2], allowed)}"
        if found := re.fullmatch(r"argument (.+?): (.*)", message, re.S):
            return f"{found[1]}: {found[2]}"
        return message

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.backbones is None or self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = True  # argparse may come here again
        try:
            found, rest = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False
        names = [found.names] if isinstance(found.names, str) else found.names
        names = [*names, *found.backbone]
        del found.names
        if not rest and self.backbones and not names:
            self.error(f"name a backbone, such as: {self.prog} swin_t")
        if not rest and self.one and len(names) > 1:
            self.error(f"{printable(names[1])}: is one too many; name one backbone")
        found.backbone = next(iter(names), None) if self.one else names
        return found, rest


def add_backbones(to: Parser, help: str, *, needed: bool = True, one: bool = False) -> None:
    """Adds names of backbones, by position or behind --backbone; both go to ``backbone``.

    Args:
        to: the parser.
        help: what may be named.
        needed: whether a request without a name is refused.
        one: whether there is one name only, or None without it, instead of a list.
    """
    to.backbones, to.one = needed, one
    to.add_argument("names", nargs="?" if one else "*", default=[], metavar="NAME", help=help)
    to.add_argument(
        "--backbone", nargs=1 if one else "+", action="extend", default=[], metavar="NAME",
        help="the same name behind an option" if one else "the same names behind an option; "
        "repeatable",
    )  # fmt: skip


def parser(module: str, doc: str | None, epilog: str = "") -> Parser:
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
    command = Parser(
        prog=_called_as.get(module, f"python -m {module}"), description=doc, epilog=epilog,
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
        "--width", type=_width, metavar="N",
        help="characters a line of the table may have; 0: any (default: the terminal's; any in "
        "a pipe or a file)",
    )  # fmt: skip
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


def _width(text: str) -> int:
    return 0 if text == "0" else max(count_from_one(text), NARROWEST_SCREEN)


NARROWEST_SCREEN = 20


def screen_width(args: argparse.Namespace) -> int | None:
    """Characters of a line of the terminal, or as --width says; None: any number."""
    width: int | None = getattr(args, "width", None)
    if width is None and not getattr(args, "out", None) and sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns, NARROWEST_SCREEN)
    return width or None


def chosen_format(args: argparse.Namespace) -> Style:
    """The value of --format, or the format that the ending of --out stands for."""
    endings = {"md": "md", "csv": "csv", "json": "json", "tex": "latex", "html": "html"}
    name = args.format or (endings.get(args.out.suffix[1:], "table") if args.out else "table")
    if name != "table":
        return Style(name)
    return Style(name, screen_width(args), colours=not args.out and _colours())


def emit(text: str, to: argparse.Namespace | Path | None) -> None:
    """Prints a text, or replaces a file by it; control characters become spaces.

    A line that is longer than the terminal is broken at a space.

    Args:
        text: without the last line end.
        to: the options, whose --out is the file and without one prints; or the file, or None.

    Raises:
        SpecError: if the file cannot be written.

    Example:
        >>> from transom import cli
        >>> cli.emit("3 rows agree", None)
        3 rows agree
    """
    out = to.out if isinstance(to, argparse.Namespace) else to
    if out is not None:
        files.write(out, (layout.coloured(harmless(text), False) + "\n").encode())
        return
    text = layout.coloured(harmless(text), _colours())
    width = screen_width(to) if isinstance(to, argparse.Namespace) else None
    if width is not None and getattr(to, "format", None) in (None, "table"):
        text = "\n".join(part for line in text.split("\n") for part in _broken(line, width))
    print(text)


def _broken(line: str, width: int) -> list[str]:
    """A line as lines within a width; one with colours is a row of a table, which fits."""
    return [line] if "\x1b" in line else layout.wrapped(line, width)


def _colours() -> bool:
    """Whether the terminal shows colours: as rich decides, by NO_COLOR, TERM and the platform."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    console = Console(file=sys.stdout)
    return console.color_system is not None and not console.no_color


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
