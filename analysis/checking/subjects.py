"""Subjects by name: registered mixers, a user's modules, our backbones, foreign networks."""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import backbones
from analysis.checking.beside import Beside, takes_tokens
from analysis.checking.checks import MODULE_ERRORS, Size, Subject, error_text
from analysis.checking.locality import states_region
from analysis.models import lookup
from analysis.models.influence import influence, randomise, sample_tokens, span
from attention import TokenMixer
from attention.configs import catalogue
from attention.configs.config import MixerConfig
from attention.configs.notation import make_config, parse
from attention.configs.registry import name_of, names
from attention.factory import build
from backbones.specs import variants
from transom import cli
from transom.errors import SpecError, cause_of, nearest, one_line

LARGEST_GROUP = 24  # side of the largest published window; maps are not sized for larger ones
LARGE = (41, 38)  # holds two windows of 19, and shows errors that small maps do not
SMALL_IMAGES: list[Size] = [(1, 1), (33, 47), (64, 96)]

TOKENS = ", tokens beside the map"  # in a title

Named = tuple[str, Subject]  # with a title


def find(
    what: str, *, dim: int, heads: int, indices: tuple[int, ...] = (), against: str = "",
    img_size: Size | None = None,
) -> Iterator[Named]:  # fmt: skip
    """Subjects behind a name, with their titles.

    Args:
        what: a mixer with options, ``module:attribute:options``, a backbone or a foreign network.
        dim: channels of a mixer.
        heads: heads of a mixer.
        indices: block indices, or () for even and odd where they differ.
        against: a registered mixer that a module must equal.
        img_size: (height, width) in pixels of a foreign network.

    Raises:
        SpecError: for an unknown name, or code of the user's that fails before there is a module.
    """
    head, colon, _ = what.partition(":")
    reference = parse(against) if against else None
    if head in names() and "/" not in what:
        with _user_code(what):
            config = parse(what)
            config.check(dim, heads)
        both = (0,) if catalogue.alternates(config) is False else (0, 1)
        for index in indices or both:
            with _user_code(what):
                module: nn.Module = build(config, dim=dim, heads=heads, index=index)
                subject = mixer(module, dim, heads, reference)
                beside = with_tokens(module, dim)
            title = _title(what, dim, heads, index)
            yield title, subject
            yield from ((title + TOKENS, made) for made in beside)
    elif not (colon or variants.known(what)) and difflib.get_close_matches(what, names(), n=1):
        parse(what)  # a misspelt mixer: its error names the nearest
    elif not colon or "/" in what or head in ("timm", "torchvision"):
        yield named_network(what, img_size)
    else:
        with _user_code(what):
            factory, options = _load(what)
            parameters = _parameters_of(factory)
        if not parameters:
            yield named_network(what, img_size)
            return
        for index in (indices or (0, 1)) if "index" in parameters else (0,):
            with _user_code(what):
                module = _make(
                    factory, what, options, parameters, dim=dim, heads=heads, index=index
                )
                subject = mixer(module, dim, heads, reference)
                beside = with_tokens(module, dim)
            title = _title(what, dim, heads, index)
            yield title, subject
            yield from ((title + TOKENS, made) for made in beside)


@contextlib.contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Turns whatever a user's code raises before there is a module into a SpecError."""
    try:
        yield
    except (SpecError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise SpecError(f"{one_line(what)}: {error_text(error)}") from None


def _title(what: str, dim: int, heads: int, index: int) -> str:
    return f"{what}, dim {dim}, heads {heads}, {'odd' if index else 'even'} block"


# -- mixers ----------------------------------------------------------------------------------


def map_sizes(groups: Size) -> list[Size]:
    """Map sizes below, at and beyond one and two groups, divisible and not, small to large."""
    h, w = (min(side, LARGEST_GROUP) for side in groups)
    sizes = {
        (1, 1), (1, w + 2), (3, 2), (h, w), (h + 1, w), (h, w + 3), (2 * h, w + 1),
        (2 * h, 2 * w), (2 * h + 2, 2 * w + 1),
    }  # fmt: skip
    return sorted(sizes, key=lambda size: (size[0] * size[1], size))


def _groups(size: Any) -> Size | None:
    """Window sides (gh, gw) from a plug-in's `size`, which may be anything; None if no sides."""
    pair = (size, size) if isinstance(size, int) else size
    is_pair = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
    return pair if is_pair and min(pair) > 0 else None


def _tile(c: Subject) -> Size:
    """Rows and columns of the largest box that influences a token, by the stated region or else
    measured; 0 along an axis on which the box grows with the map."""
    h, w = size = (2 * LARGE[0], 2 * LARGE[1]) if c.region else LARGE
    queries = sample_tokens(h, w, 9)
    try:
        if c.region:
            reach = torch.stack([c.region(h, w, query) for query in queries])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reach = influence(c.module, c.input(size, dtype=torch.float32), queries)
        rows, cols = (max(sides) for sides in zip(*map(span, reach), strict=True))
    except MODULE_ERRORS:  # the properties report it
        return 0, 0
    return rows if 2 * rows <= h else 0, cols if 2 * cols <= w else 0


def mixer(
    module: nn.Module, dim: int, heads: int = 1, against: MixerConfig | None = None
) -> Subject:
    """A mixer as a subject: randomises its parameters, finds its region and its reference.

    The reference is the registered mixer of `against`, or else of the module's config.
    """
    randomise(module)
    config = getattr(module, "config", None)
    claimed = against or (config if isinstance(config, MixerConfig) else None)
    groups = _groups(getattr(claimed, "size", None))
    subject = Subject(module, dim, [], groups=groups)
    if states_region(module):
        subject.region = module.region  # type: ignore[assignment]
    tile = _tile(subject)
    declared = groups or (7, 7)
    subject.sizes = map_sizes((max(declared[0], tile[0]), max(declared[1], tile[1])))
    subject.large = [(max(LARGE[0], 2 * tile[0]), max(LARGE[1], 2 * tile[1]))]
    if claimed is None or name_of(type(claimed)) not in names():
        return subject
    index = getattr(module, "index", 0)
    reference = build(claimed, dim=dim, heads=getattr(module, "heads", heads), index=index).eval()
    if type(reference) is type(module):
        return replace(subject, no_reference="it is the registered mixer")
    subject.region = subject.region or (reference.region if states_region(reference) else None)
    try:
        reference.load_state_dict(module.state_dict())
        subject.reference = reference
    except RuntimeError as error:
        reason = cause_of(error)[:120]
        subject.no_reference = f"not the parameters of {claimed}: {reason}"
    return subject


def with_tokens(module: nn.Module, dim: int) -> list[Subject]:
    """A mixer with tokens beside its map as another subject, if it takes some."""
    if not takes_tokens(module):
        return []
    made = mixer(Beside(copy.deepcopy(module)), dim)
    return [replace(made, no_reference="it is compared on its map alone")]


def _load(what: str) -> tuple[Any, str]:
    """(class or callable, options) of ``my_module:Attribute:options``."""
    module, _, rest = what.partition(":")
    attribute, _, options = rest.partition(":")
    if not module.replace(".", "").isidentifier():
        raise SpecError(f"{one_line(what)}: no mixer or module is called {one_line(module)!r}")
    cli.load_plugins([module])
    factory = getattr(sys.modules[module], attribute, None)
    if not callable(factory):
        public = [key for key in dir(sys.modules[module]) if not key.startswith("_")]
        hint = nearest(attribute, map(one_line, public))
        raise SpecError(f"{one_line(what)}: {module} has no {one_line(attribute)!r}{hint}")
    return factory, options


def _is_mixer(factory: Any) -> bool:
    return isinstance(factory, type) and issubclass(factory, TokenMixer)


def _parameters_of(factory: Any) -> list[str]:
    """Names of the parameters that a mixer factory is called with; [] for a network factory."""
    if _is_mixer(factory):
        return ["config", "dim", "heads", "index"]
    parameters = inspect.signature(factory).parameters.values()
    return [
        p.name for p in parameters
        if p.name in ("dim", "heads", "num_heads", "index") or p.default is p.empty
    ]  # fmt: skip


def _make(
    factory: Any, what: str, options: str, parameters: list[str], *, dim: int, heads: int,
    index: int,
) -> nn.Module:  # fmt: skip
    arguments: dict[str, Any] = {"dim": dim, "heads": heads, "num_heads": heads, "index": index}
    if _is_mixer(factory):
        arguments["config"] = _config(factory, what, options)
        arguments["config"].check(dim, heads)
    elif options:
        unused = f"options such as {one_line(options)!r}"
        raise SpecError(f"{one_line(what)}: {unused} are for a TokenMixer class")
    try:
        if "dim" in parameters:
            module = factory(**{key: arguments[key] for key in parameters if key in arguments})
        else:
            module = factory(*(dim, heads)[: len(parameters)])
    except TypeError as error:
        how = f"it is called with (dim, heads) or (dim): {error_text(error)}"
        raise SpecError(f"{one_line(what)}: {how}") from None
    if not isinstance(module, nn.Module):
        raise SpecError(f"{one_line(what)}: it made a {type(module).__name__}, not a Module")
    return module


def _config(factory: Any, what: str, options: str) -> MixerConfig:
    """The config of the registered mixer that a class is, or is derived from."""
    for cls in factory.__mro__[: factory.__mro__.index(TokenMixer)]:
        for name in names():
            try:
                with torch.device("meta"):
                    known = type(build(make_config(name), dim=8, heads=2))
            except SpecError:
                continue
            if known is cls:
                return parse(f"{name}:{options}" if options else name)
    why = "neither it nor a base of it is registered, so it has no config"
    raise SpecError(f"{one_line(what)}: {why}")


# -- networks --------------------------------------------------------------------------------


def named_network(what: str, img_size: Size | None) -> Named:
    with _user_code(what):
        factory = lookup.find(what)
        if factory.foreign:
            size = img_size or factory.img_size
            return f"{what} at {size[0]}x{size[1]}", network(factory.make(size), size)
        spec = small(backbones.parse(what))
        model = randomise(backbones.create(spec))
    dims = " ".join(str(stage.dim) for stage in spec.stages)
    depths = " ".join(str(stage.depth) for stage in spec.stages)
    subject = Subject(model, spec.in_channels, SMALL_IMAGES, network=True)
    title = f"{what}, narrowed to widths {dims} and depths {depths}, images to 64x96"
    return title, subject


def network(model: nn.Module, size: Size) -> Subject:
    """A foreign network as a subject, with random parameters."""
    return Subject(randomise(model), 3, [size], network=True, foreign=True)


def small(spec: backbones.BackboneSpec) -> backbones.BackboneSpec:
    """The spec narrowed to 8 channels a head and each mixer twice at most: errors of a network do
    not depend on its width."""
    spec = spec.resolve()
    stages = tuple(
        replace(stage, dim=_narrow(stage), depth=min(stage.depth, 2 * len(stage.mixers)))
        for stage in spec.stages
    )
    return replace(spec, stages=stages, num_classes=min(spec.num_classes, 10))


def _narrow(stage: backbones.StageSpec) -> int:
    """8 channels a head; messengers exchange equal parts of them all."""
    region = stage.messenger.region if stage.messenger else 1
    return math.lcm(8 * stage.heads, region**2)
