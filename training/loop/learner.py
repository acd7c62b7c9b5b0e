"""The model of a run with what trains it: one optimizer step, and the answers it gives."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import analysis
from analysis.timing.build_model import out_of_memory
from backbones import HierarchicalBackbone, weights
from backbones.files import storage
from training.data.batches import stream
from training.data.images import Images
from training.data.splits import Data
from training.loop import augment, checkpoint, drop_path, initial, subject
from training.loop.optimizer import make_optimizer
from training.loop.world import World
from training.objectives import choice
from training.settings.config import RunConfig
from transom.errors import SpecError, printable

Size = tuple[int, int]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(Exception):
    """Raised when the loss or a gradient is not finite."""


class Learner:
    """A model at its start, its optimizer, and the average of its weights if the recipe has one.

    Args:
        config: of the run.
        data: the dataset.
        world: the processes of the run.

    Raises:
        SpecError: the model cannot be built, or --weights have changed since the plan was made.
    """

    def __init__(self, config: RunConfig, data: Data, world: World) -> None:
        self.config, self.data, self.world = config, data, world
        self.size = config.size or data.size
        self.first, self.count = world.share(config.batch)
        self.micro = self.count  # images of one forward
        recipe = config.recipe
        self.objective = choice.make(recipe, data, batch=config.batch, seed=config.seed)
        model = subject.build(
            config.backbone, replace(data, classes=self.objective.classes), self.size,
            recipe.drop_path, seed=config.seed,
        )  # fmt: skip
        initial.draw(model, config.seed, recipe.init)
        self.start: dict[str, int] | None = None
        if config.weights is not None:
            if subject.digest_of(config.weights) != config.weights_digest:
                raise SpecError(f"--weights {printable(config.weights)}: changed since the start")
            self.start = subject.start_from(model, config.backbone, config.weights, config.partial)
        model = self.objective.wrap(model)
        report = analysis.count(model, self.size, name=config.backbone, trace=False)
        self.macs, self.params = report.macs, report.params
        self.drops = drop_path.replace(model)
        self.model = model.to(world.device).train()
        self.rate = config.lr or recipe.rate(config.batch)
        self.optimizer = make_optimizer(self.model, recipe, self.rate)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.dtype == "fp16")
        self.average = None
        if recipe.ema:
            from timm.utils import ModelEmaV3

            self.average = ModelEmaV3(self.model, decay=recipe.ema)
        self.trained: nn.Module = self.model
        if world.size > 1:
            from torch.nn.parallel import DistributedDataParallel

            self.trained = DistributedDataParallel(self.model)
        if config.compile:
            self.trained = torch.compile(self.trained)  # type: ignore[assignment]

    @property
    def judged(self) -> nn.Module:
        """The backbone that is evaluated: of averaged weights where there are such."""
        model = self.average.module if self.average is not None else self.model
        return self.objective.backbone_of(model)

    # -- a step --------------------------------------------------------------------------------

    def step(self, number: int, fraction: float, images: Tensor, targets: Tensor) -> float:
        """Makes one optimizer step on this process's images.

        Args:
            number: of the step, from 0.
            fraction: of the budget that is spent before it.
            images: (count, c, h, w) on the run's device.
            targets: (count,) or, mixed, (count, classes).

        Returns:
            The mean loss of the global batch.

        Raises:
            Diverged: the loss or the gradient is not finite.
        """
        lr = self.rate * self.config.recipe.schedule(fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        torch.default_generator.manual_seed(
            stream(self.config.seed, "model", number, self.world.rank).initial_seed()
        )
        while True:
            try:
                loss = self._backward(number, images, targets.to(self.world.device))
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
                f"loss {mean:g} at step {number + 1}, learning rate {lr:.3g}, norm of the "
                f"gradient {norm:.3g}"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, step=number)
        return mean

    def _backward(self, number: int, images: Tensor, targets: Tensor) -> Tensor:
        """Adds the gradient of the global batch's mean loss; the sum of the losses here."""
        total = torch.zeros((), device=self.world.device)
        for start in range(0, self.count, self.micro):
            part = slice(start, min(start + self.micro, self.count))
            drop_path.set_draws(
                self.drops, seed=self.config.seed, step=number, batch=self.config.batch,
                first=self.first + start, count=part.stop - start,
            )  # fmt: skip
            last = part.stop == self.count
            waits = last or self.world.size == 1
            with contextlib.nullcontext() if waits else self.trained.no_sync():  # type: ignore
                with self._autocast():
                    loss = self.objective.loss(
                        self.trained, images[part], targets[part], number, self.first + start
                    )
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

    # -- answers -------------------------------------------------------------------------------

    def correct(self, backbone: nn.Module, size: Size) -> np.ndarray:
        """Whether every test image is classified correctly, in their order; on all processes.

        Args:
            backbone: the one that is judged, or the same with other windows.
            size: (height, width) of the images in pixels.
        """
        training = backbone.training
        backbone = backbone.to(self.world.device).eval()
        found = self.objective.correct(functools.partial(self._read, backbone, size)).numpy() > 0
        backbone.train(training)
        return found

    @torch.no_grad()
    def _read(
        self, backbone: nn.Module, size: Size, images: Images, which: Tensor,
        what: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        """What a function of outputs and labels gives for images; every process has its part."""
        larger = max(1.0, size[0] * size[1] / (self.size[0] * self.size[1]))
        at_once = max(1, int(256 / larger))  # for no more memory than in training
        mine = torch.arange(len(which))[self.world.rank :: self.world.size]
        # a process without an image answers for the first, which tells it the shape of the sum
        parts = mine.split(at_once) if len(mine) else [torch.zeros(1, dtype=torch.int64)]
        found = torch.empty(0)
        for part in parts:
            x = augment.evaluated(images, which[part], self.config.recipe, self.data, size)
            with self._autocast():
                output = backbone(x.to(self.world.device))
            value = what(output.float().cpu(), images.labels[which[part]]).float()
            if not len(found):
                found = value.new_zeros(len(which), *value.shape[1:])
            if len(mine):
                found[part] = value
        return self.world.sum(found.to(self.world.device)).cpu()

    # -- state ---------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training has changed, by name."""
        found = {f"model/{key}": value for key, value in self.model.state_dict().items()}
        found |= checkpoint.optimizer_tensors(self.model, self.optimizer)
        if self.average is not None:
            averaged = self.average.module.state_dict().items()
            found |= {f"average/{key}": value for key, value in averaged}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `tensors` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            items = tensors.items()
            return {key.removeprefix(prefix): t for key, t in items if key.startswith(prefix)}

        self.model.load_state_dict(part("model/"))
        checkpoint.restore_optimizer(self.model, self.optimizer, tensors)
        if self.average is not None:
            self.average.module.load_state_dict(part("average/"))

    def save(self, path: Path) -> None:
        """Writes the weights that are judged, with the spec of a backbone of ours.

        Raises:
            SpecError: for a full disk or a folder that cannot be written to.
        """
        backbone = self.judged
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(backbone, HierarchicalBackbone):
            weights.save(backbone, path)
        else:
            storage.write(backbone.state_dict(), path, {"format": "pt"})

    def digest(self) -> str:
        """SHA-256 of all weights and buffers, by name."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(name.encode() + content.numpy().tobytes())
        return found.hexdigest()
