"""The step that is timed: its inputs, the call, and the bytes of its answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.results.measurement import Measurement
from analysis.timing import pieces
from attention.execution.backends import backend
from transom.errors import SpecError


class Step:
    """A forward, or a forward, loss and backward, of a model that is moved, cast and compiled.

    infer: without gradients, weights in the measurement's dtype.  train: float16 and bfloat16 by
    autocast over float32 weights; no optimiser step, which does not depend on the attention.
    """

    def __init__(self, measurement: Measurement, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.device, self.shape = torch.device(measurement.device), shape
        self.backend = measurement.backend
        self.dtype = getattr(torch, measurement.dtype)
        if measurement.backend == "folded":
            raise SpecError("backend=folded: only rows of before have it; models are not folded")
        self.is_training, self.without = measurement.mode == "train", measurement.without
        self.autocast = self.is_training and measurement.dtype in ("float16", "bfloat16")
        self.weight_dtype = torch.float32 if self.autocast else self.dtype
        images = measurement.kind != "mixer"
        self.channels_last = images and measurement.layout == "channels_last"
        # a mixer stands inside a network, which needs the gradient of its input
        self.input_gradient = self.is_training and not images
        self.model = model.to(self.device, self.weight_dtype).train(self.is_training)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        self.callable: Any = model
        if measurement.compile:
            with contextlib.suppress(AttributeError):  # older versions keep their default
                torch._dynamo.config.recompile_limit = 64
            self.callable = torch.compile(model, dynamic=False)

    def fresh(self, seed: int) -> Tensor:
        x = random_tensor(self.shape, seed, self.device).to(self.weight_dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_(self.input_gradient)

    def call(self, x: Tensor) -> Any:
        with backend(self.backend), pieces.off(self.without):
            return self._train(x) if self.is_training else self._infer(x)

    def _infer(self, x: Tensor) -> Any:
        with torch.no_grad():
            return self.callable(x)

    def _train(self, x: Tensor) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            answer = leading_tensor(self.callable(x))
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


def leading_tensor(output: Any) -> Tensor:
    """The tensor that stands first in an output, itself or in its first elements at any depth.

    An output with anything else first is an error; `checks.first_tensor` passes over it.
    """
    while not isinstance(output, Tensor):
        if isinstance(output, dict):
            output = list(output.values())
        output = output[0]
    return output


def absolute_or_relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted value or 1, whichever is larger.

    Infinite for unequal shapes and where `found` holds NaN or Inf.
    """
    found, wanted = found.detach().float().cpu(), wanted.detach().float().cpu()
    if found.shape != wanted.shape or not found.isfinite().all():
        return float("inf")
    return float((found - wanted).abs().amax() / max(1.0, float(wanted.abs().amax())))


def read(output: Any) -> bytes:
    tensor = leading_tensor(output).detach().contiguous().cpu().flatten()
    return tensor.view(torch.uint8).numpy().tobytes()


def toucher(device: torch.device) -> Callable[[Any], None]:
    """A function that reads one number of an answer, so that a lazy one is computed.

    On CUDA it does nothing, as the clock synchronises.
    """

    def touch(output: Any) -> None:
        tensor = leading_tensor(output)
        tensor[(-1,) * tensor.ndim].item()

    return touch if device.type == "cpu" else lambda output: None


def sync_of(device: str) -> Callable[[], None]:
    """A function that returns when the device is idle."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None
