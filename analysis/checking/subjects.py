"""Candidates by name: registered mixers, modules of the user's, our backbones, peers' networks."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import backbones
from analysis.checking.judging import RAISED, Candidate, Size, said
from analysis.checking.locality import states_region
from analysis.models import lookup
from analysis.models.influence import influence, randomise, some_tokens, span
from attention import TokenMixer, catalogue
from attention.registry import MixerConfig, build, make_config, name_of, names, parse
from transom import cli
from transom.errors import SpecError, nearest, one_line

LARGEST_GROUP = 24  # maps are made for windows up to it: the largest that was published
LARGE = (41, 38)  # holds two windows of 19, and what only small maps hide
SMALL_IMAGES: list[Size] = [(1, 1), (33, 47), (64, 96)]

Named = tuple[str, Candidate]  # with a title


def find(
    what: str, *, dim: int, heads: int, indices: tuple[int, ...] = (), against: str = "",
    img_size: Size | None = None,
) -> Iterator[Named]:  # fmt: skip
    """indices: of the blocks, or () for both where they differ.  Raises SpecError."""
    head, colon, _ = what.partition(":")
    twin = parse(against) if against else None
    if head in names() and "/" not in what:
        with _asked(what):
            config = parse(what)
            config.check(dim, heads)
        both = (0,) if catalogue.alternates(config) is False else (0, 1)
        for index in indices or both:
            with _asked(what):
                ours = build(config, dim=dim, heads=heads, index=index)
                candidate = mixer(ours, dim, heads, twin)
            yield _title(what, dim, heads, index), candidate
    elif not colon and difflib.get_close_matches(what, names(), n=1):
        parse(what)  # a mixer misspelt: the error says which
    elif not colon or "/" in what or head in ("timm", "torchvision"):
        yield _network(what, img_size)
    else:
        with _asked(what):
            made, options = _load(what)
            taken = _taken(made)
        if not taken:
            yield _network(what, img_size)
            return
        for index in (indices or (0, 1)) if "index" in taken else (0,):
            with _asked(what):
                module = _make(made, what, options, taken, dim=dim, heads=heads, index=index)
                candidate = mixer(module, dim, heads, twin)
            yield _title(what, dim, heads, index), candidate


@contextlib.contextmanager
def _asked(what: str) -> Iterator[None]:
    """Whatever code of the user's raises before there is a module to judge is a bad request."""
    try:
        yield
    except (SpecError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise SpecError(f"{one_line(what)}: {said(error)}") from None


def _title(what: str, dim: int, heads: int, index: int) -> str:
    return f"{what}, dim {dim}, heads {heads}, {'odd' if index else 'even'} block"


# -- mixers ----------------------------------------------------------------------------------


def map_sizes(groups: Size) -> list[Size]:
    """Below, at and beyond one group and two, divided by it and not, small to large."""
    h, w = (min(side, LARGEST_GROUP) for side in groups)
    sizes = {
        (1, 1), (1, w + 2), (3, 2), (h, w), (h + 1, w), (h, w + 3), (2 * h, w + 1),
        (2 * h, 2 * w), (2 * h + 2, 2 * w + 1),
    }  # fmt: skip
    return sorted(sizes, key=lambda size: (size[0] * size[1], size))


def _groups(size: Any) -> Size | None:
    """A plug-in's `size` may be anything; a side or a pair of sides is taken for its windows."""
    pair = (size, size) if isinstance(size, int) else size
    whole = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
    return pair if whole and min(pair) > 0 else None


def _tile(c: Candidate) -> Size:
    """Rows and columns of the largest box that reaches a token, as it is stated or else measured;
    0 along an axis on which it grows with the map."""
    h, w = size = (2 * LARGE[0], 2 * LARGE[1]) if c.region else LARGE
    queries = some_tokens(h, w, 9)
    try:
        if c.region:
            reach = torch.stack([c.region(h, w, query) for query in queries])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reach = influence(c.module, c.input(size, dtype=torch.float32), queries)
        rows, cols = (max(sides) for sides in zip(*map(span, reach), strict=True))
    except RAISED:  # which is for the properties to say
        return 0, 0
    return rows if 2 * rows <= h else 0, cols if 2 * cols <= w else 0


def mixer(
    module: nn.Module, dim: int, heads: int = 1, against: MixerConfig | None = None
) -> Candidate:
    """A mixer to be judged: its parameters drawn anew, its region and its twin found.

    The twin is the registered mixer of `against` or of its own config.
    """
    randomise(module)
    own = getattr(module, "config", None)
    claimed = against or (own if isinstance(own, MixerConfig) else None)
    groups = _groups(getattr(claimed, "size", None))
    made = Candidate(module, dim, [], groups=groups)
    if states_region(module):
        made.region = module.region  # type: ignore[assignment]
    tile = _tile(made)
    declared = groups or (7, 7)
    made.sizes = map_sizes((max(declared[0], tile[0]), max(declared[1], tile[1])))
    made.large = [(max(LARGE[0], 2 * tile[0]), max(LARGE[1], 2 * tile[1]))]
    if claimed is None or name_of(type(claimed)) not in names():
        return made
    index = getattr(module, "index", 0)
    twin = build(claimed, dim=dim, heads=getattr(module, "heads", heads), index=index).eval()
    if type(twin) is type(module):
        return replace(made, unlike="it is the registered mixer")
    made.region = made.region or (twin.region if states_region(twin) else None)
    try:
        twin.load_state_dict(module.state_dict())
        made.reference = twin
    except RuntimeError as error:
        made.unlike = f"not the parameters of {claimed}: {' '.join(str(error).split())[:120]}"
    return made


def _load(what: str) -> tuple[Any, str]:
    """(the attribute, options) of ``my_module:Attribute:options``."""
    module, _, rest = what.partition(":")
    attribute, _, options = rest.partition(":")
    if not module.replace(".", "").isidentifier():
        raise SpecError(f"{one_line(what)}: no mixer or module is called {one_line(module)!r}")
    cli.load_plugins([module])
    made = getattr(sys.modules[module], attribute, None)
    if not callable(made):
        public = [key for key in dir(sys.modules[module]) if not key.startswith("_")]
        hint = nearest(attribute, map(one_line, public))
        raise SpecError(f"{one_line(what)}: {module} has no {one_line(attribute)!r}{hint}")
    return made, options


def _is_mixer(made: Any) -> bool:
    return isinstance(made, type) and issubclass(made, TokenMixer)


def _taken(made: Any) -> list[str]:
    """The parameters that it may be given; none for what makes a whole network."""
    if _is_mixer(made):
        return ["config", "dim", "heads", "index"]
    parameters = inspect.signature(made).parameters.values()
    return [
        p.name for p in parameters
        if p.name in ("dim", "heads", "num_heads", "index") or p.default is p.empty
    ]  # fmt: skip


def _make(
    made: Any, what: str, options: str, taken: list[str], *, dim: int, heads: int, index: int
) -> nn.Module:
    given: dict[str, Any] = {"dim": dim, "heads": heads, "num_heads": heads, "index": index}
    if _is_mixer(made):
        given["config"] = _config(made, what, options)
        given["config"].check(dim, heads)
    elif options:
        unused = f"options such as {one_line(options)!r}"
        raise SpecError(f"{one_line(what)}: {unused} are for a TokenMixer class")
    try:
        if "dim" in taken:
            module = made(**{key: given[key] for key in taken if key in given})
        else:
            module = made(*(dim, heads)[: len(taken)])
    except TypeError as error:
        how = f"it is called with (dim, heads) or (dim): {said(error)}"
        raise SpecError(f"{one_line(what)}: {how}") from None
    if not isinstance(module, nn.Module):
        raise SpecError(f"{one_line(what)}: it made a {type(module).__name__}, not a Module")
    return module


def _config(made: Any, what: str, options: str) -> MixerConfig:
    """The config of the registered mixer that it is, or is derived from."""
    for cls in made.__mro__[: made.__mro__.index(TokenMixer)]:
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


def _network(what: str, img_size: Size | None) -> Named:
    with _asked(what):
        subject = lookup.find(what)
        if subject.foreign:
            size = img_size or subject.img_size
            return f"{what} at {size[0]}x{size[1]}", network(subject.make(size), size)
        spec = small(backbones.parse(what))
        model = randomise(backbones.create(spec))
    dims = " ".join(str(stage.dim) for stage in spec.stages)
    depths = " ".join(str(stage.depth) for stage in spec.stages)
    made = Candidate(model, spec.in_channels, SMALL_IMAGES, network=True)
    title = f"{what}, narrowed to widths {dims} and depths {depths}, images to 64x96"
    return title, made


def network(model: nn.Module, size: Size) -> Candidate:
    """A network of others: its parameters drawn anew."""
    return Candidate(randomise(model), 3, [size], network=True, foreign=True)


def small(spec: backbones.BackboneSpec) -> backbones.BackboneSpec:
    """The same mixers, heads and parts on 8 channels a head, each mixer twice at most: what goes
    wrong in a network does so at any width."""
    spec = spec.resolve()
    stages = tuple(
        replace(stage, dim=8 * stage.heads, depth=min(stage.depth, 2 * len(stage.mixers)))
        for stage in spec.stages
    )
    return replace(spec, stages=stages, num_classes=min(spec.num_classes, 10))
