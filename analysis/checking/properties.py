"""Properties of any mixer, or of any network, as small functions on a `Subject`.

    for prop in MIXER: result = prop.check(subject)

Everything is measured with random parameters and in evaluation mode.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from analysis.checking.axes import axes
from analysis.checking.beside import outputs
from analysis.checking.checks import (
    FAIL,
    MEASURED,
    PASS,
    SKIPPED,
    Property,
    Result,
    Size,
    Subject,
    dtype_name,
    first_failure,
    first_names,
    first_tensor,
    relative_error,
    run,
    size_text,
)
from analysis.checking.locality import batch, large_numbers, locality, translation
from analysis.counting import counters
from analysis.models.influence import sample_tokens


def any_size(subject: Subject) -> Result:
    if not subject.foreign:
        return first_failure(subject.sizes + subject.large, subject.problem)
    native = subject.sizes[-1]
    if problem := subject.problem(native):
        return Result(FAIL, problem, size_text(native))
    other = (native[0] + 1, native[1] + 37)
    problem = subject.problem(other)
    detail = f"{size_text(native)} runs; {size_text(other)} " + (problem or "runs too")
    return Result(MEASURED, detail)


SUMMED = 1e-5  # of the largest value, in float32: kernels differ in the order of their sums
# A constant added to every key shifts all logits of a row alike, which the softmax ignores.
# a constant that is added to all scores of a query cancels in the softmax, and one that MLP-Mixer
# adds to all channels of a token in the norms after it
KEY_BIAS = re.compile(
    r"(^|[._])(k(ey)?(_proj)?[._](.*\.)?|norm_scores\.|bias\.layers\.9\.)bias$|\.mixer\.bias2$"
)


def gradients(subject: Subject) -> Result:
    def test(size: Size) -> str:
        module, x = subject.at(torch.float64), subject.input(size, 2)
        generator, total = torch.Generator().manual_seed(3), torch.zeros(())
        for y in (first_tensor(module(x)), *outputs(module, x)):
            total = total + (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum()
        named = dict(module.named_parameters())
        if not named:
            return ""
        grads = torch.autograd.grad(total, list(named.values()), materialize_grads=True)
        sizes = [float(grad.abs().amax()) if grad.numel() else 1.0 for grad in grads]
        if bad := [n for n, s in zip(named, sizes, strict=True) if not s < float("inf")]:
            return f"not finite: {first_names(bad)}"
        dead = [
            n for n, s in zip(named, sizes, strict=True)
            if s <= 1e-14 * max(sizes) and not KEY_BIAS.search(n)
        ]  # fmt: skip
        return f"no gradient reaches {first_names(dead)}" if dead else ""

    result = first_failure(subject.usable[-1:], test)
    count = sum(1 for _ in subject.module.parameters())
    return result._replace(detail=f"{count} tensors") if result.verdict == PASS else result


# -- equal results by other layouts, dtypes, counters and compilers ------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "strided": lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, ::2, ::2],
    "offset": lambda x: torch.cat([x, x], dim=0)[x.shape[0] :],
    "expanded batch": lambda x: x[:1].expand(2, -1, -1, -1),
}


def layouts(subject: Subject) -> Result:
    def test(size: Size) -> str:
        for name, view in LAYOUTS.items():
            x = view(subject.input(size, 2, torch.float32))
            original = x.clone(memory_format=torch.contiguous_format)
            found = run(subject.module, x)
            if not torch.equal(x, original):
                return f"{name}: the input was written to"
            if (error := relative_error(found, run(subject.module, original))) > SUMMED:
                return f"{name}: differs by {error:.1e} from the same map, contiguous"
        return ""

    return first_failure(subject.usable[-2:], test)


def half_precision(subject: Subject) -> Result:
    def test(size: Size) -> str:
        for dtype in (torch.bfloat16, torch.float16):
            x = subject.input(size, dtype=dtype)
            inputs = {
                "zeros": 0 * x, "ones": torch.ones_like(x), "x 1000": 1000 * x, "x 1e-6": 1e-6 * x,
            }  # fmt: skip
            for name, values in inputs.items():
                if not run(subject.at(dtype), values).isfinite().all():
                    return f"{dtype_name(dtype)}: NaN or Inf from {name}"
        return ""

    return first_failure(subject.usable[-2:], test)


def counts(subject: Subject) -> Result:
    """cost() = fvcore on a real forward = torch on the meta device, in multiply-adds."""
    unknown: set[str] = set()
    stated = False

    def test(size: Size) -> str:
        nonlocal stated
        shape = tuple(subject.input(size).shape)
        by_fvcore = counters.traced(subject.module, shape)
        by_torch = counters.on_meta(subject.module, shape)
        unknown.update(by_fvcore.uncounted, by_torch.uncounted)
        found = {"fvcore": by_fvcore.macs[""], "torch": by_torch.macs[""]}
        try:
            cost: Any = subject.module.cost(*size)  # type: ignore[operator]
            total = sum(part.macs for part in cost) if isinstance(cost, list) else cost.total
            found, stated = {"cost()": total, **found}, True
        except (NotImplementedError, AttributeError):
            pass
        if len(set(found.values())) == 1 or unknown:
            return ""
        return ", ".join(f"{name} {value:,}" for name, value in found.items())

    result = first_failure(subject.usable[-2:], test)
    if result.verdict == FAIL:
        return result
    if unknown:
        return Result(SKIPPED, f"no counter knows {first_names(sorted(unknown))}")
    return result if stated else result._replace(detail=result.detail + "; no cost() to agree with")


def compiles(subject: Subject) -> Result:
    def test(size: Size) -> str:
        x = subject.input(size, 2, torch.float32)
        torch._dynamo.reset()
        try:
            found = run(torch.compile(subject.module, backend="aot_eager", fullgraph=True), x)  # type: ignore[arg-type]
        finally:
            torch._dynamo.reset()
        error = relative_error(found, run(subject.module, x))
        return "" if error <= SUMMED else f"differs by {error:.1e} from eager"

    return first_failure(_awkward(subject), test)


def exports(subject: Subject) -> Result:
    def test(size: Size) -> str:
        x = subject.input(size, 2, torch.float32)
        with torch.no_grad():
            program = torch.export.export(subject.module, (x,)).module()
        error = relative_error(run(program, x), run(subject.module, x))
        return "" if error <= SUMMED else f"differs by {error:.1e} from eager"

    return first_failure(_awkward(subject), test)


def _awkward(subject: Subject) -> list[Size]:
    """One size that no window divides, if there is one."""
    return subject.usable[-1:]


def equals_registered(subject: Subject) -> Result:
    """Compares outputs in float64 and regions with those of the registered mixer."""
    if subject.reference is None:
        return Result(SKIPPED, subject.no_reference)
    ours, double = copy.deepcopy(subject.reference).double(), subject.at(torch.float64)

    def test(size: Size) -> str:
        x = subject.input(size)
        error = relative_error(run(double, x), run(ours, x))
        if error > 1e-10:
            return f"differs by {error:.1e} with the same parameters"
        if subject.region is None:
            return ""
        for query in sample_tokens(*size, 9):
            if not torch.equal(subject.region(*size, query), ours.region(*size, query)):  # type: ignore[operator]
                return f"another region() at {query}"
        return ""

    return first_failure(subject.usable, test)


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
    "gradients", "every parameter has a finite gradient that is not 0 (key biases excepted)",
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
