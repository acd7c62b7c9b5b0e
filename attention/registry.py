"""The registry: a name stands for a config (what to build) and a class (what it does).

Plain Python, as `configs` is; the module of a built-in mixer is imported when the first one is
built.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from transom.errors import SpecError, nearest, one_line
from transom.fields import read_count, read_fields, write

if TYPE_CHECKING:
    from attention.mixer import TokenMixer

    MixerClass = TypeVar("MixerClass", bound=type[TokenMixer])


log = logging.getLogger("transom")


class Cost(NamedTuple):
    """Multiply-adds (MACs) of one forward of one image.

    ``total = projection + mixing + position``; ``padding`` is the share of the total whose
    token, query or key is a pad.
    """

    projection: int
    mixing: int
    position: int = 0
    padding: int = 0

    @property
    def total(self) -> int:
        return self.projection + self.mixing + self.position


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """What a mixer is told: hashable, validated as it is written, known by its registered name.

    A subclass lists its options as fields; an option that a mixer does not use does not exist.
    """

    def __post_init__(self) -> None:
        read_fields(self, name_of(type(self)))

    @property
    def alternates(self) -> bool | None:
        """Whether odd blocks differ from even ones, if the config says so; None: it does not."""
        return None

    def check(self, dim: int, heads: int) -> None:
        """Raises SpecError if a mixer of this width and these heads cannot be built."""
        if dim % heads:
            raise SpecError(f"{self}: dim {dim} does not divide into {heads} heads")

    def shrink(self, h: int, w: int, rule: str) -> MixerConfig:
        """This config on a map of (h, w) that it may outgrow; `rule` as BackboneSpec.small_maps."""
        return self

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: v for f in fields if (v := getattr(self, f.name)) != f.default}

    def __str__(self) -> str:
        """The notation that makes this config: ``pale:size=7x14,scores=cosine``."""
        written = ",".join(f"{key}={write(value)}" for key, value in self.options().items())
        return name_of(type(self)) + (":" + written if written else "")


# -- names -----------------------------------------------------------------------------------

_configs: dict[str, type[MixerConfig]] = {}
_classes: dict[type[MixerConfig], type[TokenMixer]] = {}
_modules: dict[type[MixerConfig], str] = {}  # where the class of a declared config is defined
_sources: dict[str, str] = {}  # where a mixer comes from: a paper, or the module that added it


def declare(name: str, config: type[MixerConfig], source: str, module: str = "") -> None:
    """Makes a name known before its class is: the built-in mixers, whose modules need torch.

    module: the one that registers the class when it is imported.
    """
    if name in _configs:
        raise ValueError(f"a mixer called {name!r} is registered already ({_sources[name]})")
    if config in _configs.values():
        raise ValueError(f"{config.__name__} belongs to {name_of(config)!r}; subclass it")
    _configs[name] = config
    _sources[name] = source
    if module:
        _modules[config] = module


def register(name: str, *, config: type[MixerConfig]) -> Callable[[MixerClass], MixerClass]:
    """Class decorator: ``name`` builds this TokenMixer from this config.

    Raises ValueError if the name or the config is taken.
    """

    def add(cls: MixerClass) -> MixerClass:
        awaited = _configs.get(name) is config and config not in _classes
        if not (awaited and cls.__module__ == _modules.get(config)):  # a plug-in never stands in
            declare(name, config, source=cls.__module__)
        _classes[config] = cls
        return cls

    if not name.isidentifier():
        raise ValueError(f"{name!r} cannot be a mixer's name: letters, digits and _ only")
    return add


def names() -> tuple[str, ...]:
    """Every registered mixer, installed plug-ins included, sorted."""
    discover()
    return tuple(sorted(_configs))


ENTRY_POINTS = "transom.mixers"
_failed: dict[str, str] = {}  # plug-ins that could not be imported, and why


@functools.cache
def discover() -> None:
    """Imports the modules that installed distributions offer under `ENTRY_POINTS`, once.

    One that fails, or takes a name that is taken, disables only itself, with a line of warning.
    """
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        stores: tuple[dict[Any, Any], ...] = (_configs, _sources, _classes, _modules)
        before = [dict(store) for store in stores]
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # whatever their code raises
            for store, kept in zip(stores, before, strict=True):
                store.clear()
                store.update(kept)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if entry.name not in _configs:
                _failed[entry.name] = reason
            log.warning("transom: the plug-in %s (%s) is off: %s", entry.name, entry.value, reason)


def name_of(config: type[MixerConfig]) -> str:
    return next((name for name, known in _configs.items() if known is config), config.__name__)


def source_of(name: str) -> str:
    return _sources[name]


def config_class(name: str) -> type[MixerConfig]:
    if name not in _configs:
        discover()
    if name in _failed:
        raise SpecError(f"the plug-in {name!r} cannot be used: {_failed[name]}", name)
    if name not in _configs:
        hint = nearest(name, names())
        raise SpecError(f"no mixer is called {one_line(name)!r}{hint}", name)
    return _configs[name]


def make_config(name: str, **options: Any) -> MixerConfig:
    """The config of mixer ``name``; options as values or as their text.  Raises SpecError."""
    cls = config_class(name)
    allowed = [field.name for field in dataclasses.fields(cls)]
    for key in options:
        if key not in allowed:
            hint = nearest(key, allowed)
            raise SpecError(f"{name}: it has no option {one_line(key)!r}{hint}", key)
    return cls(**options)


def parse(text: str) -> MixerConfig:
    """A config from the notation ``name:option=value,option=value``.  Raises SpecError."""
    name, colon, rest = text.partition(":")
    config_class(name)
    options: dict[str, str] = {}
    for item in rest.split(",") if colon else ():
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            what = f"{one_line(item)!r} in {one_line(text)!r}"
            raise SpecError(f"{name}: {what} is not option=value", item or text)
        if key in options:
            what = f"option {one_line(key)!r} is given twice in {one_line(text)!r}"
            raise SpecError(f"{name}: {what}", item)
        options[key] = value
    return make_config(name, **options)


def build(config: MixerConfig, *, dim: int, heads: int, index: int = 0) -> TokenMixer:
    """The mixer of this config.  ``index``: how many earlier blocks of its stage have an equal
    config; what alternates (the shift, the shuffle) reads it.  Raises SpecError."""
    dim, heads = _count("dim", dim), _count("heads", heads)
    config.check(dim, heads)
    if type(config) not in _classes:
        import_class(type(config))
    return _classes[type(config)](config, dim=dim, heads=heads, index=index)


def import_class(config: type[MixerConfig]) -> None:
    """Imports the module that registers the class of a declared config."""
    importlib.import_module(_modules[config])


def _count(name: str, value: int) -> int:
    try:
        return read_count(value)
    except ValueError as error:
        raise SpecError(f"{name}={value!r}: expected {error}") from None


def create(text: str | MixerConfig, *, dim: int, heads: int, index: int = 0) -> TokenMixer:
    """One mixer for use anywhere: ``create("pale:size=7", dim=96, heads=6)``.

    It maps (b, h, w, dim) to (b, h, w, dim) for any h, w >= 1.  Raises SpecError.
    """
    config = parse(text) if isinstance(text, str) else text
    return build(config, dim=dim, heads=heads, index=index)
