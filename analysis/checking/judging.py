"""What is judged, and how a property of it is judged: sizes from small to large, so that the first
that fails is the smallest; what raises fails, with what it said.

A mixer maps (b, h, w, c) to (b, h, w, c); a network takes (b, c, H, W).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from transom import table

Size = tuple[int, int]
RAISED = (Exception, SystemExit)  # whatever somebody's code raises, but an interrupt of ours
PASS, FAIL, SKIPPED, MEASURED = "pass", "FAIL", "skipped", "measured"


class Result(NamedTuple):
    """case: the smallest that fails.  picture: an influence set as lines of text."""

    verdict: str
    detail: str
    case: str = ""
    picture: str = ""


@dataclass
class Candidate:
    """What is judged.  module: its parameters drawn, in evaluation mode and float32.

    groups: the declared (gh, gw) of its windows, if any.  reference: the registered mixer that it
    claims to be, with the same parameters; unlike: why there is none.
    """

    module: nn.Module
    channels: int
    sizes: list[Size]
    large: list[Size] = field(default_factory=list)  # judged by what is cheap, last of all
    network: bool = False
    foreign: bool = False  # a network of somebody else: its blocks are measured, not judged
    groups: Size | None = None
    region: Callable[[int, int, Size], Tensor] | None = None
    reference: nn.Module | None = None
    unlike: str = "no registered mixer claims the same"
    _copies: dict[torch.dtype, nn.Module] = field(default_factory=dict, repr=False)
    _troubles: dict[Size, str] = field(default_factory=dict, repr=False)

    def at(self, dtype: torch.dtype) -> nn.Module:
        if dtype not in self._copies:
            self._copies[dtype] = copy.deepcopy(self.module).to(dtype)
        return self._copies[dtype]

    def input(
        self, size: Size, batch: int = 1, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.channels, *size) if self.network else (*size, self.channels)
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)

    def trouble(self, size: Size) -> str:
        """What is wrong with a forward at this size, found once; nothing if it runs."""
        if size not in self._troubles:
            self._troubles[size] = trouble(self, size)
        return self._troubles[size]

    @property
    def usable(self) -> list[Size]:
        """The sizes that run: a size that does not is reported once, by `any size`."""
        return [size for size in self.sizes if not self.trouble(size)]

    @property
    def usable_large(self) -> list[Size]:
        return [size for size in self.large if not self.trouble(size)]


@dataclass(frozen=True)
class Property:
    """meaning: what it says of a candidate that has it, in one sentence."""

    name: str
    meaning: str
    run: Callable[[Candidate], Result]
    needs_sizes: bool = True

    def judge(self, candidate: Candidate) -> Result:
        if self.needs_sizes and not candidate.usable:
            return Result(SKIPPED, "no size runs")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.run(candidate)
        except RAISED as error:  # whatever somebody's module raises is the answer
            return Result(FAIL, said(error))


def said(error: BaseException) -> str:
    try:
        text = table.plain(" ".join(str(error).split()))
    except Exception:  # an error of somebody else's that cannot say what it is
        text = "(it has no text)"
    text = text if len(text) <= 160 else text[:157] + "..."
    return f"{type(error).__name__}: {text}"


def over(sizes: list[Size], test: Callable[[Size], str]) -> Result:
    """The first size whose test has something to say; a test that raises says what it raised."""
    for size in sizes:
        try:
            complaint = test(size)
        except RAISED as error:
            complaint = said(error)
        if complaint:
            return Result(FAIL, complaint, by(size))
    if len(sizes) == 1:
        return Result(PASS, by(sizes[0]))
    return Result(PASS, f"{len(sizes)} sizes, {by(sizes[0])} to {by(sizes[-1])}")


def by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


@torch.no_grad()
def run(module: nn.Module, x: Tensor) -> Tensor:
    return first_tensor(module(x))


def first_tensor(out: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, of the largest value; infinite for another shape and where a value of
    either is NaN or Inf, so that no comparison with a limit passes it."""
    if found.shape != wanted.shape:
        return float("inf")
    error = (found - wanted).abs().amax() / wanted.abs().amax().clamp(min=1e-30)
    return float(error.nan_to_num(nan=torch.inf, posinf=torch.inf))


def trouble(c: Candidate, size: Size) -> str:
    x = c.input(size, 2, torch.float32)
    try:
        y = run(c.module, x)
    except RAISED as error:
        return said(error)
    if y.shape[0] != 2 or not (c.network or y.shape == x.shape):
        return f"{tuple(x.shape)} became {tuple(y.shape)}"
    return "" if y.isfinite().all() else "NaN or Inf in the output"


def kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
