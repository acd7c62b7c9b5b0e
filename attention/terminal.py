"""What every command line here shares: one-line errors, exit codes, plug-ins."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from attention.registry import SpecError

AGREED, DIFFER, BAD_REQUEST = 0, 1, 2


def parser(module: str, doc: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """A parser for ``python -m module``; every command takes plug-ins."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE",
        help="import a module that registers mixers of your own; repeatable",
    )  # fmt: skip
    return made


def load_plugins(modules: Sequence[str]) -> None:
    """Imports what registers more mixers.  Raises SpecError."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever their code raises is their bad request
            raise SpecError(f"--plugin {module}: {type(error).__name__}: {error}") from None


def run(main: Callable[[], int]) -> None:
    """Exits with main's code; a bad request is one line on stderr and code 2."""
    try:
        code = main()
        sys.stdout.flush()
    except SpecError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = BAD_REQUEST
    except BrokenPipeError:  # the reader has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
