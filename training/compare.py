"""Trains backbones under one budget and says which one learns better.

Every backbone is trained with the same recipe, seeds, data order and budget.  A budget of MACs
gives a cheaper backbone more steps.  The answer is a table with intervals and verdicts, and on
request a figure; without --data the task is made here, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.pictures import figure_style
from analysis.results.store import Store
from training import options
from transom import cli, table
from transom.errors import SpecError

if TYPE_CHECKING:
    from training.cluster import Cluster

EPILOG = """examples:
  python -m training.compare --backbone micro_pale micro_window --budget 200steps --seeds 3
  python -m training.compare --backbone micro_pale micro_cross --target 0.95 --store runs.jsonl
  python -m training.compare --backbone swin_t "swin_t/3=pale" timm:resnet50 --data IMAGENET \\
      --recipe swin --budget 300epochs --batch 1024 --device cuda --store runs.jsonl --resume
  torchrun --nproc-per-node 8 -m training.compare --backbone swin_t --data IMAGENET ...
  python -m training.compare ... --store runs.jsonl --submit slurm --partition gpu --minutes 120
  python -m training.compare --table runs.jsonl

data: order (made here), digits, fashion, a folder of image folders, idx.gz files, an .npz file,
hf:OWNER/NAME.  A run is one backbone with one seed; runs that a store has are not made again.

exit code: 0 every run is done, 1 a run diverged or failed, 2 the request cannot be answered,
130 interrupted: give --resume to go on"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("training.compare", __doc__, EPILOG)
    add = parser.add_argument
    cli.add_backbones(
        parser, "ours, in the notation; timm:, torchvision:, my_module:Class", needed=False
    )  # fmt: skip
    add("--baseline", metavar="NAME", help="compare with this backbone (default: the first)")
    options.add_settings(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    rows = rows_of(args)
    return show(rows, args) if rows else cli.AGREED


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the stored runs of --table, or of the runs that the options ask for.

    Args:
        args: of `build_parser`, or of a parser with the shared options, a list of backbones and
            a baseline.

    Returns:
        The rows; under torchrun, none in the processes that write nothing.

    Raises:
        SpecError: the request cannot be answered.
    """
    cli.load_plugins(args.plugin)
    figure_style.check(args)
    if args.resume and not args.store:
        raise SpecError("--resume: goes on with the runs of a --store; give its name")
    if args.keep_weights and not args.store:
        raise SpecError("--keep-weights: keeps them beside a --store; give its name")
    if args.table:
        return [row for path in args.table for row in _stored(path)]
    if not args.backbone:
        raise SpecError("nothing to train: give --backbone, such as micro_pale micro_window")
    _cluster(args)
    with tempfile.TemporaryDirectory() as folder:
        return _run(args, Store(args.store or Path(folder) / "runs.jsonl"))


def _stored(path: Path) -> list[dict[str, Any]]:
    if not _runs(Store(path)):
        raise SpecError(f"--table {path}: holds no runs")
    return Store(path).read()[0]


def _runs(store: Store) -> list[dict[str, Any]]:
    return [row for row in store.read()[0] if row.get("kind") == "run"]


def plan_of(args: argparse.Namespace) -> Any:
    """The plan of a request, with everything checked that can be before a run begins."""
    from training import plan
    from training.loop import subject
    from training.settings import presets
    from training.settings.budget import Budget
    from training.settings.config import RunConfig

    plan.check_distinct(args.backbone)
    if args.partial != "none" and not args.weights:
        raise SpecError(f"--partial {args.partial}: says how --weights are taken; give them")
    if args.baseline and args.baseline not in args.backbone:
        raise SpecError(f"--baseline {args.baseline}: is no --backbone of this comparison")
    base = RunConfig(
        backbone="", seed=0, data=args.data, size=args.img_size,
        recipe=presets.read(args.recipe), budget=str(Budget.parse(args.budget)),
        batch=args.batch, dtype=args.dtype, device=args.device, threads=args.threads,
        backend=args.backend, evaluations=args.evaluations, weights=args.weights,
        weights_digest=subject.digest_of(args.weights) if args.weights else None,
        partial=args.partial if args.weights and args.partial != "none" else None,
        eval_sizes=tuple(args.eval_size), compile=args.compile, workers=args.workers or 0,
        keep_weights=args.keep_weights,
    )  # fmt: skip
    return plan.Plan(base, tuple(args.backbone), args.seeds, args.lr)


def _run(args: argparse.Namespace, store: Store) -> list[dict[str, Any]]:
    """Rows of the plan's runs; under torchrun, none in the processes that write nothing."""
    from training import plan
    from training.data.opening import open_data
    from training.data.scan import scan
    from training.loop import loader, optimizer, subject
    from training.objectives import choice

    wanted = plan_of(args)
    first = int(os.environ.get("RANK", "0")) == 0
    if first and not args.resume and args.store and _runs(store):
        raise SpecError(f"--store {args.store}: has runs; give --resume to go on, or another file")
    data = open_data(args.data, args.img_size)
    if args.workers is None:
        side_by_side = _jobs(args) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = loader.default_workers(data, side_by_side)
        wanted = replace(wanted, base=replace(wanted.base, workers=workers))
    recipe, size = wanted.base.recipe, args.img_size or data.size
    optimizer.check(recipe, data, size)
    if recipe.objective == "simmim" and args.eval_size:
        raise SpecError(
            "--eval-size: is for recipes that learn classes; fine-tune the pre-trained weights"
        )
    for name in wanted.backbones:  # refuses what cannot be built before anything is trained
        subject.check(name, data, size, recipe.drop_path, args.weights, wanted.base.partial,
                      args.eval_size, choice.make(recipe, data))  # fmt: skip
    if first:
        # raises now if the file cannot be written; runs are stored in the order they end in
        named = list(wanted.backbones)
        known = any(row.get("backbones") == named for row in store.read()[0])
        store.append([] if known else [{"kind": "plan", "backbones": named}])
        scan(data)
    tuning = wanted.tuning()
    _make(args, store, plan.missing(tuning, store.read()[0], data.digest, store.path), "tuning run")
    rates = wanted.best_rates(plan.of_plan(tuning, store.read()[0]))
    judged = wanted.judged(rates)
    _make(args, store, plan.missing(judged, store.read()[0], data.digest, store.path), "run")
    return plan.of_plan(judged, store.read()[0]) if first else []


def _cluster(args: argparse.Namespace) -> Cluster | None:
    """Where the jobs of --submit run; raises SpecError for options that do not go together."""
    wishes = {"--partition": args.partition, "--gpus-per-job": args.gpus_per_job,
              "--minutes": args.minutes}  # fmt: skip
    if not args.submit:
        for option, value in wishes.items():
            if value is not None:
                raise SpecError(f"{option} {value}: is for the jobs of --submit; give it too")
        return None
    from training.cluster import Cluster

    if not args.store:
        raise SpecError(f"--submit {args.submit}: give --store, in a folder that all jobs share")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SpecError(f"--submit {args.submit}: starts its own processes; leave torchrun out")
    if args.partition and args.submit == "local":
        raise SpecError(f"--partition {args.partition}: is for --submit slurm")
    if args.gpus_per_job and args.device != "cuda":
        raise SpecError(f"--gpus-per-job {args.gpus_per_job}: needs --device cuda")
    if args.device.startswith("cuda:"):
        raise SpecError(f"--device {args.device}: a job has GPUs of its own; give --device cuda")
    cluster = Cluster(kind=args.submit, partition=args.partition,
                      processes=args.gpus_per_job or 1, minutes=args.minutes or 240)  # fmt: skip
    cluster.check()
    return cluster


def _make(args: argparse.Namespace, store: Store, runs: list[Any], what: str) -> None:
    """Makes runs in worker processes, or under torchrun in this one with its peers."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from training.worker import work

        if not work(runs, store, save_steps=args.save_steps):
            raise KeyboardInterrupt
        return
    from training.launch import Interrupted, Launch, launch

    make: Launch = launch
    if cluster := _cluster(args):
        from training.submit import submit

        make = functools.partial(submit, cluster=cluster)
    jobs = (args.jobs or len(runs)) if args.submit == "slurm" else _jobs(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        make(runs, store.path, jobs=jobs, plugins=args.plugin, save_steps=args.save_steps,
             what=what)  # fmt: skip
    except Interrupted:
        raise KeyboardInterrupt from None


def _jobs(args: argparse.Namespace) -> int:
    """Runs at a time on this machine."""
    if args.jobs or args.device != "cpu":
        return args.jobs or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // args.threads)


def show(
    rows: list[dict[str, Any]], args: argparse.Namespace,
    shown: list[dict[str, Any]] | None = None, *, first: Sequence[str] = (),
    last: Sequence[str] = (), **more: Any,
) -> int:  # fmt: skip
    """Prints the table and draws the figure.

    Args:
        rows: of the runs.
        args: of the command line.
        shown: rows of the table; by default those of `training.report.table_rows`.
        first, last: sentences below the table, around those of every comparison.
        more: besides rows and runs in JSON.

    Returns:
        The exit code.
    """
    from training import report

    style = cli.chosen_format(args)
    if shown is None:
        shown = report.table_rows(rows, args.baseline, args.target)
    if style == "json":
        runs = [row for row in rows if row["kind"] == "run"]
        text = json.dumps({**more, "rows": shown, "runs": runs}, indent=1)
    else:
        lines = [*first, *report.notes(rows, args.baseline, args.target), *last]
        note = "" if style == "csv" else "\n".join(lines)
        text = table.render(shown, style, note=note, look=report.look(args.target))
    if args.figure:
        report.draw(rows, args.figure, describe=args.describe)
    cli.emit(text, args)
    ok = all(row["status"] == "ok" for row in rows if row.get("kind") == "run")
    return cli.AGREED if ok else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
