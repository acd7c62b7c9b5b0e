"""Checks of dependence: regions, masks, batches and moved windows, by gradients and by values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from analysis.checking.beside import Beside
from analysis.checking.checks import (
    FAIL,
    MEASURED,
    MODULE_ERRORS,
    PASS,
    SKIPPED,
    Result,
    Size,
    Subject,
    dtype_name,
    first_failure,
    first_tensor,
    relative_error,
    run,
    size_text,
)
from analysis.models.influence import describe, influence, picture, probes, sample_tokens

QUERIES, QUERIES_OF_LARGE = 48, 12  # per map


def locality(subject: Subject) -> Result:
    if subject.network:
        return _inside(subject)
    double = subject.at(torch.float64)
    if subject.region is None:
        h, w = size = subject.usable[-1]
        return _measured(double, subject.input(size), f"no region() to hold it to; on {h}x{w}: ")
    queries = dict.fromkeys(subject.usable, QUERIES)
    queries |= dict.fromkeys(subject.usable_large, QUERIES_OF_LARGE)
    for size, most in queries.items():
        inputs = (subject.input(size, seed=seed) for seed in range(4))
        if result := _against(subject.region, double, inputs, most):
            return result._replace(case=size_text(size))
    return first_failure(list(queries), lambda size: "")


def _against(
    region: Any, module: Any, inputs: Iterator[Tensor], most: int = QUERIES
) -> Result | None:
    """None if the influence equals the region; else the failure, with its worst query drawn.

    Missing pairs are looked for in further inputs: a maximum or a ReLU may block a gradient.
    """
    x = next(inputs)
    h, w = x.shape[1:3]
    queries = sample_tokens(h, w, most)
    stated = torch.stack([region(h, w, query) for query in queries])
    if stated.shape != (len(queries), h, w) or stated.dtype != torch.bool:
        shape = tuple(stated.shape[1:])
        return Result(FAIL, f"region() gives {shape} {stated.dtype}, not ({h}, {w}) bool")
    found = influence(module, x, queries)
    for more in inputs:
        if not (stated & ~found).any():
            break
        found |= influence(module, more, queries)
    illegal, missing = found & ~stated, stated & ~found
    if getattr(getattr(region, "__self__", None), "data_dependent", False):
        missing.fill_(False)  # the region is all that any data may reach
    if not (illegal.any() or missing.any()):
        return None
    worst = int((illegal.flatten(1).sum(1) * h * w + missing.flatten(1).sum(1)).argmax())
    detail = (
        f"{int(illegal.sum())} pairs meet and may not, {int(missing.sum())} may meet and do not, "
        f"of {len(queries)} queries; query {queries[worst]} is drawn below"
    )
    return Result(FAIL, detail, picture=picture(queries[worst], found[worst], stated[worst]))


def _measured(module: Any, x: Tensor, prefix: str) -> Result:
    h, w = x.shape[1:3]
    most = 256 if h * w <= 256 else min(QUERIES, max(9, 60_000 // (h * w)))
    queries = sample_tokens(h, w, most)
    found = influence(module, x, queries)
    query = queries.index((0, 0))
    return Result(
        MEASURED, prefix + describe(queries, found), picture=picture(queries[query], found[query])
    )


def _inside(subject: Subject) -> Result:
    """Compares our mixers inside a network with their regions; measures foreign blocks."""
    inside = probes(subject.at(torch.float64), subject.input(subject.usable[-1]))
    lines, compared, beside, drawn = [], 0, 0, ""
    for probe in inside:
        h, w = probe.x.shape[1:3]
        place = f"{probe.name} on {h}x{w}"
        if states_region(probe.module):
            compared += 1
            beside += probe.tokens > 0
            region = Beside(probe.module).region if probe.tokens else probe.module.region
            inputs = iter([probe.x, torch.randn_like(probe.x)])
            if result := _against(region, probe.run, inputs):
                return result._replace(case=place)
            continue
        measured = _measured(probe.run, probe.x, f"{place}: ")
        lines.append(measured.detail)
        if not drawn or "ACROSS" in measured.detail:
            drawn = f"{place}\n{measured.picture}" if h * w <= 1024 else ""
    if lines:
        also = [f"{compared} mixers keep their regions"] if compared else []
        return Result(MEASURED, "\n".join(also + lines), picture=drawn)
    if not compared:
        return Result(SKIPPED, "no block that keeps the shape of its map was found")
    still = f"; the tokens beside {beside} of them stay as they are" if beside else ""
    return Result(PASS, f"{compared} mixers, each on its own map{still}")


def states_region(module: Any) -> bool:
    """True if a module declares a region; the method is optional, and the base class raises."""
    try:
        module.region(1, 1, (0, 0))
    except (AttributeError, NotImplementedError):
        return False
    except MODULE_ERRORS:  # the region is declared; `locality` reports what it raises
        return True
    return True


def large_numbers(subject: Subject) -> Result:
    """Tokens that are masked at ordinary logits stay masked when logits reach thousands.

    Tokens outside the influence set are 0 once and 16 times the others once; a mask of -100 lets
    their share of the softmax through.
    """
    if getattr(subject.module, "data_dependent", False):
        return Result(SKIPPED, "which tokens are hidden depends on the data")
    config = getattr(subject.module, "config", None)
    penalty = getattr(config, "mask_value", None)
    worst = 0.0

    def test(size: Size) -> str:
        nonlocal worst
        queries = sample_tokens(*size, 5)
        reach = influence(subject.at(torch.float64), subject.input(size), queries)
        for dtype, limit in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
            module, name = subject.at(dtype), dtype_name(dtype)
            x = 8 * subject.input(size, dtype=dtype)
            for query, inside in zip(queries, reach, strict=True):
                if bool(inside.all()):
                    continue
                seen = [
                    run(module, torch.where(inside[None, :, :, None], x, other))[0][query]
                    for other in (torch.zeros_like(x), 16 * x.flip(1, 2))
                ]
                if not (seen[0].isfinite().all() and seen[1].isfinite().all()):
                    return f"{name}: NaN or Inf at {query} for inputs of size 8 and 128"
                error = relative_error(seen[1].double(), seen[0].double())
                worst = max(worst, error)
                if error > limit and penalty is None:
                    return (
                        f"{name}: the output at {query} changes by {error:.1e} of itself "
                        "with tokens that it must not see: a finite mask leaks"
                    )
        return ""

    result = first_failure(subject.usable[-3:], test)
    if worst and penalty is not None and result.verdict == PASS:
        return Result(
            SKIPPED, f"mask_value={penalty:g} is asked for; it leaks {worst:.1e} of an output"
        )
    return result


def batch(subject: Subject) -> Result:
    """Images of a batch do not meet, and an image has one output in any batch."""

    def test(size: Size) -> str:
        module, x = subject.at(torch.float64), subject.input(size, 3).requires_grad_()
        y = first_tensor(module(x))
        weights = torch.randn(
            y[1].shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype
        )
        (grad,) = torch.autograd.grad((y[1] * weights).sum(), x, materialize_grads=True)
        if grad[0].any() or grad[2].any():
            top = max(float(grad[i].abs().amax()) for i in (0, 2)) / float(grad[1].abs().amax())
            return f"the output of an image has a gradient of {top:.1e} in its neighbour"
        together = y.detach()
        alone = [run(module, x[i : i + 1]) for i in range(3)]
        error = max(relative_error(alone[i], together[i : i + 1]) for i in range(3))
        error = max(error, relative_error(run(module, x.flip(0)), together.flip(0)))
        return "" if error <= 1e-10 else f"alone or in another order: differs by {error:.1e}"

    return first_failure(subject.usable[-1:] if subject.foreign else subject.usable[-3:], test)


def translation(subject: Subject) -> Result:
    """Windows of a plain tiling may be exchanged without a change of their outputs."""
    if subject.groups is None or subject.region is None:
        return Result(SKIPPED, "it declares no windows")
    gh, gw = subject.groups
    h, w = size = (2 * gh, 2 * gw)
    if size not in subject.usable:
        return Result(SKIPPED, f"{size_text(size)} does not run")
    for i, j in sample_tokens(h, w, 16):
        tile = torch.zeros(h, w, dtype=torch.bool)
        tile[i // gh * gh :, j // gw * gw :][:gh, :gw] = True
        if not torch.equal(subject.region(h, w, (i, j)), tile):
            return Result(SKIPPED, "its regions are not the windows of a plain tiling")

    def test(size: Size) -> str:
        x, module = subject.input(size, dtype=torch.float32), subject.module
        for steps in ((gh, 0), (0, gw), (gh, gw)):
            moved = run(module, x.roll(steps, (1, 2)))
            if (error := relative_error(moved, run(module, x).roll(steps, (1, 2)))) > 1e-6:
                return f"windows moved by {steps}: differs by {error:.1e}"
        return ""

    return first_failure([size], test)
