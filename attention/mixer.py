"""The interface of a token mixer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attention.execution import chunks
from attention.execution.dispatch import Executable
from attention.geometry import inputs
from attention.registry import Cost, MixerConfig


class TokenMixer(Executable):
    """Maps (b, h, w, c) to (b, h, w, c) for any h, w >= 1.

    It owns padding, shifting and masking, and knows nothing of norms, MLPs, residuals or stages;
    the shapes of its parameters depend on the config only.  A mixer says either `forward`, or
    `run`, which several backends can execute.

    Args:
        config: its MixerConfig.
        dim: channels c.
        heads: divides dim.
        index: how many earlier blocks of the stage have an equal config.
    """

    def __init__(self, config: MixerConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__()
        self.config, self.dim, self.heads, self.index = config, dim, heads, index

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Raises SpecError for anything but (b, h, w, c), also where a mixer says `forward`."""
        inputs.check(x, self.config, inputs.MAP, self.dim)
        return super().__call__(x, *args, **kwargs)

    def cost(self, h: int, w: int) -> Cost:
        """Exact multiply-adds of one image on an (h, w) map, padding and shift included.

        Optional: without it counts have no formula to agree with.
        """
        raise NotImplementedError

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        """(h, w) bool: the tokens that may influence the output at `query`.

        Optional, from integer arithmetic only.
        """
        raise NotImplementedError

    def is_cut(self, x: Tensor) -> bool:
        return x.shape[0] > 1 or chunks.exceeds(3 * x.numel() * x.element_size())

    def kernel_refusal(self, x: Tensor) -> str | None:
        return "there is no kernel for this mixer"

    def signature(self) -> str:
        return f"{self.config} dim={self.dim} heads={self.heads} block={self.index % 2}"

    def extra_repr(self) -> str:
        return f"{self.config}, dim={self.dim}, heads={self.heads}, index={self.index}"


def map_size(x: Tensor) -> tuple[int, int]:
    """(h, w) of a (b, h, w, c) map as integers, also under torch.jit tracing."""
    h, w = x.shape[1:3]
    return (int(h), int(w)) if torch.jit.is_tracing() else (h, w)
