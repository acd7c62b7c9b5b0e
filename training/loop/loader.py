"""Loading of batches in processes of their own, which changes nothing but the time.

A batch is a function of its step, so the loader holds no state that a resume would need.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.images import ArrayImages
from training.data.splits import Data
from training.loop.augment import TrainBatches
from transom.errors import SpecError

MOST = 8  # workers of a run by default


def default_workers(data: Data, jobs: int) -> int:
    """Workers of a run where none are asked for.

    Args:
        data: the dataset; arrays need none.
        jobs: runs at a time on this machine, which share its cores.

    Returns:
        0 for arrays, else 1 to 8.
    """
    if isinstance(data.train, ArrayImages):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST, (cores or 1) // jobs))


def batches_from(
    batches: TrainBatches, step: int, workers: int, device: torch.device
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches of a run from a step on, in their order; closing the generator ends the workers.

    Args:
        batches: of the run.
        step: the first.
        workers: processes that make them; with 0 this one does.
        device: of the training; for a GPU the workers' batches are in pinned memory.

    Yields:
        Images and targets of a step.

    Raises:
        SpecError: an image cannot be read.
    """
    steps = range(step, len(batches))
    if not workers:
        for each in steps:
            yield batches[each]
        return
    loader = DataLoader(
        _Careful(batches), batch_size=None, sampler=steps, num_workers=workers,
        worker_init_fn=_begin, pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # so that the loader draws no number of the run's
    )  # fmt: skip
    for batch in loader:
        if isinstance(batch, SpecError):
            raise batch
        images, targets = batch
        yield images, targets


class _Careful(Dataset[Any]):
    """Batches, or the error in the place of one: a loader would wrap it into many lines."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | SpecError:
        try:
            return self.batches[step]
        except SpecError as error:
            return error


def _begin(worker: int) -> None:
    """Lets SIGTERM end a worker, which inherits a handler that only takes note of it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
