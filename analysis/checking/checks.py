"""A subject under test, the check of one property, and its result.

Sizes are checked from small to large, so that the first that fails is the smallest; a subject that
raises fails, with the error's text.  A mixer maps (b, h, w, c) to (b, h, w, c); a network takes
(b, c, H, W).
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
MODULE_ERRORS = (Exception, SystemExit)  # of foreign code; our own KeyboardInterrupt passes
PASS, FAIL, SKIPPED, MEASURED = "pass", "FAIL", "skipped", "measured"


class Result(NamedTuple):
    """Outcome of one check.

    verdict: PASS, FAIL, SKIPPED or MEASURED.  case: the smallest size or place that fails.
    picture: an influence set as lines of text.
    """

    verdict: str
    detail: str
    case: str = ""
    picture: str = ""


@dataclass
class Subject:
    """The module under test, with random parameters, in evaluation mode and float32.

    groups: the declared (gh, gw) of its windows in tokens, if any.  reference: the registered
    mixer that it must equal, with copied parameters; no_reference: why there is none.
    """

    module: nn.Module
    channels: int
    sizes: list[Size]
    large: list[Size] = field(default_factory=list)  # for cheap checks, after all others
    network: bool = False
    foreign: bool = False  # another library's network: its blocks are measured, not checked
    groups: Size | None = None
    region: Callable[[int, int, Size], Tensor] | None = None
    reference: nn.Module | None = None
    no_reference: str = "no registered mixer claims the same"
    _copies: dict[torch.dtype, nn.Module] = field(default_factory=dict, repr=False)
    _problems: dict[Size, str] = field(default_factory=dict, repr=False)

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

    def problem(self, size: Size) -> str:
        """The fault of a forward at this size, cached; "" if it runs."""
        if size not in self._problems:
            self._problems[size] = problem_at(self, size)
        return self._problems[size]

    @property
    def usable(self) -> list[Size]:
        """The sizes whose forward runs; the property `any size` reports the others, once."""
        return [size for size in self.sizes if not self.problem(size)]

    @property
    def usable_large(self) -> list[Size]:
        return [size for size in self.large if not self.problem(size)]


@dataclass(frozen=True)
class Property:
    """A named check.

    meaning: what holds of a subject that passes, in one sentence.  needs_sizes: whether the check
    is skipped where no size runs.
    """

    name: str
    meaning: str
    run: Callable[[Subject], Result]
    needs_sizes: bool = True

    def check(self, subject: Subject) -> Result:
        if self.needs_sizes and not subject.usable:
            return Result(SKIPPED, "no size runs")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.run(subject)
        except MODULE_ERRORS as error:  # an error of the module under test is its result
            return Result(FAIL, error_text(error))


def error_text(error: BaseException) -> str:
    try:
        text = table.plain(" ".join(str(error).split()))
    except Exception:  # a foreign error class whose __str__ raises
        text = "(it has no text)"
    text = text if len(text) <= 160 else text[:157] + "..."
    return f"{type(error).__name__}: {text}"


def first_failure(sizes: list[Size], test: Callable[[Size], str]) -> Result:
    """Fails at the first size for which `test` returns a complaint or raises."""
    for size in sizes:
        try:
            complaint = test(size)
        except MODULE_ERRORS as error:
            complaint = error_text(error)
        if complaint:
            return Result(FAIL, complaint, size_text(size))
    if len(sizes) == 1:
        return Result(PASS, size_text(sizes[0]))
    return Result(PASS, f"{len(sizes)} sizes, {size_text(sizes[0])} to {size_text(sizes[-1])}")


def size_text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


@torch.no_grad()
def run(module: nn.Module, x: Tensor) -> Tensor:
    return first_tensor(module(x))


def first_tensor(out: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted value; infinite for unequal shapes and where
    either holds NaN or Inf, so that it exceeds every limit."""
    if found.shape != wanted.shape:
        return float("inf")
    error = (found - wanted).abs().amax() / wanted.abs().amax().clamp(min=1e-30)
    return float(error.nan_to_num(nan=torch.inf, posinf=torch.inf))


def problem_at(subject: Subject, size: Size) -> str:
    x = subject.input(size, 2, torch.float32)
    try:
        y = run(subject.module, x)
    except MODULE_ERRORS as error:
        return error_text(error)
    if y.shape[0] != 2 or not (subject.network or y.shape == x.shape):
        return f"{tuple(x.shape)} became {tuple(y.shape)}"
    return "" if y.isfinite().all() else "NaN or Inf in the output"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
