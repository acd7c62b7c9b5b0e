"""The loop of one run, which can be killed at any moment and resumes to the bit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import attention
from analysis.timing.build_model import out_of_memory
from training.data.bits import packed
from training.data.splits import Data
from training.loop import augment, checkpoint, loader, subject
from training.loop.learner import Diverged, Learner
from training.loop.world import World
from training.settings.budget import BACKWARD, Budget
from training.settings.config import RunConfig
from training.settings.identity import identity, refuse_changes

Row = dict[str, Any]
SAVE_SECONDS = 60.0
KEPT = "weights.safetensors"  # what --keep-weights leaves in a run's folder


class Stopped(Exception):
    """Raised when a run was asked to stop and has saved a checkpoint."""


class Run:
    """One training run.

    Args:
        config: what to train.
        data: the dataset; its test images are those that are evaluated.
        folder: of the checkpoints.
        world: the processes of the run.
        tell: receives the fraction that is done and the last evaluation, as keywords.
        stopping: asked after every step; true saves and raises `Stopped`.
        save_steps: steps between checkpoints; 0: as many as take a minute.
    """

    def __init__(
        self, config: RunConfig, data: Data, folder: Path, world: World, *,
        tell: Callable[..., None] = lambda **_: None, stopping: Callable[[], bool] = lambda: False,
        save_steps: int = 0,
    ) -> None:  # fmt: skip
        self.config, self.data, self.folder, self.world = config, data, folder, world
        self.tell, self.stopping, self.save_steps = tell, stopping, save_steps
        self.identity = identity(config, data.digest)
        self.learner = Learner(config, data, world)
        self.budget = Budget.parse(config.budget)
        self.steps = self.budget.steps(
            macs=self.learner.macs, images=len(data.train), batch=config.batch
        )
        self.step, self.seconds, self.curve = 0, 0.0, list[Row]()
        self.losses: list[float] = []  # since the last evaluation
        self.correct: np.ndarray | None = None
        self.at: list[Row] = []  # evaluations at other sizes
        self.untrained: float | None = None  # accuracy of the start, where a probe can tell it
        self._restore()

    # -- spending ----------------------------------------------------------------------------

    def fraction(self) -> float:
        """Part of the budget that is spent, from 0 to 1."""
        spent = self.seconds / self.budget.amount if self.steps is None else self.step / self.steps
        return min(spent, 1.0)

    def spent_macs(self) -> int:
        """Multiply-adds of all training steps so far."""
        return self.learner.macs * BACKWARD * self.config.batch * self.step

    def run(self) -> Row:
        """Trains to the end of the budget.

        Returns:
            The row of the run: what it reached, what it spent, its curve and one bit per test
            image.  Its status is ``ok``, ``diverged`` or ``oom``.

        Raises:
            Stopped: after a checkpoint, where `stopping` asked for it.
            SpecError: a checkpoint cannot be written.
        """
        status, reason = "ok", ""
        try:
            self._train()
        except Diverged as error:
            status, reason = "diverged", str(error)
        except Exception as error:
            if not out_of_memory(error) or self.world.size > 1:  # others would wait for this one
                raise
            status, reason = "oom", f"not enough memory for one image at step {self.step}"
        return self._row(status, reason)

    def _train(self) -> None:
        saved = time.monotonic()
        closing = contextlib.closing(self.batches())
        with attention.backend(self.config.backend), closing as batches:
            if self.learner.objective.probed and self.untrained is None:
                self.untrained = float(self._correct().mean())
            while self.fraction() < 1:
                start = time.perf_counter()
                self.losses.append(self.make_step(*next(batches)))
                self._spend(time.perf_counter() - start)
                self._evaluate_if_due()
                stop = self._all_asked()
                due = time.monotonic() - saved > SAVE_SECONDS
                if self.save_steps:
                    due = self.step % self.save_steps == 0
                if (stop or due) and self.fraction() < 1:
                    self._save()
                    saved = time.monotonic()
                if stop and self.fraction() < 1:
                    raise Stopped(self.config.slot)
            self._evaluate_at_sizes()

    def batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The batches from this step on."""
        learner = self.learner
        dataset = augment.TrainBatches(
            self.data, self.config.recipe, learner.size, self.config.seed, self.config.batch,
            learner.first, learner.count, self.steps or 2**40,
        )  # fmt: skip
        return loader.batches_from(dataset, self.step, self.config.workers, self.world.device)

    def make_step(self, images: Tensor, targets: Tensor) -> float:
        """One optimizer step; the mean loss of the global batch."""
        images = images.to(self.world.device)
        loss = self.learner.step(self.step, self.fraction(), images, targets)
        self.step += 1
        return loss

    def _spend(self, seconds: float) -> None:
        self.seconds += seconds
        if self.world.size > 1 and self.steps is None:  # clocks differ between processes
            device = self.world.device
            clock = torch.tensor(self.seconds, dtype=torch.float64, device=device)
            self.seconds = float(self.world.sum(clock)) / self.world.size

    def _all_asked(self) -> bool:
        asked = torch.tensor(float(self.stopping()), device=self.world.device)
        return bool(self.world.sum(asked) > 0)

    # -- evaluation ----------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        """Evaluates where the next of the equally spaced evaluations is due."""
        due = int(self.fraction() * self.config.evaluations + 1e-9)
        if due <= len(self.curve):
            return
        self.correct = self._correct()
        point = {
            "steps": self.step, "macs": self.spent_macs(), "seconds": round(self.seconds, 3),
            "loss": sum(self.losses) / len(self.losses), "accuracy": float(self.correct.mean()),
        }  # fmt: skip
        self.curve += [point] * (due - len(self.curve))  # of few steps, several fall on one
        self.losses = []
        self.tell(slot=self.config.slot, done=self.fraction(), accuracy=point["accuracy"])

    def _correct(self) -> np.ndarray:
        return self.learner.correct(self.learner.judged, self.learner.size)

    def _evaluate_at_sizes(self) -> None:
        """Evaluates at other image sizes, with the windows as they are and in proportion."""
        for size in () if self.config.tuning else self.config.eval_sizes:
            kept = self.learner.judged
            scaled = subject.with_scaled_windows(kept, size)
            for windows, model in ("kept", kept), ("scaled", scaled):
                if model is None:
                    continue
                correct = self.learner.correct(model, size)
                self.at.append({
                    "size": list(size), "windows": windows, "accuracy": float(correct.mean()),
                    "correct": packed(correct),
                })  # fmt: skip

    # -- checkpoints and rows --------------------------------------------------------------------

    def _save(self) -> None:
        if not self.world.first:
            return
        state = {
            "identity": self.identity, "seconds": self.seconds, "curve": self.curve,
            "losses": self.losses, "micro": self.learner.micro, "untrained": self.untrained,
            "scaler": self.learner.scaler.state_dict(),
        }  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.folder, self.step, self.learner.tensors(), state)

    def _restore(self) -> None:
        saved = checkpoint.load(self.folder) if self.folder.is_dir() else None
        if saved is None:
            return
        refuse_changes(self.config.slot, saved.state["identity"], self.identity, self.folder)
        self.learner.restore(saved.tensors)
        self.learner.micro = min(self.learner.micro, saved.state["micro"])
        self.learner.scaler.load_state_dict(saved.state["scaler"])
        self.step, self.seconds = saved.step, saved.state["seconds"]
        self.curve, self.losses = saved.state["curve"], saved.state["losses"]
        self.untrained = saved.state["untrained"]

    def _row(self, status: str, reason: str) -> Row:
        images = self.step * self.config.batch
        chance = 1 / self.data.classes
        correct = self.correct if status == "ok" else None
        keep = self.config.keep_weights and status == "ok" and not self.config.tuning
        if keep and self.world.first:
            self.learner.save(self.folder / KEPT)
        return {
            "kind": "run", "slot": self.config.slot, "backbone": self.config.backbone,
            "seed": self.config.seed, "lr": self.learner.rate, "tuning": self.config.tuning,
            "status": status, "reason": reason,
            "accuracy": chance if correct is None else float(correct.mean()),
            "correct": "" if correct is None else packed(correct),
            "test_images": len(self.data.test), "classes": self.data.classes,
            "steps": self.step, "images": images, "epochs": images / len(self.data.train),
            "macs": self.spent_macs(), "seconds": round(self.seconds, 3),
            "macs_per_image": self.learner.macs, "params": self.learner.params,
            "micro_batch": self.learner.micro, "processes": self.world.size,
            "weights": self.learner.digest(), "start": self.learner.start,
            "file": f"{self.folder.name}/{KEPT}" if keep else None, "untrained": self.untrained,
            "curve": self.curve, "at": self.at, "identity": self.identity,
        }  # fmt: skip
