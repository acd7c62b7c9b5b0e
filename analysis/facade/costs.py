"""What backbones cost, side by side, published and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.facade.arguments import (
    MEMORY,
    Size,
    factory_of,
    jobs_of,
    one_of,
    refuse_models,
    size_of,
    texts,
    whole,
)
from transom.answer import Table
from transom.errors import SpecError, cause_of, one_line, printable

if TYPE_CHECKING:
    from torch import nn

    from analysis.counting.report import Report


def count(
    what: str | nn.Module, img_size: Size | None = None, *, trace: bool = True,
    max_memory: int = MEMORY, max_seconds: float = 30.0, backward: bool = False,
) -> Report:  # fmt: skip
    """Parameters and MACs of a backbone or a mixer, counted three ways, as ``transom flops``.

    Source: the formulas of W-MSA and MSA are eq. 1 and 2 of Swin Transformer (arXiv 2103.14030).

    Args:
        what: a variant or notation, ``timm:NAME``, ``torchvision:NAME``, ``my_module:Class``, a
            model of any library that takes images, or a mixer.
        img_size: pixels, 224 or (height, width); of a mixer, the side of its map in tokens.  By
            default a model's own, or 224.
        trace: False leaves out fvcore, which runs a real forward.
        max_memory: bytes beyond which fvcore is left out.
        max_seconds: time of a forward beyond which fvcore is left out.
        backward: counts the backward pass, too: `macs_backward`.

    Returns:
        The report; `macs`, `params` and `agree` are its fields.

    Raises:
        SpecError: the name is unknown, or the model cannot be built or run at this size.

    Example:
        >>> import attention, transom
        >>> transom.count("swin_t", trace=False)
        Report(swin_t at 224x224: 28,288,354 parameters, 4,490,566,656 MACs, counts agree)
        >>> mixer = attention.create("window:size=7", dim=96, heads=3)
        >>> transom.count(mixer, 28).macs
        36277248
    """
    from analysis.counting import count as counting
    from attention.mixer import TokenMixer

    budget = counting.Budget(max_memory, max_seconds)
    if isinstance(what, TokenMixer):
        if img_size is None:
            raise SpecError(f"{what.config}: a mixer needs the side of its map in tokens, as 28")
        return counting.count(what, img_size, budget=budget, trace=trace, backward=backward)
    factory = factory_of(what)
    size = size_of(img_size) or factory.img_size
    try:
        model = factory.make(size)
    except SpecError:
        raise
    except Exception as error:  # whatever a foreign constructor raises
        reason = printable(cause_of(error))
        raise SpecError(f"{one_line(factory.name)}: cannot be built: {reason}") from None
    name = factory.name if isinstance(what, str) else ""
    return counting.count(
        model, size, name=name, budget=budget, trace=trace, backward=backward
    )


def compare(
    *what: str | nn.Module, img_size: Size | list[Size] | None = None, trace: bool = False,
    measured: bool = False, batch: int = 1, processes: int = 3, samples: int = 5,
    plugins: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Backbones side by side, with their published accuracy, as ``transom compare``.

    Source: activations are those of Radosavovic et al. 2020 (arXiv 2003.13678); every accuracy has
    its own source beside it.

    Args:
        what: names as `count` takes them, or models.
        img_size: pixels, 224 or (height, width); a list of several makes a row each.  By default
            each model's own, or 224.
        trace: counts ours by fvcore too.
        measured: adds latency, throughput and peak memory; of names alone.
        batch: images that are timed together.
        processes: that time everything.
        samples: in each process.
        plugins: modules that register mixers of your own, for the timing processes.

    Returns:
        A row per model and size; a model that cannot be built or run has its reason in the
        column "note".

    Raises:
        SpecError: a name or a size is unknown.

    Example:
        >>> import transom
        >>> table = transom.compare("swin_t", "cswin_t")
        >>> table["model"], table["macs"], table["top1"]
        (['swin_t', 'cswin_t'], [4490566656, 4324203008], [81.2, 82.8])
    """
    from analysis import compare as command
    from analysis.counting.report import CONVENTION
    from transom.progress import Bar

    jobs = jobs_of(what, img_size)
    if measured:
        refuse_models(what)
    rows = [command.row_of(factory, size, trace=trace) for factory, size in Bar(jobs, unit="row")]
    if measured:
        command.add_measured(
            rows, [(factory.name, size) for factory, size in jobs], batch=whole(batch, "batch"),
            processes=whole(processes, "processes"), samples=whole(samples, "samples"),
            plugins=plugins,
        )  # fmt: skip
    return Table(
        tuple(rows), notes=(CONVENTION,), extra={"convention": CONVENTION}, look=command.LOOK,
        title="Backbones compared: " + " ".join(factory.name for factory, _ in jobs),
    )  # fmt: skip


def measure(
    *names: str, img_size: Size | list[Size] | None = None, batch: int = 1, processes: int = 3,
    samples: int = 5, plugins: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Latency, throughput and peak memory of backbones in float32, in processes of their own.

    These are the columns of ``transom compare --measure``; ``transom bench speed`` says whether a
    difference is one.

    Source: the backbones of one size are timed interleaved, as analysis/timing/clock.py describes.

    Args:
        names: as `count` takes them.
        img_size: pixels, 224 or (height, width); a list of several makes a row each.  By default
            each model's own.
        batch: images that are timed together.
        processes: that time everything.
        samples: in each process.
        plugins: modules that register mixers of your own.

    Returns:
        A row per name and size; one that fails has its reason in the column "note".

    Raises:
        SpecError: a name, a size or a number is unknown.

    Example:
        >>> import transom
        >>> transom.measure("swin_t", "pale_t", batch=0)
        Traceback (most recent call last):
        transom.errors.SpecError: batch=0: expected a whole number from 1 to 65536
    """
    from analysis.results import latency

    refuse_models(names)
    numbers = {
        "batch": whole(batch, "batch"), "processes": whole(processes, "processes"),
        "samples": whole(samples, "samples"),
    }  # fmt: skip
    jobs = [(factory.name, size) for factory, size in jobs_of(names, img_size)]
    found = latency.columns(jobs, **numbers, plugins=plugins)
    return Table(tuple(
        {
            "backbone": name, "img_size": f"{size[0]}x{size[1]}", "batch": numbers["batch"],
            **{column: row[column] for column in latency.COLUMNS}, "note": row["measured_note"],
        }
        for (name, size), row in zip(jobs, found, strict=True)
    ))  # fmt: skip


def audit(*names: str, task: str | Sequence[str] = ()) -> Table:
    """Published costs of our variants, claimed and counted, as ``transom audit``.

    Source: analysis/papers/published.py, where each row has its paper.

    Args:
        names: variants; by default all.
        task: imagenet, coco or ade20k, or several; by default all.

    Returns:
        A row per published number, with the verdict.

    Raises:
        SpecError: there is no such variant or task, or no published number of it.

    Example:
        >>> import transom
        >>> table = transom.audit("swin_t", task="imagenet")
        >>> table["quantity"][:2], table["claimed"][:2], table["counted"][:2]
        (['params', 'flops'], [28, 4.5], [28288354, 4490566656])
    """
    from analysis import audit as command
    from analysis.papers import published
    from analysis.papers.ledger import ledger
    from backbones.specs import variants

    tasks = [task] if isinstance(task, str) else list(task)
    for name in tasks:
        one_of(name, published.TASKS, "task")
    found = [n if published.of(n) else variants.get(n).spec.name for n in texts(names, "names")]
    for name in found:
        if not published.of(name):
            raise SpecError(f"{one_line(name)}: no published number of it is held here")
    rows = ledger(command.selected(published.rows(), found, tasks))
    return Table(
        tuple(rows), notes=(command.summary(rows),), title="Published costs", look=command.LOOK
    )
