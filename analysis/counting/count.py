"""Counts of one model by three counters: the formula, fvcore, and torch on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from analysis.counting import backward as backward_pass
from analysis.counting import breakdown, counters
from analysis.counting.counters import Tally
from analysis.counting.report import Report
from attention.cost import Cost
from attention.mixer import TokenMixer
from backbones.model.backbone import HierarchicalBackbone
from backbones.parts.macs import Macs
from transom.errors import SpecError
from transom.fields import read_size

Counted = TypeVar("Counted")
COUNTED_AT = 10e9  # MACs a second of a slow processor, for the time budget


@dataclass(frozen=True)
class Budget:
    """Limits of a real forward beyond which fvcore is skipped.

    Args:
        memory: bytes.
        seconds: of the forward, estimated from its MACs.

    Example:
        >>> from analysis.counting.count import Budget
        >>> Budget(memory=2**30)
        Budget(memory=1073741824, seconds=30.0)
    """

    memory: int = 4 * 2**30  # bytes
    seconds: float = 30.0

    def refuses(self, weights: int, torch_tally: Tally) -> str:
        """The reason why a forward exceeds the budget, or "".  weights: bytes of the parameters."""
        need = weights + torch_tally.peak_bytes
        if need > self.memory:
            return (
                f"a real forward needs about {need / 2**30:,.1f} GiB, more than "
                f"--max-memory {self.memory / 2**30:.3g}G"
            )
        seconds = torch_tally.macs[""] / COUNTED_AT
        if seconds > self.seconds:
            return (
                f"a real forward takes about {seconds:,.0f} s, more than "
                f"--max-seconds {self.seconds:g}"
            )
        return ""


def count(
    model: nn.Module, img_size: int | str | tuple[int, int], *, name: str = "",
    budget: Budget | None = None, trace: bool = True, backward: bool = False,
) -> Report:  # fmt: skip
    """Counts parameters and MACs of a model for one image, by formula, fvcore and torch.

    The formula is the sum of the modules' `cost`, for a `HierarchicalBackbone` or a mixer; fvcore
    (https://github.com/facebookresearch/fvcore) analyses a traced forward; torch counts on the
    meta device, so that a model on that device is counted without its weights ever existing.

    Source: the formulas of W-MSA and MSA are eq. 1 and 2 of Swin Transformer (arXiv 2103.14030);
    analysis/counting/paper_formulas.py holds those of the other papers, to compare with.

    Args:
        model: a backbone, or any module that takes images (1, in_chans, height, width);
            in_chans is 3 where the model does not state it.  A `TokenMixer` takes a map instead.
        img_size: pixels: 224, "512x1024" or (height, width); of a mixer's map, tokens.
        name: what the report calls the model; default: the name of its spec or class.
        budget: memory (bytes) and time (seconds) of a real forward beyond which fvcore is
            skipped; default: 4 GiB and 30 s.
        trace: False skips fvcore in any case.
        backward: counts the backward pass, too, in two ways; `agree` is about both passes.

    Returns:
        The counts with their breakdown by stage, block and operator.

    Raises:
        SpecError: for a size that cannot be read, or if the forward fails at this size.

    Example:
        >>> import analysis, backbones
        >>> small = "/".join(f"{i}.dim={8 * i}/{i}.heads=1/{i}.depth=1" for i in (1, 2))
        >>> model = backbones.create(f"swin_t/stages=2/{small}/num_classes=10")
        >>> report = analysis.count(model, 64, trace=False)
        >>> report.macs == report.macs_formula == report.macs_torch, report.agree
        (True, True)
        >>> [row["stage"] for row in report.stages]
        ['1', '2', 'head', 'total']
    """
    h, w = _read_image_size(img_size)
    backbone = model if isinstance(model, HierarchicalBackbone) else None
    if isinstance(model, TokenMixer):
        name, place = name or str(model.config), f"a {h}x{w} map"
        shape = (1, h, w, model.dim)
    else:
        name = name or (backbone.spec.name if backbone else type(model).__name__)
        channels = backbone.spec.in_channels if backbone else getattr(model, "in_chans", 3)
        shape, place = (1, channels, h, w), f"a {h}x{w} image"

    failure = f"{name}: its forward fails on {place}"
    torch_tally = _tally(counters.on_meta, model, shape, failure)
    parts, no_formula = _formula(model, h, w)
    skipped = _over_budget(model, budget or Budget(), torch_tally) if trace else ""
    fvcore_tally: Tally | None = None
    if trace and not skipped:
        fvcore_tally = _tally(counters.traced, model, shape, failure)
    tallies = [tally for tally in (torch_tally, fvcore_tally) if tally is not None]
    agree, difference = _agreement(backbone, parts, tallies)
    uncounted = {operator for tally in tallies for operator in tally.uncounted}
    back: backward_pass.Backward | None = None
    if backward:
        back = _run(lambda: backward_pass.on_meta(model, shape), failure)
        uncounted |= {*back.uncounted}
        agree = agree and back.counted == back.foretold and not back.uncounted
    return Report(
        backbone=name,
        img_size=(h, w),
        params=counters.parameters(model)[""],
        macs=torch_tally.macs[""],
        macs_formula=None if parts is None else sum(part.macs for part in parts),
        macs_fvcore=None if fvcore_tally is None else fvcore_tally.macs[""],
        macs_torch=torch_tally.macs[""],
        norm_elements=torch_tally.norms[""],
        activations=torch_tally.activations,
        padding_macs=None if parts is None else sum(part.padding for part in parts),
        uncounted=tuple(sorted(uncounted)),
        agree=agree,
        note="; ".join(filter(None, (no_formula, skipped, difference, _sampling(torch_tally)))),
        stages=breakdown.by_child(model, torch_tally) if backbone is None
        else breakdown.by_stage(backbone, parts, torch_tally, (h, w)),
        blocks=breakdown.by_block(model, parts if backbone else None, torch_tally),
        operators=breakdown.by_operator(fvcore_tally or torch_tally),
        modules=breakdown.by_module(model, torch_tally),
        macs_backward=None if back is None else back.counted,
        macs_backward_foretold=None if back is None else back.foretold,
    )  # fmt: skip


def _read_image_size(img_size: int | str | tuple[int, int]) -> tuple[int, int]:
    try:
        return read_size(img_size)
    except ValueError as error:
        raise SpecError(f"img_size={img_size!r}: expected {error}") from None


def _tally(
    counter: Callable[[nn.Module, tuple[int, ...]], Tally], model: nn.Module,
    shape: tuple[int, int, int, int], failure: str,
) -> Tally:  # fmt: skip
    """The tally of one counter for an input.  Raises SpecError, which begins with `failure`."""
    return _run(lambda: counter(model, shape), failure)


def _run(counting: Callable[[], Counted], failure: str) -> Counted:
    try:
        return counting()
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        raise SpecError(f"{failure}: {text[0]}") from None


def _formula(model: nn.Module, h: int, w: int) -> tuple[list[Macs] | None, str]:
    """The costs that the modules state, or None and the reason why they state none."""
    if not isinstance(model, (HierarchicalBackbone, TokenMixer)):
        return None, "no formula: not one of ours"
    try:
        cost = model.cost(h, w)
    except NotImplementedError:
        return None, "no formula: a mixer states no cost"
    if not isinstance(cost, Cost):
        return cost, ""
    return [
        Macs("", "projection", cost.projection), Macs("", "mixing", cost.mixing, cost.padding),
        Macs("", "position", cost.position),
    ], ""  # fmt: skip


def _over_budget(model: nn.Module, budget: Budget, torch_tally: Tally) -> str:
    """The reason why fvcore, which runs a real forward, is skipped, or ""."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    refused = budget.refuses(weights, torch_tally)
    return f"fvcore skipped: {refused}" if refused else ""


def _sampling(torch_tally: Tally) -> str:
    """A note on interpolations at computed places, whose 4 multiply-adds a value count 0."""
    names = ", ".join(torch_tally.sampling)
    return f"samples are interpolated, which is no product and counts 0: {names}" if names else ""


def _agreement(
    backbone: HierarchicalBackbone | None, parts: list[Macs] | None, tallies: list[Tally]
) -> tuple[bool, str]:
    """Whether two or more counts are equal, module by module, and what differs beside totals."""
    if len({tally.norms[""] for tally in tallies}) > 1:
        return False, "the counters see different norms"
    totals = [tally.macs[""] for tally in tallies]
    if parts is not None:
        totals.append(sum(part.macs for part in parts))
    if len(totals) < 2 or len(set(totals)) > 1 or any(tally.uncounted for tally in tallies):
        return False, ""
    if backbone and (module := breakdown.differing_module(backbone, parts, tallies)):
        return False, f"totals agree, but not in {module}"
    return True, ""
