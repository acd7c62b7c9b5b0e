"""The interface of a token mixer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attention.configs.config import MixerConfig
from attention.cost import Cost
from attention.execution import chunks
from attention.execution.dispatch import Executable
from attention.geometry import inputs
from transom.errors import SpecError


class TokenMixer(Executable):
    """Base class of the modules that map (b, h, w, c) to (b, h, w, c) for any h, w >= 1.

    A mixer pads, shifts and masks by itself, and holds no norm, MLP or residual; the shapes of
    its parameters do not depend on h and w.  A subclass defines either `forward`, or `run`, which
    several backends can execute.  One whose config says `takes_tokens` also mixes tokens that
    have no place on the map (class tokens, registers, messengers), and then returns both.

    Args:
        config: the mixer's configuration.
        dim: channels c of its maps.
        heads: number of heads; divides dim.
        index: how many earlier blocks of the stage have an equal config.

    Example:
        >>> import attention, torch
        >>> mixer = attention.create("window:size=2", dim=8, heads=2, index=1)
        >>> isinstance(mixer, attention.TokenMixer)
        True
        >>> mixer.region(4, 4, (0, 0)).sum()  # a corner of the shifted windows sees itself alone
        tensor(1)
    """

    data_dependent = False  # whether `region` is an upper bound, because keys depend on the data

    def __init__(self, config: MixerConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__()
        self.config, self.dim, self.heads, self.index = config, dim, heads, index

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Checks the input, also where a subclass defines `forward`, and computes.

        Args:
            x: (b, h, w, dim), floating point, h and w from 1; b may be 0.
            args: (b, t, dim), tokens beside the map, where the config says `takes_tokens`.

        Returns:
            (b, h, w, dim); with tokens a pair of it and (b, t, dim).

        Raises:
            SpecError: for any other input, in one line.
        """
        inputs.check(x, self.config, inputs.MAP, self.dim)
        if args and self.config.takes_tokens:
            inputs.check_tokens(args[0], x, self.config, self.dim)
        elif args and type(self).forward is Executable.forward:
            raise SpecError(f"{self.config} takes no tokens beside its map")
        return super().__call__(x, *args, **kwargs)

    def cost(self, h: int, w: int) -> Cost:
        """Exact multiply-adds of one image on an (h, w) map, padding and shift included.

        Optional: a mixer without it is counted, but by no formula.  One that takes tokens beside
        the map has a third argument, their number, which is 0 by default.

        Args:
            h, w: rows and columns of the map.

        Returns:
            The cost in MACs.
        """
        raise NotImplementedError

    def exchange(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """What the tokens beside a map exchange after the mixer's residual; here nothing.

        Args:
            tokens: (b, t, dim).
            h, w: rows and columns of the map.

        Returns:
            (b, t, dim).
        """
        return tokens

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        """The tokens that may influence the output at one position, by integer arithmetic.

        Optional.

        Args:
            h, w: rows and columns of the map.
            query: the position (row, column).

        Returns:
            (h, w) bool.
        """
        raise NotImplementedError

    def in_parts(self, x: Tensor) -> bool:
        return x.shape[0] > 1 or chunks.exceeds(3 * x.numel() * x.element_size())

    def kernel_refusal(self, x: Tensor) -> str | None:
        return "there is no kernel for this mixer"

    def signature(self) -> str:
        return f"{self.config} dim={self.dim} heads={self.heads} block={self.index % 2}"

    def extra_repr(self) -> str:
        return f"{self.config}, dim={self.dim}, heads={self.heads}, index={self.index}"


def map_size(x: Tensor) -> tuple[int, int]:
    """(h, w) of a map (b, h, w, c) as integers, under torch.jit tracing too."""
    h, w = x.shape[1:3]
    return (int(h), int(w)) if torch.jit.is_tracing() else (h, w)
