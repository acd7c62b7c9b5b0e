"""One call of a model as a clock sees it: its inputs, what is called, the bytes of the answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.results.measurement import Entry
from analysis.timing import pieces
from attention.execution.backends import backend
from transom.errors import SpecError


class Step:
    """A forward, or a forward, loss and backward, of a model that it moves, casts and compiles.

    infer: no gradients, weights in the entry's dtype.  train: float16 and bfloat16 by autocast
    over float32 weights, as usual; no optimiser, whose time is nobody's here.
    """

    def __init__(self, entry: Entry, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.device, self.shape, self.backend = torch.device(entry.device), shape, entry.backend
        self.dtype = getattr(torch, entry.dtype)
        if entry.backend == "folded":
            raise SpecError("backend=folded: only rows of before have it; models are not folded")
        self.trains, self.without = entry.mode == "train", entry.without
        self.mixed = self.trains and entry.dtype in ("float16", "bfloat16")
        self.inner = torch.float32 if self.mixed else self.dtype
        images = entry.kind != "mixer"
        self.last = images and entry.layout == "channels_last"
        # a mixer stands inside a network, which needs the gradient of its input
        self.gradient = self.trains and not images
        self.model = model.to(self.device, self.inner).train(self.trains)
        if self.last:
            model.to(memory_format=torch.channels_last)
        self.net: Any = model
        if entry.compile:
            with contextlib.suppress(AttributeError):  # older: as many as it takes by default
                torch._dynamo.config.recompile_limit = 64
            self.net = torch.compile(model, dynamic=False)

    def fresh(self, seed: int) -> Tensor:
        x = random_tensor(self.shape, seed, self.device).to(self.inner)
        if self.last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_(self.gradient)

    def call(self, x: Tensor) -> Any:
        with backend(self.backend), pieces.off(self.without):
            return self._train(x) if self.trains else self._infer(x)

    def _infer(self, x: Tensor) -> Any:
        with torch.no_grad():
            return self.net(x)

    def _train(self, x: Tensor) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.mixed):
            answer = answer_of(self.net(x))
        answer = answer.float()
        if answer.ndim == 2:
            target = torch.arange(len(answer), device=self.device) % answer.shape[1]
            loss = F.cross_entropy(answer, target)
        else:
            loss = answer.square().mean()
        loss.backward()
        return answer.detach()


def random_tensor(
    shape: tuple[int, ...], seed: int, device: torch.device | None = None
) -> Tensor:
    generator = torch.Generator(device or "cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)


def answer_of(output: Any) -> Tensor:
    """The first tensor of whatever a model returns."""
    while not isinstance(output, Tensor):
        if isinstance(output, dict):
            output = list(output.values())
        output = output[0]
    return output


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest wanted value or of 1."""
    found, wanted = found.detach().float().cpu(), wanted.detach().float().cpu()
    if found.shape != wanted.shape or not found.isfinite().all():
        return float("inf")
    return float((found - wanted).abs().amax() / max(1.0, float(wanted.abs().amax())))


def read(output: Any) -> bytes:
    tensor = answer_of(output).detach().contiguous().cpu().flatten()
    return tensor.view(torch.uint8).numpy().tobytes()


def toucher(device: torch.device) -> Callable[[Any], None]:
    """Reads one number of an answer, so that a lazy one is computed; CUDA is synchronised."""

    def touch(output: Any) -> None:
        tensor = answer_of(output)
        tensor[(-1,) * tensor.ndim].item()

    return touch if device.type == "cpu" else lambda output: None


def sync_of(device: str) -> Callable[[], None]:
    """What returns when the device has nothing left to do."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None
