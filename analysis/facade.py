"""The commands as functions, which ``import transom`` hands out.

A function takes what its command takes, as Python values, and returns what it prints: a
`transom.answer.Table` or a `Report`.  What a function needs is imported when it is called.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from transom.answer import Table
from transom.errors import SpecError, cause_of, nearest, one_line, printable
from transom.fields import read_count, read_number, read_size

if TYPE_CHECKING:
    from torch import nn

    from analysis.checking.subjects import Named
    from analysis.counting.report import Report
    from analysis.models.lookup import ModelFactory
    from backbones.specs.spec import BackboneSpec

Size = int | str | tuple[int, int]  # 224, "512x1024" or (512, 1024), height first
MEMORY = 4 * 2**30  # bytes that a real forward may need


# -- what does it cost? ----------------------------------------------------------------------


def count(
    what: str | nn.Module, img_size: Size | None = None, *, trace: bool = True,
    max_memory: int = MEMORY, max_seconds: float = 30.0,
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
    from analysis.counting import report
    from attention.mixer import TokenMixer

    budget = report.Budget(max_memory, max_seconds)
    if isinstance(what, TokenMixer):
        if img_size is None:
            raise SpecError(f"{what.config}: a mixer needs the side of its map in tokens, as 28")
        return report.count(what, img_size, budget=budget, trace=trace)
    factory = _factory(what)
    size = _size(img_size) or factory.img_size
    try:
        model = factory.make(size)
    except SpecError:
        raise
    except Exception as error:  # whatever a foreign constructor raises
        reason = printable(cause_of(error))
        raise SpecError(f"{one_line(factory.name)}: cannot be built: {reason}") from None
    name = factory.name if isinstance(what, str) else ""
    return report.count(model, size, name=name, budget=budget, trace=trace)


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
    from transom.progress import bar

    jobs = _jobs(what, img_size)
    if measured:
        _named(what)
    rows = [command.row_of(factory, size, trace=trace) for factory, size in bar(jobs, unit="row")]
    if measured:
        args = argparse.Namespace(
            batch=_whole(batch, "batch"), processes=_whole(processes, "processes"),
            samples=_whole(samples, "samples"), plugin=list(plugins),
        )  # fmt: skip
        command._measure(rows, [(factory.name, size) for factory, size in jobs], args)
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

    _named(names)
    numbers = {
        "batch": _whole(batch, "batch"), "processes": _whole(processes, "processes"),
        "samples": _whole(samples, "samples"),
    }  # fmt: skip
    jobs = [(factory.name, size) for factory, size in _jobs(names, img_size)]
    found = latency.columns(jobs, **numbers, plugins=plugins)
    return Table(tuple(
        {
            "backbone": name, "img_size": f"{size[0]}x{size[1]}", "batch": numbers["batch"],
            **{column: row[column] for column in latency.COLUMNS}, "note": row["measured_note"],
        }
        for (name, size), row in zip(jobs, found, strict=True)
    ))  # fmt: skip


def sweep(
    *backbones: str, mixers: Sequence[str] = (), over: str = "resolution",
    values: Sequence[int | float | str | Fraction] | None = None, img_size: Size | None = None,
    policy: str | Sequence[str] = "fixed", base_img: Size | None = None, times: float = 1.0,
    dim: int = 96, heads: int = 4,
) -> Table:  # fmt: skip
    """Cost against image size, window size, width or depth, as ``transom sweep``.

    Source: the formulas of the papers are in analysis/counting/paper_formulas.py, each with its
    paper.

    Args:
        backbones: variants or notations of ours.
        mixers: single mixers, such as "pale:size=7", on a grid of image / 4 tokens.
        over: resolution, size, width or depth.
        values: pixels, sizes, or factors such as 0.5; by default as the command has them.
        img_size: pixels, where the resolution is not swept.
        policy: fixed, or scale for groups in proportion to the image; or both.
        base_img: pixels of the image that the stated sizes are for.
        times: the factor of cost at which two series cross.
        dim: channels of a mixer.
        heads: heads of a mixer.

    Returns:
        A row per point; ``extra["exponents"]`` and ``extra["crossings"]`` hold what is fitted, and
        the notes say it in words.

    Raises:
        SpecError: something cannot be read or built.

    Example:
        >>> import transom
        >>> table = transom.sweep(mixers=["window", "full"], values=[56, 112])
        >>> table["tokens"], table["mixing"][:2]
        ([196, 784, 196, 784], [1843968, 7375872])
        >>> [round(fit["mixing"], 3) for fit in table.extra["exponents"]]
        [1.0, 2.0]
    """
    from analysis import sweep as command
    from analysis.counting.report import CONVENTION
    from analysis.counting.scaling import AXES

    policies = [policy] if isinstance(policy, str) else list(policy)
    try:
        factor = read_number(times)
    except ValueError:
        factor = 0.0
    if not 1 <= factor < 1e6:
        raise SpecError(f"times={_shown(times)}: expected a factor from 1")
    for name in policies:
        _one_of(name, ("fixed", "scale"), "policy")
    request = command.read_request(argparse.Namespace(
        backbone=_texts(backbones, "backbones"), mixer=_texts(mixers, "mixers"),
        over=_one_of(over, AXES, "over"), values=None if values is None else list(map(str, values)),
        img_size=_size(img_size), policy=policies, base_img=_size(base_img, "base_img"),
        times=factor, dim=_whole(dim, "dim"), heads=_whole(heads, "heads"),
    ))  # fmt: skip
    answer = command.compute(request)
    return Table(
        tuple(answer.rows), notes=(*answer.sentences, CONVENTION),
        title="Cost of " + ", ".join(series.name for series in request.series),
        extra={
            "convention": CONVENTION, "exponents": answer.fits, "crossings": answer.crossings,
        },
    )  # fmt: skip


def complexity(
    *mixers: str, sizes: Sequence[Size] | None = None, every_option: bool = False, dim: int = 96,
    heads: int = 4, max_memory: int = MEMORY,
) -> Table:  # fmt: skip
    """The papers' complexity formulas beside what mixers execute, as ``transom complexity``.

    Source: analysis/counting/paper_formulas.py, where each formula has its paper.

    Args:
        mixers: with options, such as "pale:size=7"; by default every mixer.
        sizes: grids in tokens, 56 or (height, width); by default 56, and four grids where mixers
            are named or every_option is True.
        every_option: varies each option of every mixer.
        dim: channels.
        heads: heads.
        max_memory: bytes of a real forward beyond which it is refused.

    Returns:
        A row per mixer, grid and, where they differ, even and odd block.

    Raises:
        SpecError: a mixer or a size cannot be read, or a forward needs more memory.

    Example:
        >>> import transom
        >>> table = transom.complexity("full", sizes=[14])
        >>> table["formula"], table["exact"], table["agree"]
        ([14601216], [14601216], [True])
    """
    from analysis import complexity as command
    from attention.catalogue import alternates
    from attention.notation import make_config, parse
    from attention.registry import names
    from transom.progress import bar

    if mixers and every_option:
        raise SpecError("mixers and every_option: choose one of the two")
    several = bool(mixers) or every_option
    grids = [_pair(size, "sizes") for size in sizes or command.SIZES[: None if several else 1]]
    if mixers:
        configs = [parse(text) for text in _texts(mixers, "mixers")]
    elif every_option:
        configs = [config for name in names() for config in command.variations(name)]
    else:
        configs = [make_config(name) for name in names()]
    shape = {"dim": _whole(dim, "dim"), "heads": _whole(heads, "heads"), "max_memory": max_memory}
    for config in configs:
        config.check(dim, heads)
    jobs = [
        (config, h, w, index) for config in configs for h, w in grids
        for index in ((0, 1) if alternates(config) else (0,))
    ]  # fmt: skip
    return Table(
        tuple(
            command.measure(config, h, w, index=index, **shape)
            for config, h, w, index in bar(jobs, unit="row")
        ),
        notes=tuple(command.example()), title="Formulas and counts of mixers", look=command.LOOK,
    )  # fmt: skip


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
        _one_of(name, published.TASKS, "task")
    found = [n if published.of(n) else variants.get(n).spec.name for n in _texts(names, "names")]
    for name in found:
        if not published.of(name):
            raise SpecError(f"{one_line(name)}: no published number of it is held here")
    rows = ledger(command.selected(published.rows(), found, tasks))
    return Table(
        tuple(rows), notes=(command.summary(rows),), title="Published costs", look=command.LOOK
    )


# -- is it right? ----------------------------------------------------------------------------


def check(
    subject: str | nn.Module, *, dim: int | None = None, heads: int = 4, index: int | None = None,
    against: str = "", img_size: Size | None = None, only: str | Sequence[str] | None = None,
) -> Table:  # fmt: skip
    """Properties of a mixer or a network, with a verdict for each, as ``transom check``.

    Source: the properties are in analysis/checking/properties.py.

    Args:
        subject: a mixer's notation, ``my_module:MyMixer``, a backbone, ``timm:NAME``; or a module,
            of which a copy is checked: a `TokenMixer`, a module (b, h, w, dim) to (b, h, w, dim),
            or without dim a network of images.
        dim: channels of a mixer; by default a TokenMixer's own, and 64 for a name.
        heads: heads of a mixer that is named.
        index: 0 or 1, even or odd block of a mixer that is named; by default both.
        against: a registered mixer that the subject must equal.
        img_size: pixels of a network of others, 224 or (height, width).
        only: names of properties; by default all.

    Returns:
        A row per property; ``extra["failed"]`` is the number of those that fail.

    Raises:
        SpecError: the subject or a property is unknown, or the subject cannot be built.

    Example:
        >>> import transom
        >>> table = transom.check("window:size=2", dim=8, heads=2, index=0, only="any size")
        >>> table["verdict"], table.extra
        (['pass'], {'failed': 0})
    """
    from analysis import check as command
    from analysis.checking import subjects

    properties = [only] if isinstance(only, str) else None if only is None else list(only)
    if index not in (None, 0, 1):
        raise SpecError(f"index={_shown(index)}: expected 0 for even blocks or 1 for odd ones")
    width = None if dim is None else _whole(dim, "dim")
    named: list[Named]
    if isinstance(subject, str):
        named = list(subjects.find(
            subject, dim=width or 64, heads=_whole(heads, "heads"), against=against,
            indices=() if index is None else (index,), img_size=_size(img_size),
        ))  # fmt: skip
    else:
        named = [_checked(subject, width, against, _size(img_size))]
    rows = [
        row for title, found in named
        for row in command.rows(title, command.check(found, properties))
    ]  # fmt: skip
    failed = sum(row["verdict"] == "FAIL" for row in rows)
    verdict = f"{failed} of {len(rows)} fail" if failed else f"none of {len(rows)} fails"
    return Table(tuple(rows), notes=(verdict,), title="Properties", extra={"failed": failed})


def _checked(model: nn.Module, dim: int | None, against: str, size: Any) -> Named:
    """A copy of a user's module as a subject: the checks draw its parameters anew."""
    from analysis.checking import subjects
    from attention.mixer import TokenMixer
    from attention.notation import parse
    from backbones.model.backbone import HierarchicalBackbone
    from backbones.specs.writing import to_notation

    factory = _factory(model)
    if isinstance(model, HierarchicalBackbone):
        return subjects._network(to_notation(model.spec), None)  # narrowed, as by its name
    mixer = isinstance(model, TokenMixer)
    dim = dim or (model.dim if isinstance(model, TokenMixer) else None)
    name = type(model).__name__
    try:
        module = copy.deepcopy(model)
        if dim:
            reference = parse(against) if against else None
            heads = getattr(model, "heads", 1)
            return f"{name}, dim {dim}", subjects.mixer(module, dim, heads, reference)
        size = size or factory.img_size
        return f"{name} at {size[0]}x{size[1]}", subjects.network(module, size)
    except SpecError:
        raise
    except Exception as error:  # whatever a user's module raises
        kind = "mixer" if mixer else "module"
        raise SpecError(f"the {kind} {name}: {printable(cause_of(error))}") from None


# -- which ones are there? -------------------------------------------------------------------


def fit(
    spec: str | Mapping[str, Any] | BackboneSpec, *, macs: int | float | str | None = None,
    params: int | float | str | None = None, by: str = "width", img_size: Size | None = None,
) -> Table:  # fmt: skip
    """A backbone scaled to a budget of MACs or parameters, as ``transom fit``.

    Source: the search is that of backbones/fit.py.

    Args:
        spec: a variant, a notation, a .toml file, a dict or a spec.
        macs: the budget in multiply-adds of one image, 4_500_000_000 or "4.5G".
        params: the budget in parameters, 28_000_000 or "28M".
        by: width, depth or mlp.
        img_size: pixels, 224 or (height, width); by default the backbone's own.

    Returns:
        One row: the notation of the nearest backbone, which `create` takes, and its error.

    Raises:
        SpecError: no budget or two are given, or nothing can be built near it.

    Example:
        >>> import transom
        >>> table = transom.fit("swin_t/stages=2", params="3M")
        >>> table["dims"], table["found"]
        (['192 256'], [2939428])
    """
    from backbones import fit as command
    from backbones.model.sizes import stage_sizes, total
    from backbones.specs.notation import parse
    from backbones.specs.writing import to_notation

    if (macs is None) == (params is None):
        raise SpecError("give one budget: macs or params")
    what, value = ("macs", macs) if macs is not None else ("params", params)
    _one_of(by, ("width", "depth", "mlp"), "by")
    stated = parse(spec)
    if size := _size(img_size):
        stated = replace(stated, img_size=size)
    try:
        target = command.amount(str(value))
    except argparse.ArgumentTypeError as error:
        raise SpecError(f"{what}={error}") from None
    command.check_unit(str(value), getattr(total(stage_sizes(stated)), what), what)
    found, cost = command.fit(stated, by=by, **{what: target})
    return Table(({
        "backbone": to_notation(found), "by": by, "budget": f"{what}={target}", "found": cost,
        "error_%": 100 * (cost - target) / target,
        "dims": " ".join(str(stage.dim) for stage in found.stages),
        "heads": " ".join(str(stage.heads) for stage in found.stages),
        "depths": " ".join(str(stage.depth) for stage in found.stages),
        "mlp_ratios": " ".join(f"{stage.mlp_ratio:g}" for stage in found.stages),
    },))  # fmt: skip


def mixers() -> Table:
    """The token mixers and their options, as ``transom mixers``; torch is not imported.

    Source: attention/catalogue.py, whose papers are in the column "source".

    Returns:
        A row per option of a mixer, and one for a mixer without options.

    Example:
        >>> import transom
        >>> table = transom.mixers()
        >>> "pale" in table["mixer"], table.columns
        (True, ('mixer', 'option', 'default', 'allowed', 'doc', 'source'))
    """
    from attention.__main__ import rows

    nothing = {"name": "", "default": "", "allowed": [], "doc": ""}
    return Table(tuple(
        {
            "mixer": row["mixer"], "option": option["name"], "default": option["default"],
            "allowed": " ".join(option["allowed"]), "doc": option["doc"], "source": row["source"],
        }
        for row in rows() for option in row["options"] or [nothing]
    ), title="Token mixers")  # fmt: skip


def variants() -> Table:
    """The named backbones, as ``transom variants``; torch is not imported.

    Source: backbones/specs/variants.py, whose papers are in the column "source".

    Returns:
        A row per variant, with its exact parameters and MACs at its own image size.

    Example:
        >>> import transom
        >>> [row["params"] for row in transom.variants() if row["backbone"] == "swin_t"]
        [28288354]
    """
    from backbones.__main__ import rows

    return Table(tuple(rows()), title="Named backbones")


# -- reading arguments -----------------------------------------------------------------------


def _factory(what: str | nn.Module) -> ModelFactory:
    """The factory of a name, or of a model that is there already."""
    from torch import nn

    from analysis.models import lookup
    from backbones.model.backbone import HierarchicalBackbone

    if isinstance(what, str):
        return lookup.find(what)
    if not isinstance(what, nn.Module):
        raise SpecError(f"{_shown(what)}: expected the name of a model, or a torch module")
    make: Callable[[tuple[int, int]], nn.Module] = lambda size: what  # noqa: E731
    if isinstance(what, HierarchicalBackbone):
        return lookup.ModelFactory(what.spec.name, make, what.spec.img_size, foreign=False)
    config = getattr(what, "pretrained_cfg", None)  # timm's
    stated = config.get("input_size") if isinstance(config, Mapping) else None
    name = f"{type(what).__module__}:{type(what).__qualname__}"
    return lookup.ModelFactory(name, make, tuple(stated[1:]) if stated else (224, 224))


def _jobs(
    what: Sequence[str | nn.Module], img_size: Size | list[Size] | None
) -> list[tuple[ModelFactory, tuple[int, int]]]:
    """Every model at every size, in the order of the command."""
    if not what:
        raise SpecError("name a backbone, such as 'swin_t'")
    factories = [_factory(one) for one in what]
    several = img_size if isinstance(img_size, list) else [img_size]
    sizes = [_size(size) for size in several]
    return [(factory, size or factory.img_size) for factory in factories for size in sizes]


def _named(what: Sequence[Any]) -> None:
    """Refuses models: processes of their own build what they time, by its name."""
    _texts(what, "what is measured")


def _texts(words: Sequence[Any], name: str) -> list[str]:
    if isinstance(words, str):
        words = [words]
    for word in words:
        if not isinstance(word, str):
            raise SpecError(f"{name}: {_shown(word)} is no name")
    return list(words)


def _one_of(word: Any, allowed: Sequence[str], name: str) -> str:
    if word not in allowed:
        raise SpecError(f"{name}={_shown(word)}{nearest(str(word), allowed)}")
    return str(word)


def _size(value: Any, name: str = "img_size") -> tuple[int, int] | None:
    return None if value is None else _pair(value, name)


def _pair(value: Any, name: str) -> tuple[int, int]:
    try:
        return read_size(value)
    except ValueError as error:
        raise SpecError(f"{name}={_shown(value)}: expected {error}") from None


def _whole(value: Any, name: str) -> int:
    try:
        return read_count(value)
    except ValueError as error:
        raise SpecError(f"{name}={_shown(value)}: expected {error}") from None


def _shown(value: Any) -> str:
    return one_line(repr(value))
