"""Builds what a measurement times: the model, its inputs, and the error of its answers."""

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
from analysis.results.measurement import Measurement
from analysis.timing.clock import Runner
from analysis.timing.steps import (
    Step,
    absolute_or_relative_error,
    leading_tensor,
    random_tensor,
    read,
    toucher,
)
from attention.execution.backends import Choice, backend
from attention.execution.dispatch import recorded
from backbones.model.backbone import HierarchicalBackbone
from backbones.specs.construct import edit
from backbones.specs.notation import parse
from transom.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Built:
    """A runner with its model and properties.

    macs: of one forward of one image; None where they cannot be counted.  compiled: off, on, or
    partial where a graph broke.  logits_error: of the peer in eager float32 against ours, relative
    to the largest logit.  answer_error: of the timed call against eager float32.  backends: the
    backend of each of our stages or mixers, with the reason.
    """

    runner: Runner
    model: nn.Module
    macs: int | None
    weight_bytes: int
    compiled: str
    logits_error: float | None
    answer_error: float | None
    backends: dict[str, str] = field(default_factory=dict)


Attempted = TypeVar("Attempted")


def fitting(
    measurement: Measurement, attempt: Callable[[Measurement], Attempted]
) -> tuple[Attempted, int]:
    """(result of the attempt, its batch); the batch is halved as long as memory runs out.

    Raises what the attempt raises.
    """
    batch = measurement.batch
    while True:
        try:
            return attempt(replace(measurement, batch=batch)), batch
        except Exception as error:
            if batch == 1 or not out_of_memory(error):
                raise
        batch //= 2
        gc.collect()
        if measurement.device == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in phrases)
    )


# -- models ----------------------------------------------------------------------------------


def model_of(measurement: Measurement) -> tuple[nn.Module, nn.Module]:
    """(model, reference whose answers it must give) in float32 on the CPU, in eval mode.

    Parameters are drawn from a fixed seed: at initialisation some blocks are the identity.
    """
    torch.manual_seed(0)
    if measurement.kind == "mixer":
        sizes = {"dim": measurement.dim, "heads": measurement.heads, "index": measurement.index}
        mixer = attention.create(measurement.what, **sizes)
        return randomise(mixer), mixer
    if measurement.kind == "named":
        factory = lookup.find(measurement.what)
        if factory.foreign:
            model = factory.make(measurement.size).eval()
            counterparts.disable_drops(model)
            return model, model
    spec = parse(measurement.what)
    if measurement.kind != "named":
        spec = edit(spec, measurement.what, img_size=measurement.size)
    ours = HierarchicalBackbone(spec)
    randomise(ours)
    if measurement.kind == "peer":
        return counterparts.make(measurement.library, spec, ours), ours
    return ours, ours


def macs_of(measurement: Measurement, model: nn.Module) -> int | None:
    """Multiply-adds of one image: by formula for ours, counted for others, or None."""
    from analysis.counting.count import count

    try:
        if isinstance(model, attention.TokenMixer):
            return model.cost(*measurement.size).total
        if isinstance(model, HierarchicalBackbone):
            return sum(part.macs for part in model.cost(*measurement.size))
        return count(model, measurement.size, trace=False).macs
    except (NotImplementedError, SpecError):
        return None


# -- timing ----------------------------------------------------------------------------------


def build(measurement: Measurement, *, check: bool = True) -> Built:
    """Builds a measurement's model and calls it, so that compilation and autotuning are done.

    check: compare the answers and count MACs.  Raises whatever a model raises.
    """
    if measurement.kind == "matmul":
        return _matmul(measurement)
    model, ours = model_of(measurement)
    shape = shape_of(measurement, model)
    probe = random_tensor((1, *shape[1:]), 1)
    reference_answer = logits_error = answer_error = macs = None
    if check:
        macs = macs_of(measurement, ours)
        with torch.no_grad(), backend("reference"):  # the unchunked body
            reference_answer = leading_tensor(ours(probe))
            if model is not ours:
                logits_error = absolute_or_relative_error(
                    leading_tensor(model(probe)), reference_answer
                )
    del ours
    step, before = Step(measurement, model, shape), _compile_counts()
    x = step.fresh(0)
    by_batch = measurement.mode == "train" and _uses_statistics(model)
    if reference_answer is not None and not by_batch:
        with torch.no_grad():
            x[:1] = probe.to(x)  # first image of the batch that is timed
        first_answer = leading_tensor(step.call(x))[:1]
        answer_error = absolute_or_relative_error(first_answer, reference_answer)
    else:
        step.call(x)
    with recorded() as chosen:
        step.call(x)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return Built(
        runner=Runner(measurement.label, step.fresh, step.call, read, toucher(step.device)),
        model=model,
        macs=macs, weight_bytes=weights, compiled=_compile_state(measurement, before),
        logits_error=logits_error, answer_error=answer_error,
        backends=_backend_names(model, chosen),
    )  # fmt: skip


def _backend_names(model: nn.Module, chosen: list[tuple[nn.Module, Choice]]) -> dict[str, str]:
    """Backend and reason by the name of the stage or mixer ("" for the model)."""
    names = {part: name for name, part in model.named_modules()}
    return {
        names[part]: f"{choice.name}: {choice.reason}" for part, choice in chosen if choice.final
    }


def _uses_statistics(model: nn.Module) -> bool:
    """True for models with batch norms, whose training output depends on the batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _matmul(measurement: Measurement) -> Built:
    """A product of two matrices, "MxKxN", whose rate stands for the processor's peak."""
    m, k, n = map(int, measurement.what.split("x"))
    device, dtype = torch.device(measurement.device), getattr(torch, measurement.dtype)
    right = random_tensor((k, n), 0, device).to(dtype)
    runner = Runner(
        measurement.what, lambda seed: random_tensor((m, k), seed, device).to(dtype),
        lambda x: x @ right, read, toucher(device),
    )  # fmt: skip
    return Built(
        runner=runner, model=nn.Identity(), macs=m * k * n,
        weight_bytes=right.numel() * right.element_size(), compiled="off",
        logits_error=None, answer_error=None,
    )  # fmt: skip


def shape_of(measurement: Measurement, model: nn.Module) -> tuple[int, ...]:
    """(b, h, w, dim) of a mixer's maps, (b, channels, h, w) of images."""
    h, w = measurement.size
    if measurement.kind == "mixer":
        return (measurement.batch, h, w, measurement.dim)
    known: Any = getattr(model, "in_chans", 3)
    if isinstance(model, HierarchicalBackbone):
        known = model.spec.in_channels
    elif measurement.kind == "peer":
        known = parse(measurement.what).in_channels
    return (measurement.batch, int(known), h, w)


class _CompileCounts(NamedTuple):
    """Counters of torch.compile in this process."""

    graphs: int
    breaks: int
    frames: int


def _compile_counts() -> _CompileCounts:
    from torch._dynamo.utils import counters

    breaks = sum(counters["graph_break"].values())
    return _CompileCounts(counters["stats"]["unique_graphs"], breaks, counters["frames"]["total"])


def _compile_state(measurement: Measurement, before: _CompileCounts) -> str:
    """"on" if torch.compile made one graph of the model, or reused the graph of an earlier model
    of this process that differs in weights only; else "partial"; "off" without it."""
    if not measurement.compile:
        return "off"
    after = _compile_counts()
    new_graph = after.graphs > before.graphs and after.breaks == before.breaks
    reused_graph = after.graphs and after.frames == before.frames and not after.breaks
    return "on" if new_graph or reused_graph else "partial"
