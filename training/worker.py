"""A process that makes runs of a plan, one after another, until none is left.

Any number of workers, on any number of machines that share the store's folder, may work on one
plan: a run belongs to the worker that holds its lock.  A worker that is killed leaves a
checkpoint, and the next one resumes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from analysis.results.store import Store
from training.plan import folder_of
from training.settings.config import RunConfig
from training.settings.identity import identity
from transom import cli
from transom.errors import SpecError, cause_of, printable

RESUMABLE = 75  # exit code of a worker that was asked to stop and has saved (EX_TEMPFAIL)
DEATHS = 3  # of workers at one step of a run, after which the run is called failed


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Context that holds a run's lock, or says False where another worker has it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def work(
    runs: Sequence[RunConfig], store: Store, *, tell: Callable[..., None] = lambda **_: None,
    save_steps: int = 0,
) -> bool:  # fmt: skip
    """Makes runs of a list until each has a row or belongs to another worker.

    Args:
        runs: the list.
        store: receives a row a run.
        tell: receives events as keywords: what is done of a run, and its accuracy.
        save_steps: steps between checkpoints; 0: as many as take a minute.

    Returns:
        False if a signal asked for an end; the runs can be resumed.

    Raises:
        SpecError: for data or a store that cannot be used.
    """
    import torch

    from training.data.opening import open_data
    from training.data.splits import holdout
    from training.loop import world
    from training.loop.run import Stopped

    asked: list[int] = []
    old = {s: signal.signal(s, lambda s, _: asked.append(s)) for s in (signal.SIGTERM,)}
    here = world.join(runs[0].device) if runs else None
    try:
        data = {False: open_data(runs[0].data, runs[0].size)} if runs else {}
        for config in runs:
            assert here is not None
            folder = folder_of(store.path, config.slot)
            with _claim(folder, store, config, here) as mine:
                if not mine:
                    continue
                if config.tuning and True not in data:
                    data[True] = holdout(data[False], 0)
                try:
                    row = _make(config, data[config.tuning], folder, here, tell, asked, save_steps)
                except Stopped:
                    return False
                if here.first:
                    store.append([row])
                    _clear(folder)
                if here.size > 1:  # nobody reads the store before the row is in it
                    here.sum(torch.zeros((), device=here.device))
                tell(slot=config.slot, done=1.0, accuracy=row["accuracy"], row=row["status"])
            if asked:
                return False
        return True
    finally:
        world.leave()
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _claim(folder: Path, store: Store, config: RunConfig, here: Any) -> Iterator[bool]:
    """Context that says whether this worker makes the run; all processes of a run agree."""
    with contextlib.ExitStack() as stack:
        mine = True
        if here.first:
            mine = stack.enter_context(lock(folder))
            if mine:
                mine = not any(row.get("slot") == config.slot for row in store.read()[0])
        if here.size > 1:
            import torch

            mine = bool(here.sum(torch.tensor(float(mine and here.first), device=here.device)))
        yield mine


def _make(
    config: RunConfig, data: Any, folder: Path, here: Any, tell: Callable[..., None],
    asked: list[int], save_steps: int,
) -> dict[str, Any]:  # fmt: skip
    """Row of a run; one that fails, or that killed its workers, has a row that says so."""
    import torch

    from training.loop import checkpoint
    from training.loop.run import Run, Stopped

    if config.device == "cpu":
        torch.set_num_threads(config.threads)
    saved = checkpoint.load(folder)
    deaths = _count_start(folder, saved.step if saved else 0) if here.first else 1
    del saved
    reason = f"its process was killed {deaths - 1} times at one step"
    if deaths <= DEATHS:
        try:
            run = Run(
                config, data, folder, here, tell=tell, stopping=lambda: bool(asked),
                save_steps=save_steps,
            )  # fmt: skip
            return {**run.run(), **_about(here)}
        except (SpecError, Stopped):
            raise
        except Exception as error:
            if here.size > 1:
                raise
            reason = printable(cause_of(error, named=True))
    return {
        "kind": "run", "slot": config.slot, "backbone": config.backbone, "seed": config.seed,
        "lr": config.lr, "tuning": config.tuning, "status": "failed", "reason": reason,
        "accuracy": 1 / data.classes, "classes": data.classes, "correct": "",
        "test_images": len(data.test), "curve": [], "identity": identity(config, data.digest),
        **_about(here),
    }  # fmt: skip


def _about(here: Any) -> dict[str, Any]:
    from analysis.results import environment

    header = environment.header(here.device.type)
    names = ("processor", "cores", "gpu", "torch", "timm", "cpu_capability", "commit", "python")
    return {"environment": {name: header.get(name) for name in names}}


def _count_start(folder: Path, step: int) -> int:
    """How many workers, this one included, have begun at this step of the run."""
    path = folder / "started"
    try:
        last, times = map(int, path.read_text().split())
    except (OSError, ValueError):
        last, times = step, 0
    times = times + 1 if last == step else 1
    path.write_text(f"{step} {times}")
    return times


def _clear(folder: Path) -> None:
    """Removes what a finished run needs no more; the lock stays, as others may wait for it."""
    from training.loop import checkpoint

    checkpoint.clear(folder)
    (folder / "started").unlink(missing_ok=True)


def make(plan: dict[str, Any], tell: Callable[..., None]) -> bool:
    """Makes the runs of a plan, as `launch.plan_text` wrote it.

    Returns:
        False if a signal asked for an end; the runs can be resumed.
    """
    cli.load_plugins(plan["plugins"])
    runs = [RunConfig.from_dict(content) for content in plan["runs"]]
    return work(runs, Store(Path(plan["store"])), tell=tell, save_steps=plan["save_steps"])


def main(argv: list[str] | None = None) -> int:
    """Reads a plan (JSON) from stdin and writes one JSON event a line."""

    def tell(**event: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(event), flush=True)

    return 0 if make(json.loads(sys.stdin.read()), tell) else RESUMABLE


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that started it says when to end
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cli.run(main)
