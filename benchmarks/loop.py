"""The cost of the training loop: ours beside the bare step and beside the loop of timm's train.py.

    bare    forward, loss, backward, clipping and optimizer on one batch that never changes
    ours    `training.loop.run`: order, augmentation, stochastic depth, schedule, checks of the loss
    timm    the calls of train_one_epoch in timm's train.py (1.0), over a loader that shuffles

All three train the same backbone from the same weights, a few steps at a time in turn, in one
process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import options
from transom import cli, table
from transom.progress import Bar

EPILOG = """examples:
  python -m benchmarks.loop
  python -m benchmarks.loop swin_t --img-size 224 --batch 8 --rounds 3 --steps 1

exit code: 0 all were measured, 2 a bad request"""
BACKBONE = "micro_window"
NOTE = """\
ms: of one step, median of the rounds
middle half: of the rounds, ms
images/s: of the median
cost: a round's time over that of the bare step in it, less one; median"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.loop", __doc__, EPILOG)
    add = parser.add_argument
    cli.add_backbones(parser, f"default: {BACKBONE}", needed=False, one=True)
    add("--img-size", type=cli.image_size, default=(32, 32), metavar="SIZE", help="default 32")
    add("--batch", type=cli.count_from_one, default=64, metavar="N", help="default 64")
    add("--steps", type=cli.count_from_one, default=5, metavar="N", help="of a turn (default 5)")
    add("--rounds", type=cli.count_from_one, default=15, metavar="N", help="default 15")
    add("--threads", type=cli.count_from_one, default=1, metavar="N", help="default 1")
    options.add_no_wait(parser)
    cli.add_output(parser)
    return parser


def loops(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], None]]:
    """Functions that make one step each, by the name of the loop."""
    import torch

    from training.data.opening import open_data
    from training.loop.run import Run
    from training.loop.world import World
    from training.settings.config import RunConfig
    from training.settings.presets import read

    torch.set_num_threads(args.threads)
    data = open_data("order")
    config = RunConfig(
        backbone=args.backbone or BACKBONE, seed=0, size=args.img_size, recipe=read("micro"),
        budget="1000000steps", batch=args.batch, threads=args.threads,
    )  # fmt: skip

    def run() -> Run:
        return Run(config, data, folder, World(0, 1, torch.device("cpu")))

    return {"bare": _bare(run()), "ours": _ours(run()), "timm": _timm(run())}


def _bare(run: Any) -> Callable[[], None]:
    import torch
    from torch import nn

    images, targets = next(run.batches())
    run.learner.model.train()

    def step() -> None:
        loss = nn.functional.cross_entropy(run.learner.model(images), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(run.learner.model.parameters(), 1.0)
        run.learner.optimizer.step()
        run.learner.optimizer.zero_grad()

    torch.manual_seed(0)
    return _in_context(step)


def _ours(run: Any) -> Callable[[], None]:
    batches = run.batches()

    def step() -> None:
        run.make_step(*next(batches))

    return _in_context(step)


def _timm(run: Any) -> Callable[[], None]:
    """The calls of train_one_epoch, on images that were normalised once."""
    import torch
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter, dispatch_clip_grad
    from torch.utils.data import DataLoader, TensorDataset

    from training.loop import augment

    train = run.data.train
    every = torch.arange(len(train))
    images = augment.evaluated(train, every, run.config.recipe, run.data, run.learner.size)
    loader = DataLoader(
        TensorDataset(images, train.labels), batch_size=run.config.batch, shuffle=True,
        drop_last=True,
    )  # fmt: skip
    scheduler = CosineLRScheduler(run.learner.optimizer, t_initial=1000, t_in_epochs=False)
    loss_of, losses, times = LabelSmoothingCrossEntropy(0.0), AverageMeter(), AverageMeter()
    state: dict[str, Any] = {"batches": iter(loader), "updates": 0}
    run.learner.model.train()

    def step() -> None:
        start = time.time()
        batch = next(state["batches"], None)
        if batch is None:
            state["batches"] = iter(loader)
            batch = next(state["batches"])
        run.learner.optimizer.zero_grad()
        loss = loss_of(run.learner.model(batch[0]), batch[1])
        loss.backward()
        dispatch_clip_grad(run.learner.model.parameters(), value=1.0, mode="norm")
        run.learner.optimizer.step()
        state["updates"] += 1
        losses.update(loss.item(), batch[0].size(0))
        scheduler.step_update(num_updates=state["updates"], metric=losses.avg)
        times.update(time.time() - start)

    return _in_context(step)


def _in_context(step: Callable[[], None]) -> Callable[[], None]:
    import attention

    def call() -> None:
        with attention.backend("cpu"):
            step()

    return call


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per loop: milliseconds of a step, and what it costs over the bare step."""
    with tempfile.TemporaryDirectory() as folder:
        made = loops(args, Path(folder))
        for step in made.values():
            step()
        times: dict[str, list[float]] = {name: [] for name in made}
        for number in Bar(range(args.rounds), unit="round"):
            names = list(made) if number % 2 else list(made)[::-1]
            for name in names:
                start = time.perf_counter()
                for _ in range(args.steps):
                    made[name]()
                times[name].append((time.perf_counter() - start) / args.steps)
    found = []
    for name, seconds in times.items():
        pairs = zip(seconds, times["bare"], strict=True)
        quarters = quantiles(seconds, n=4, method="inclusive") if args.rounds > 1 else seconds * 3
        found.append({
            "loop": name, "ms": 1e3 * median(seconds),
            "middle half": f"{1e3 * quarters[0]:.1f} to {1e3 * quarters[2]:.1f}",
            "images/s": args.batch / median(seconds),
            "cost, %": 100 * (median(a / b for a, b in pairs) - 1),
        })  # fmt: skip
    return found


def main(argv: list[str] | None = None) -> int:
    args = options.read(build_parser(), argv)
    cli.load_plugins(args.plugin)
    style = cli.chosen_format(args)
    with options.alone(args):
        rows = rows_of(args)
    cli.emit(table.render(rows, style, note="" if style == "csv" else NOTE), args)
    return cli.AGREED


if __name__ == "__main__":
    cli.run(main)
