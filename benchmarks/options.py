"""Shared options of the measuring commands, their plan, rows and progress bar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis.results.measurement import DEVICES, DTYPES, MALLOCS, Measurement
from analysis.results.session import Plan, Task
from analysis.results.store import Store
from transom import cli, files, table
from transom.errors import SpecError, nearest

Row = dict[str, Any]
QUICK = (3, 5)
SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of square products
HONEST = "only medians of 10 processes or more can show a difference; fewer are inconclusive"


def add_measuring(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("measuring")
    add, count = group.add_argument, cli.count_from_one
    add("--processes", type=count, metavar="N", help=f"fresh processes (default 10): {HONEST}")
    add("--samples", type=count, metavar="N", help="timed calls in each process (default 10)")
    add(
        "--quick", action="store_true",
        help="3 processes of 5 samples: a first look, which can only be inconclusive",
    )  # fmt: skip
    add("--no-memory", action="store_true", help="leave out the processes that measure memory")
    add(
        "--warm-seconds", type=_seconds, default=10.0, metavar="S",
        help="a warm-up that has not settled by then is called unstable (default 10)",
    )  # fmt: skip
    add("--device", choices=DEVICES, default="cpu", help="default: cpu")
    add("--threads", type=count, default=0, metavar="N", help="default: as torch chooses")
    add(
        "--malloc", choices=MALLOCS, default="keep",
        help="keep: freed memory stays with the process (glibc), so that no time is the kernel's; "
        "default: as the C library does, which makes large tensors slower and times unsteady",
    )  # fmt: skip
    add(
        "--store", action=files.OutFile, metavar="FILE.jsonl",
        help="add every row to this file as it comes",
    )  # fmt: skip
    add("--resume", action="store_true", help="measure only what --store does not have")
    add("--force", action="store_true", help="compare what differs in more, marked as mixed")
    add(
        "--table", nargs="+", type=Path, metavar="FILE",
        help="measure nothing: the table of rows that --store wrote",
    )  # fmt: skip
    add("--figure", action=files.OutFile, metavar="FILE", help="also draw it: .svg, .png or .pdf")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e4:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, such as 10")
    return value


def listed(what: str, allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """A reader of ``a,b``, words of `allowed`, without repetitions."""

    def read(text: str) -> list[str]:
        words = list(dict.fromkeys(text.split(",")))
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"no {what} {word!r}{nearest(word, allowed)}")
        return words

    return read


def counts(text: str) -> list[int]:
    """Reads ``1,8``."""
    return list(dict.fromkeys(cli.count_from_one(word) for word in text.split(",")))


dtypes = listed("dtype", DTYPES)


def shared_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that all measurements of a request share."""
    return {"device": args.device, "threads": args.threads, "malloc": args.malloc}


def plan_of(args: argparse.Namespace, groups: Sequence[Sequence[Measurement]], **more: Any) -> Plan:
    """The plan of a request.  Raises SpecError for options that exclude each other."""
    if args.resume and args.store is None:
        raise SpecError("--resume: needs the --store that has the rows")
    if args.quick and (args.processes or args.samples):
        raise SpecError("--quick: chooses --processes and --samples itself")
    processes, samples = QUICK if args.quick else (args.processes or 10, args.samples or 10)
    return Plan(
        groups=groups, processes=processes, samples=samples, memory=0 if args.no_memory else 1,
        warm_seconds=args.warm_seconds, **more,
    )  # fmt: skip


def rows_of(args: argparse.Namespace, plan: Callable[[], Plan]) -> tuple[list[Row], int]:
    """(rows of a plan or of --table, number of invalid lines in the files of --table).

    Raises SpecError; a bad --figure is refused before anything is measured.
    """
    if args.figure:
        from analysis.pictures import figure_style

        figure_style.require()
        if args.figure.suffix not in figure_style.ENDINGS:
            raise SpecError(f"--figure {args.figure}: expected {', '.join(figure_style.ENDINGS)}")
    if args.table:
        return _stored(args.table)
    from analysis.results import environment, session

    found = environment.header(args.device, args.threads)
    into = Store(args.store) if args.store else None
    return session.run(plan(), found, into=into, resume=args.resume, progress=_bar), 0


def _stored(files: Sequence[Path]) -> tuple[list[Row], int]:
    """Rows of stored files; the problems of invalid lines go to stderr."""
    rows, bad = [], 0
    for path in files:
        if not path.is_file():
            raise SpecError(f"--table {path}: no such file")
        good, problems = Store(path).read()
        rows += good
        bad += len(problems)
        for line, reason in problems:
            print(table.plain(f"{path}: line {line} {reason}"), file=sys.stderr)
    return rows, bad


def _bar(tasks: Sequence[Task]) -> Iterable[Task]:
    """Shows processes done and the time left."""
    from transom.progress import bar

    shown = bar(tasks, unit="process")
    for task in shown:
        first = task.measurements[0]
        shown.set_postfix_str(f"{task.task} {first.what[:30]} {first.mode} batch {first.batch}")
        yield task


def share_of_peak(args: argparse.Namespace, dtype: str, shapes: Iterable[str]) -> list[Measurement]:
    """Matrix products for the peak rate: squares, and shapes of the model."""
    products = dict.fromkeys([*(f"{s}x{s}x{s}" for s in SIDES[args.device]), *shapes])
    shared = shared_options(args)
    return [Measurement(kind="matmul", what=what, dtype=dtype, **shared) for what in products]
