"""From an entry to what can be timed: its model, its inputs, and whether its answers are right."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

import attention
from analysis.models import counterparts, lookup
from analysis.models.influence import randomise
from analysis.results.measurement import Entry
from analysis.timing.clock import Runner
from analysis.timing.steps import Step, answer_of, random_tensor, read, relative, toucher
from attention.execution.backends import Choice, backend
from attention.execution.dispatch import recorded
from backbones.model.backbone import HierarchicalBackbone
from backbones.specs.notation import parse
from backbones.specs.spec import edit
from transom.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Built:
    """A runner and what is known of it.

    macs: of one image forward; None where nobody counts them.  compiled: off, on, or partial
    where a graph broke.  logits_error: of the peer in eager float32, from ours, by the largest
    logit; answer_error: of the timed call, from eager float32.  backends: which one computes each
    stage or mixer of ours, and why.
    """

    runner: Runner
    model: nn.Module
    macs: int | None
    weight_bytes: int
    compiled: str
    logits_error: float | None
    answer_error: float | None
    backends: dict[str, str] = field(default_factory=dict)


Made = TypeVar("Made")


def fitting(entry: Entry, attempt: Callable[[Entry], Made]) -> tuple[Made, int]:
    """(what the attempt gives, the batch that fitted): half the batch again and again where
    memory ends.  Raises what the attempt raises."""
    batch = entry.batch
    while True:
        try:
            return attempt(replace(entry, batch=batch)), batch
        except Exception as error:
            if batch == 1 or not out_of_memory(error):
                raise
        batch //= 2
        gc.collect()
        if entry.device == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in said)
    )


# -- models ----------------------------------------------------------------------------------


def model_of(entry: Entry) -> tuple[nn.Module, nn.Module]:
    """(the model, whose answers it must have) in float32 on the CPU, in eval mode.

    Parameters are drawn anew from a fixed seed: at initialisation some blocks are the identity.
    """
    torch.manual_seed(0)
    if entry.kind == "mixer":
        mixer = attention.create(entry.what, dim=entry.dim, heads=entry.heads, index=entry.index)
        return randomise(mixer), mixer
    if entry.kind == "named":
        factory = lookup.find(entry.what)
        if factory.foreign:
            model = factory.make(entry.size).eval()
            counterparts.disable_drops(model)
            return model, model
    spec = parse(entry.what)
    if entry.kind != "named":
        spec = edit(spec, entry.what, img_size=entry.size)
    ours = HierarchicalBackbone(spec)
    randomise(ours)
    if entry.kind == "peer":
        return counterparts.make(entry.library, spec, ours), ours
    return ours, ours


def macs_of(entry: Entry, model: nn.Module) -> int | None:
    """Multiply-adds of one image: by formula for ours, counted for others."""
    from analysis.counting.report import count

    try:
        if isinstance(model, attention.TokenMixer):
            return model.cost(*entry.size).total
        if isinstance(model, HierarchicalBackbone):
            return sum(part.macs for part in model.cost(*entry.size))
        return count(model, entry.size, trace=False).macs
    except (NotImplementedError, SpecError):
        return None


# -- timing ----------------------------------------------------------------------------------


def build(entry: Entry, *, check: bool = True) -> Built:
    """Built, and called, so that whatever compiles or chooses a backend has.

    check: compare the answers and count.  Raises whatever a model raises.
    """
    if entry.kind == "matmul":
        return _matmul(entry)
    model, ours = model_of(entry)
    shape = shape_of(entry, model)
    probe = random_tensor((1, *shape[1:]), 1)
    wanted = logits_error = answer_error = macs = None
    if check:
        macs = macs_of(entry, ours)
        with torch.no_grad(), backend("reference"):  # as it is written, step by step
            wanted = answer_of(ours(probe))
            if model is not ours:
                logits_error = relative(answer_of(model(probe)), wanted)
    del ours
    step, before = Step(entry, model, shape), _seen()
    x = step.fresh(0)
    if wanted is not None and not (entry.mode == "train" and _uses_statistics(model)):
        with torch.no_grad():
            x[:1] = probe.to(x)  # first in the very shape that is timed
        answer_error = relative(answer_of(step.call(x))[:1], wanted)
    else:
        step.call(x)
    with recorded() as chosen:
        step.call(x)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return Built(
        runner=Runner(entry.label, step.fresh, step.call, read, toucher(step.device)), model=model,
        macs=macs, weight_bytes=weights, compiled=_state(entry, before),
        logits_error=logits_error, answer_error=answer_error, backends=_named(model, chosen),
    )  # fmt: skip


def _named(model: nn.Module, chosen: list[tuple[nn.Module, Choice]]) -> dict[str, str]:
    """Which backend ran and why, by the name of the stage or mixer ("" for the model itself)."""
    names = {part: name for name, part in model.named_modules()}
    return {
        names[part]: f"{choice.name}: {choice.reason}" for part, choice in chosen if choice.final
    }


def _uses_statistics(model: nn.Module) -> bool:
    """In training batch norms answer otherwise than in evaluation."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _matmul(entry: Entry) -> Built:
    """A product of two matrices, what a processor is best at: "MxKxN"."""
    m, k, n = map(int, entry.what.split("x"))
    device, dtype = torch.device(entry.device), getattr(torch, entry.dtype)
    right = random_tensor((k, n), 0, device).to(dtype)
    runner = Runner(
        entry.what, lambda seed: random_tensor((m, k), seed, device).to(dtype),
        lambda x: x @ right, read, toucher(device),
    )  # fmt: skip
    return Built(
        runner=runner, model=nn.Identity(), macs=m * k * n,
        weight_bytes=right.numel() * right.element_size(), compiled="off",
        logits_error=None, answer_error=None,
    )  # fmt: skip


def shape_of(entry: Entry, model: nn.Module) -> tuple[int, ...]:
    """(b, h, w, dim) of a mixer's maps, (b, channels, h, w) of images."""
    h, w = entry.size
    if entry.kind == "mixer":
        return (entry.batch, h, w, entry.dim)
    known: Any = getattr(model, "in_chans", 3)
    if isinstance(model, HierarchicalBackbone):
        known = model.spec.in_channels
    elif entry.kind == "peer":
        known = parse(entry.what).in_channels
    return (entry.batch, int(known), h, w)


class _Seen(NamedTuple):
    """What torch.compile has done in this process."""

    graphs: int
    breaks: int
    frames: int


def _seen() -> _Seen:
    from torch._dynamo.utils import counters

    breaks = sum(counters["graph_break"].values())
    return _Seen(counters["stats"]["unique_graphs"], breaks, counters["frames"]["total"])


def _state(entry: Entry, before: _Seen) -> str:
    """Whether torch.compile made one graph of the whole model, or ran one that it had, from a
    model of this process that differs in numbers only."""
    if not entry.compile:
        return "off"
    now = _seen()
    made = now.graphs > before.graphs and now.breaks == before.breaks
    had = now.graphs and now.frames == before.frames and not now.breaks
    return "on" if made or had else "partial"
