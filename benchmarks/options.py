"""Shared options of the measuring commands, their plan, rows and progress bar."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis.pictures import figure_style
from analysis.results.measurement import DEVICES, DTYPES, MALLOCS, Measurement
from analysis.results.session import Plan, Task
from analysis.results.store import Store
from transom import cli, files, table
from transom.errors import SpecError, nearest
from transom.fields import write

Row = dict[str, Any]
USUAL, QUICK = (10, 10), (2, 5)  # processes, and samples in each
WARM, QUICK_WARM = 10.0, 1.0  # seconds of a warm-up
QUICK_SECONDS = 50.0  # of the processes of --quick; the rest of a minute starts and shows them
SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of square products
HONEST = "only medians of 10 processes or more can show a difference; fewer are inconclusive"


def add_measuring(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("measuring")
    add, count = group.add_argument, cli.count_from_one
    add("--processes", type=count, metavar="N", help=f"fresh processes (default 10): {HONEST}")
    add("--samples", type=count, metavar="N", help="timed calls in each process (default 10)")
    add(
        "--quick", action="store_true",
        help="a first look within a minute, which can only be inconclusive: 2 processes of 5 "
        "samples, no memory, short warm-ups; a line below the table says what is left out",
    )  # fmt: skip
    add("--no-memory", action="store_true", help="leave out the processes that measure memory")
    add(
        "--warm-seconds", type=_seconds, metavar="S",
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
    add_no_wait(group)
    add("--force", action="store_true", help="compare what differs in more, marked as mixed")
    add(
        "--table", nargs="+", type=Path, metavar="FILE",
        help="measure nothing: the table of rows that --store wrote",
    )  # fmt: skip
    add("--figure", action=files.OutFile, metavar="FILE", help="also draw it: .svg, .png or .pdf")
    figure_style.add_describe(group)


def add_no_wait(to: Any) -> None:
    to.add_argument(
        "--no-wait", action="store_true",
        help="refuse where another measurement runs on this machine (default: wait for its end)",
    )  # fmt: skip


def read(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with ``command``, the words that a shell repeats, and ``left_out``, which
    `settle` fills."""
    words = [*(sys.argv[1:] if argv is None else argv)]
    args = parser.parse_args(words)
    args.command, args.left_out = f"{parser.prog} {shlex.join(words)}".strip(), []
    return args


def settle(args: argparse.Namespace, name: str, usual: Any, quick: Any, left_out: str) -> None:
    """Gives an option (or names) without a value its default, which is less with --quick."""
    if getattr(args, name) in (None, []):
        setattr(args, name, quick if args.quick else usual)
        if args.quick and left_out not in args.left_out:
            args.left_out.append(left_out)


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
    few = args.quick
    processes, samples = QUICK if few else (args.processes or USUAL[0], args.samples or USUAL[1])
    return Plan(
        groups=groups, processes=processes, samples=samples,
        memory=0 if few or args.no_memory else 1, seconds=QUICK_SECONDS if few else None,
        warm_seconds=args.warm_seconds or (QUICK_WARM if few else WARM), **more,
    )  # fmt: skip


class Answer(NamedTuple):
    """Rows of a plan or of --table, the number of invalid lines in the files of --table, and what
    --quick left out, a line or none."""

    rows: list[Row]
    bad: int
    left_out: list[str]


def rows_of(args: argparse.Namespace, plan: Callable[[], Plan]) -> Answer:
    """Measures a plan, or reads the rows of --table.

    Raises SpecError; a bad --figure is refused before anything is measured.
    """
    figure_style.check(args)
    if args.table:
        return Answer(*_stored(args.table), [])
    from analysis.results import environment, session

    found, wanted = environment.header(args.device, args.threads), plan()
    into = Store(args.store) if args.store else None

    def kept() -> str:
        if into is None:
            return "nothing is stored; the same with a store, which can continue:"
        rows = into.read()[0]
        all_, left = (len(session.tasks(wanted, found, keys)) for keys in (set(), keys_of(rows)))
        place = table.plain(str(args.store))
        return f"{all_ - left} of {all_} processes are stored in {place}; to continue:"

    with interruptible(kept, continuing(args)):
        rows = session.run(
            wanted, found, into=into, resume=args.resume, progress=_bar, wait=not args.no_wait
        )
    return Answer(rows, 0, [left_out(args, session.tasks(wanted, found, keys_of(rows)))]
                  if args.quick else [])  # fmt: skip


def keys_of(rows: Iterable[Row]) -> set[str]:
    return {str(row.get("key")) for row in rows}


def left_out(args: argparse.Namespace, pending: Sequence[Task]) -> str:
    """The line of what --quick did not measure.  pending: processes that had no time."""
    (all_, each), (few, samples) = USUAL, QUICK
    parts = [f"{all_ - few} of {all_} processes of each and {each - samples} of {each} samples"]
    parts += ["memory", *args.left_out]
    if not args.warm_seconds:
        parts.append(f"warm-ups beyond {QUICK_WARM:g} s")
    if pending:
        names = "; ".join(dict.fromkeys(map(_name_of, pending)))
        more = f"{len(pending)} more process{'es' * (len(pending) > 1)}"
        parts.append(f"for want of time {more} ({names})")
    return f"--quick left out: {', '.join(parts)}"


def continuing(args: argparse.Namespace) -> str:
    """The command that continues an interrupted one, or that can be continued."""
    command: str = args.command
    if args.store is None:
        command += " --store rows.jsonl"
    return command if args.resume else f"{command} --resume"


@contextlib.contextmanager
def interruptible(kept: Callable[[], str], command: str) -> Iterator[None]:
    """Says on stderr, where the block is interrupted, what is kept and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted: {kept()} {command}", file=sys.stderr, flush=True)
        raise


@contextlib.contextmanager
def alone(args: argparse.Namespace) -> Iterator[None]:
    """Holds the lock of this machine's measurements for a command without a store."""
    from analysis.results import lock

    kept = "nothing is stored; from the start:"
    with interruptible(lambda: kept, args.command), lock.measuring(wait=not args.no_wait):
        yield


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
    from transom.progress import Bar

    shown = Bar(tasks, unit="process")
    for task in shown:
        shown.say(f"{task.task} {_name_of(task)}")
        yield task


def _name_of(task: Task) -> str:
    first = task.measurements[0]
    at = f" on {write(first.size)}" if first.kind == "mixer" else ""
    return table.plain(f"{first.what[:30]}{at} {first.mode} batch {first.batch}")


def share_of_peak(args: argparse.Namespace, dtype: str, shapes: Iterable[str]) -> list[Measurement]:
    """Matrix products for the peak rate: squares, and shapes of the model."""
    most = 1 if args.quick else None  # the larger square takes longer than a model
    sides = SIDES[args.device][:most]
    products = dict.fromkeys([*(f"{s}x{s}x{s}" for s in sides), *shapes])
    shared = shared_options(args)
    return [Measurement(kind="matmul", what=what, dtype=dtype, **shared) for what in products]
