"""The loop of one run, which can be killed at any moment and resumes to the bit."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analysis
import attention
from analysis.timing.build_model import out_of_memory
from training.data.batches import stream
from training.data.splits import Data
from training.loop import augment, checkpoint, drop_path, initial, loader, subject
from training.loop.budget import BACKWARD, Budget
from training.loop.config import RunConfig, identity, refuse_changes
from training.loop.recipe import Recipe
from training.loop.world import World
from transom.errors import SpecError, printable

Row = dict[str, Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAVE_SECONDS = 60.0


class Stopped(Exception):
    """Raised when a run was asked to stop and has saved a checkpoint."""


class Diverged(Exception):
    """Raised when the loss or a gradient is not finite."""


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
        self.size = config.size or data.size
        self.identity = identity(config, data.digest)
        self.first, self.count = world.share(config.batch)
        self._build()
        self.step, self.seconds, self.curve = 0, 0.0, list[Row]()
        self.losses: list[float] = []  # since the last evaluation
        self.micro = self.count  # images of one forward
        self.correct: np.ndarray | None = None
        self.at: list[Row] = []  # evaluations at other sizes
        self._restore()

    def _build(self) -> None:
        config, recipe = self.config, self.config.recipe
        model = subject.build(
            config.backbone, self.data, self.size, recipe.drop_path, seed=config.seed
        )
        initial.draw(model, config.seed, recipe.init)
        self.start: dict[str, int] | None = None
        if config.weights is not None:
            if subject.digest_of(config.weights) != config.weights_digest:
                raise SpecError(f"--weights {printable(config.weights)}: changed since the start")
            self.start = subject.start_from(model, config.backbone, config.weights, config.partial)
        report = analysis.count(model, self.size, name=config.backbone, trace=False)
        self.macs, self.params = report.macs, report.params
        self.drops = drop_path.replace(model)
        self.model = model.to(self.world.device)
        self.optimizer = make_optimizer(self.model, recipe, config)
        self.rate = config.lr or recipe.rate(config.batch)
        self.scaler = torch.amp.GradScaler(
            self.world.device.type, enabled=config.dtype == "fp16"
        )
        self.average = None
        if recipe.ema:
            from timm.utils import ModelEmaV3

            self.average = ModelEmaV3(self.model, decay=recipe.ema)
        self.trained: nn.Module = self.model
        if self.world.size > 1:
            from torch.nn.parallel import DistributedDataParallel

            self.trained = DistributedDataParallel(self.model)
        if config.compile:
            self.trained = torch.compile(self.trained)  # type: ignore[assignment]
        self.budget = Budget.parse(config.budget)
        self.steps = self.budget.steps(
            macs=self.macs, images=len(self.data.train), batch=config.batch
        )

    # -- spending ----------------------------------------------------------------------------

    def fraction(self) -> float:
        """Part of the budget that is spent, from 0 to 1."""
        spent = self.seconds / self.budget.amount if self.steps is None else self.step / self.steps
        return min(spent, 1.0)

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
            if not out_of_memory(error):
                raise
            status, reason = "oom", f"not enough memory for one image at step {self.step}"
        return self._row(status, reason)

    def _train(self) -> None:
        saved = time.monotonic()
        closing = contextlib.closing(self._batches())
        with attention.backend(self.config.backend), closing as batches:
            while self.fraction() < 1:
                start = time.perf_counter()
                images, targets = next(batches)
                loss = self._make_step(images.to(self.world.device), targets)
                self.step += 1
                self.losses.append(loss)
                self.seconds += time.perf_counter() - start
                if self.world.size > 1 and self.steps is None:  # clocks differ between processes
                    self.seconds = float(
                        self.world.sum(torch.tensor(self.seconds, dtype=torch.float64))
                    ) / self.world.size
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

    def _batches(self) -> Any:
        """Generator of the batches from this step on."""
        dataset = augment.TrainBatches(
            self.data, self.config.recipe, self.size, self.config.seed, self.config.batch,
            self.first, self.count, self.steps or 2**40,
        )  # fmt: skip
        workers = self.config.workers
        return loader.batches_from(dataset, self.step, workers, self.world.device)

    def _all_asked(self) -> bool:
        asked = torch.tensor(float(self.stopping()), device=self.world.device)
        return bool(self.world.sum(asked) > 0)

    # -- a step --------------------------------------------------------------------------------

    def _make_step(self, images: Tensor, targets: Tensor) -> float:
        """One optimizer step on this process's images; the mean loss of the global batch."""
        lr = self.rate * self.config.recipe.schedule(self.fraction())
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.model.train()
        torch.default_generator.manual_seed(
            stream(self.config.seed, "model", self.step, self.world.rank).initial_seed()
        )
        while True:
            try:
                loss = self._backward(images, targets.to(self.world.device))
                break
            except Exception as error:
                if not out_of_memory(error) or self.micro == 1 or self.world.size > 1:
                    raise
                self.micro = math.ceil(self.micro / 2)  # the same global batch, in smaller parts
                self.optimizer.zero_grad()
        self.scaler.unscale_(self.optimizer)
        limit = self.config.recipe.clip_grad or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        mean = float(self.world.sum(loss)) / self.config.batch
        if not math.isfinite(mean) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            raise Diverged(
                f"loss {mean:g} at step {self.step + 1}, learning rate {lr:.3g}, norm of the "
                f"gradient {norm:.3g}"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, step=self.step)
        return mean

    def _backward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Adds the gradient of the global batch's mean loss; the sum of the losses here."""
        total = torch.zeros((), device=self.world.device)
        for start in range(0, self.count, self.micro):
            part = slice(start, min(start + self.micro, self.count))
            drop_path.set_draws(
                self.drops, seed=self.config.seed, step=self.step, batch=self.config.batch,
                first=self.first + start, count=part.stop - start,
            )  # fmt: skip
            last = part.stop == self.count
            waits = last or self.world.size == 1
            with contextlib.nullcontext() if waits else self.trained.no_sync():  # type: ignore
                with self._autocast():
                    logits = self.trained(images[part])
                    loss = summed_loss(logits.float(), targets[part], self.config.recipe)
                # DDP takes the mean over processes, the global batch has the sum
                share = self.world.size / self.config.batch
                self.scaler.scale(loss * share).backward()
            total += loss.detach()
        return total

    def _autocast(self) -> Any:
        dtype = DTYPES[self.config.dtype]
        if dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype)

    # -- evaluation ----------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        due = len(self.curve) + 1
        if self.fraction() * self.config.evaluations + 1e-9 < due:
            return
        correct = self._evaluate(self._evaluated(), self.size)
        self.correct = correct
        self.curve.append({
            "steps": self.step, "macs": self.spent_macs(), "seconds": round(self.seconds, 3),
            "loss": sum(self.losses) / len(self.losses), "accuracy": float(correct.mean()),
        })  # fmt: skip
        while self.fraction() * self.config.evaluations + 1e-9 >= len(self.curve) + 1:
            self.curve.append(self.curve[-1])  # few steps: two evaluations fall on one
        self.losses = []
        self.tell(
            slot=self.config.slot, done=self.fraction(), accuracy=self.curve[-1]["accuracy"]
        )

    def _evaluated(self) -> nn.Module:
        """The model that is judged: the average of the weights where there is one."""
        return self.average.module if self.average is not None else self.model

    def _evaluate_at_sizes(self) -> None:
        """Evaluates at other image sizes, with the windows as they are and in proportion."""
        for size in () if self.config.tuning else self.config.eval_sizes:
            kept = self._evaluated()
            scaled = subject.with_scaled_windows(kept, size)
            for windows, model in ("kept", kept), ("scaled", scaled):
                if model is None:
                    continue
                correct = self._evaluate(model.to(self.world.device), size)
                self.at.append({
                    "size": list(size), "windows": windows, "accuracy": float(correct.mean()),
                    "correct": packed(correct),
                })  # fmt: skip

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, size: tuple[int, int]) -> np.ndarray:
        """Whether every test image is classified correctly, in their order; on all processes."""
        model = model.eval()
        images = self.data.test
        correct = torch.zeros(len(images), device=self.world.device)
        mine = torch.arange(len(images))[self.world.rank :: self.world.size]
        larger = max(1.0, size[0] * size[1] / (self.size[0] * self.size[1]))
        for part in mine.split(max(1, int(256 / larger))):  # for no more memory than in training
            x = augment.evaluated(images, part, self.config.recipe, self.data, size)
            with self._autocast():
                logits = model(x.to(self.world.device))
            found = logits.float().argmax(-1).cpu() == images.labels[part]
            correct[part] = found.float().to(correct.device)
        return self.world.sum(correct).cpu().numpy() > 0

    def spent_macs(self) -> int:
        """Multiply-adds of all training steps so far."""
        return self.macs * BACKWARD * self.config.batch * self.step

    # -- checkpoints and rows --------------------------------------------------------------------

    def _save(self) -> None:
        if not self.world.first:
            return
        tensors = {f"model/{key}": value for key, value in self.model.state_dict().items()}
        tensors |= checkpoint.optimizer_tensors(self.model, self.optimizer)
        if self.average is not None:
            averaged = self.average.module.state_dict().items()
            tensors |= {f"average/{key}": value for key, value in averaged}
        state = {
            "identity": self.identity, "seconds": self.seconds, "curve": self.curve,
            "losses": self.losses, "micro": self.micro, "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.folder, self.step, tensors, state)

    def _restore(self) -> None:
        saved = checkpoint.load(self.folder) if self.folder.is_dir() else None
        if saved is None:
            return
        refuse_changes(self.config.slot, saved.state["identity"], self.identity, self.folder)

        def part(prefix: str) -> dict[str, Tensor]:
            tensors = saved.tensors.items()
            return {k.removeprefix(prefix): v for k, v in tensors if k.startswith(prefix)}

        self.model.load_state_dict(part("model/"))
        checkpoint.restore_optimizer(self.model, self.optimizer, saved.tensors)
        if self.average is not None:
            self.average.module.load_state_dict(part("average/"))
        self.step, self.seconds = saved.step, saved.state["seconds"]
        self.curve, self.losses = saved.state["curve"], saved.state["losses"]
        self.micro = min(self.micro, saved.state["micro"])
        self.scaler.load_state_dict(saved.state["scaler"])

    def _row(self, status: str, reason: str) -> Row:
        images = self.step * self.config.batch
        chance = 1 / self.data.classes
        correct = self.correct if status == "ok" else None
        return {
            "kind": "run", "slot": self.config.slot, "backbone": self.config.backbone,
            "seed": self.config.seed, "lr": self.rate, "tuning": self.config.tuning,
            "status": status, "reason": reason,
            "accuracy": chance if correct is None else float(correct.mean()),
            "correct": "" if correct is None else packed(correct),
            "test_images": len(self.data.test), "classes": self.data.classes,
            "steps": self.step, "images": images, "epochs": images / len(self.data.train),
            "macs": self.spent_macs(), "seconds": round(self.seconds, 3),
            "macs_per_image": self.macs, "params": self.params, "micro_batch": self.micro,
            "processes": self.world.size, "weights": self._digest(), "start": self.start,
            "curve": self.curve, "at": self.at, "identity": self.identity,
        }  # fmt: skip

    def _digest(self) -> str:
        """SHA-256 of all weights and buffers, by name."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(name.encode() + content.numpy().tobytes())
        return found.hexdigest()


def packed(correct: np.ndarray) -> str:
    """One bit per test image, as text."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def make_optimizer(model: nn.Module, recipe: Recipe, config: RunConfig) -> torch.optim.Optimizer:
    """timm's optimizer, which decays neither norms and biases nor `no_weight_decay`."""
    from timm.optim import create_optimizer_v2

    moments = "adam" in recipe.opt or recipe.opt == "lamb"
    betas: dict[str, Any] = {"betas": (0.9, recipe.beta2)} if moments else {}
    return create_optimizer_v2(
        model, opt=recipe.opt, lr=config.lr or recipe.rate(config.batch),
        weight_decay=recipe.weight_decay, **betas,
    )  # fmt: skip


def summed_loss(logits: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
    """Sum of the losses of images: logits (b, classes), targets (b,) or, mixed, (b, classes)."""
    mixed = targets.ndim == 2  # smoothed where they were mixed
    if recipe.loss == "ce":
        smoothing = 0.0 if mixed else recipe.smoothing
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    if not mixed:
        ones = F.one_hot(targets, logits.shape[-1]).to(logits.dtype)
        targets = ones * (1 - recipe.smoothing) + recipe.smoothing / logits.shape[-1]
    if recipe.bce_threshold:
        targets = (targets > recipe.bce_threshold).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / logits.shape[-1]
