"""What must hold of any mixer, or of any network, as small functions on a `Candidate`.

    for prop in MIXER: result = prop.judge(candidate)

Everything is measured with parameters drawn at random and in evaluation mode.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from analysis.checking.axes import axes
from analysis.checking.judging import (
    FAIL,
    MEASURED,
    PASS,
    SKIPPED,
    Candidate,
    Property,
    Result,
    Size,
    apart,
    by,
    few,
    first_tensor,
    kind,
    over,
    run,
)
from analysis.checking.locality import batch, large_numbers, locality, translation
from analysis.counting import counters
from analysis.models.influence import some_tokens


def any_size(c: Candidate) -> Result:
    if not c.foreign:
        return over(c.sizes + c.large, c.trouble)
    own = c.sizes[-1]
    if problem := c.trouble(own):
        return Result(FAIL, problem, by(own))
    other = (own[0] + 1, own[1] + 37)
    problem = c.trouble(other)
    return Result(MEASURED, f"{by(own)} runs; {by(other)} " + (problem or "runs too"))


SUMMED = 1e-5  # of the largest value, in float32: other kernels sum in another order
# A constant added to every key adds the same to every logit of a row: the softmax forgets it.
KEY_BIAS = re.compile(r"(^|[._])k(ey)?(_proj)?[._](.*\.)?bias$")


def gradients(c: Candidate) -> Result:
    def test(size: Size) -> str:
        module, x = c.at(torch.float64), c.input(size, 2)
        y = first_tensor(module(x))
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
        named = dict(module.named_parameters())
        if not named:
            return ""
        grads = torch.autograd.grad(
            (y * weights).sum(), list(named.values()), materialize_grads=True
        )
        sizes = [float(grad.abs().amax()) if grad.numel() else 1.0 for grad in grads]
        if bad := [n for n, s in zip(named, sizes, strict=True) if not s < float("inf")]:
            return f"not finite: {few(bad)}"
        dead = [
            n for n, s in zip(named, sizes, strict=True)
            if s <= 1e-14 * max(sizes) and not KEY_BIAS.search(n)
        ]  # fmt: skip
        return f"no gradient reaches {few(dead)}" if dead else ""

    result = over(c.usable[-1:], test)
    count = sum(1 for _ in c.module.parameters())
    return result._replace(detail=f"{count} tensors") if result.verdict == PASS else result


# -- the same numbers, asked for in another way --------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "strided": lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, ::2, ::2],
    "offset": lambda x: torch.cat([x, x], dim=0)[x.shape[0] :],
    "expanded batch": lambda x: x[:1].expand(2, -1, -1, -1),
}


def layouts(c: Candidate) -> Result:
    def test(size: Size) -> str:
        for name, view in LAYOUTS.items():
            x = view(c.input(size, 2, torch.float32))
            kept = x.clone(memory_format=torch.contiguous_format)
            found = run(c.module, x)
            if not torch.equal(x, kept):
                return f"{name}: the input was written to"
            if (error := apart(found, run(c.module, kept))) > SUMMED:
                return f"{name}: {error:.1e} apart from the same map, contiguous"
        return ""

    return over(c.usable[-2:], test)


def half_precision(c: Candidate) -> Result:
    def test(size: Size) -> str:
        for dtype in (torch.bfloat16, torch.float16):
            x = c.input(size, dtype=dtype)
            inputs = {
                "zeros": 0 * x, "ones": torch.ones_like(x), "x 1000": 1000 * x, "x 1e-6": 1e-6 * x,
            }  # fmt: skip
            for name, values in inputs.items():
                if not run(c.at(dtype), values).isfinite().all():
                    return f"{kind(dtype)}: NaN or Inf from {name}"
        return ""

    return over(c.usable[-2:], test)


def counts(c: Candidate) -> Result:
    """cost() = fvcore on a real forward = torch on the meta device, in multiply-adds."""
    unknown: set[str] = set()
    stated = False

    def test(size: Size) -> str:
        nonlocal stated
        shape = tuple(c.input(size).shape)
        trace, witness = counters.traced(c.module, shape), counters.on_meta(c.module, shape)
        unknown.update(trace.uncounted, witness.uncounted)
        found = {"fvcore": trace.macs[""], "torch": witness.macs[""]}
        try:
            cost: Any = c.module.cost(*size)  # type: ignore[operator]
            total = sum(part.macs for part in cost) if isinstance(cost, list) else cost.total
            found, stated = {"cost()": total, **found}, True
        except (NotImplementedError, AttributeError):
            pass
        if len(set(found.values())) == 1 or unknown:
            return ""
        return ", ".join(f"{name} {value:,}" for name, value in found.items())

    result = over(c.usable[-2:], test)
    if result.verdict == FAIL:
        return result
    if unknown:
        return Result(SKIPPED, f"no counter knows {few(sorted(unknown))}")
    return result if stated else result._replace(detail=result.detail + "; no cost() to agree with")


def compiles(c: Candidate) -> Result:
    def test(size: Size) -> str:
        x = c.input(size, 2, torch.float32)
        torch._dynamo.reset()
        try:
            found = run(torch.compile(c.module, backend="aot_eager", fullgraph=True), x)  # type: ignore[arg-type]
        finally:
            torch._dynamo.reset()
        error = apart(found, run(c.module, x))
        return "" if error <= SUMMED else f"{error:.1e} apart from eager"

    return over(_awkward(c), test)


def exports(c: Candidate) -> Result:
    def test(size: Size) -> str:
        x = c.input(size, 2, torch.float32)
        with torch.no_grad():
            program = torch.export.export(c.module, (x,)).module()
        error = apart(run(program, x), run(c.module, x))
        return "" if error <= SUMMED else f"{error:.1e} apart from eager"

    return over(_awkward(c), test)


def _awkward(c: Candidate) -> list[Size]:
    """One size that no window divides, if there is one."""
    return c.usable[-1:]


def equals_registered(c: Candidate) -> Result:
    """Values in float64 and regions, with the same parameters."""
    if c.reference is None:
        return Result(SKIPPED, c.unlike)
    ours, double = copy.deepcopy(c.reference).double(), c.at(torch.float64)

    def test(size: Size) -> str:
        x = c.input(size)
        error = apart(run(double, x), run(ours, x))
        if error > 1e-10:
            return f"{error:.1e} apart with the same parameters"
        if c.region is None:
            return ""
        for query in some_tokens(*size, 9):
            if not torch.equal(c.region(*size, query), ours.region(*size, query)):  # type: ignore[operator]
                return f"another region() at {query}"
        return ""

    return over(c.usable, test)


# -- the suites ------------------------------------------------------------------------------

ANY_SIZE = Property(
    "any size", "any height and width gives a finite result of the right shape", any_size,
    needs_sizes=False,
)  # fmt: skip
LOCALITY = Property(
    "locality",
    "an output depends on every token of its region and on no other (fp64 gradients)", locality,
)  # fmt: skip
AXES = Property(
    "axes", "channels are not treated as an axis of the map (mixers without a region)", axes
)
LARGE = Property(
    "large numbers", "what attention hides stays hidden however large the logits", large_numbers
)
BATCH = Property(
    "batch", "images of a batch do not meet, and an image has one output in any batch", batch
)
GRADIENTS = Property(
    "gradients", "every parameter has a finite gradient that is not 0 (key biases apart)",
    gradients,
)  # fmt: skip
LAYOUT = Property(
    "layouts", "strides of the input change nothing, and the input is not written to", layouts
)
HALF = Property(
    "half precision", "no NaN or Inf in bf16 or fp16 from nothing, little or much", half_precision
)
TRANSLATION = Property(
    "translation", "whole windows may change places (unshifted windows)", translation
)
COUNTS = Property("counts", "the stated multiply-adds are those that run", counts)
COMPILE = Property("compile", "torch.compile makes one graph of it, with equal results", compiles)
EXPORT = Property("export", "torch.export makes a program of it, with equal results", exports)
EQUAL = Property(
    "equals the registered mixer", "the same parameters give the same output and regions",
    equals_registered,
)  # fmt: skip

MIXER = (
    ANY_SIZE, LOCALITY, AXES, LARGE, BATCH, GRADIENTS, LAYOUT, HALF, TRANSLATION, EQUAL, COUNTS,
    COMPILE, EXPORT,
)  # fmt: skip
NETWORK = (ANY_SIZE, LOCALITY, BATCH, GRADIENTS, LAYOUT, HALF, COUNTS, COMPILE, EXPORT)
