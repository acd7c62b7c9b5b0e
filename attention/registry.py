"""The registry: a name stands for a config (what to build) and a class (what it computes).

The registry is plain Python; the module of a built-in mixer, which needs torch, is imported when
the first mixer of this name is built.
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
    """Multiply-adds (MACs) of one forward of one image through one mixer.

    Source: the two terms of eq. 1 and 2 of Swin Transformer (arXiv 2103.14030), for projections and
    products between tokens; what the other mixers add is counted from their definitions.

    Args:
        projection: MACs of the linear layers and convolutions that make queries, keys, values
            and the output.
        mixing: MACs of the products between tokens.
        position: MACs of position terms (log-CPB, LePE).
        padding: the part of the total, in MACs, whose token, query or key is a pad.

    Example:
        >>> import attention
        >>> cost = attention.create("full", dim=8, heads=2).cost(4, 4)
        >>> cost
        Cost(projection=4096, mixing=4096, position=0, padding=0)
        >>> cost.total
        8192
    """

    projection: int
    mixing: int
    position: int = 0
    padding: int = 0

    @property
    def total(self) -> int:
        """MACs in all; `padding` is part of them."""
        return self.projection + self.mixing + self.position


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Configuration of a mixer: immutable, hashable, validated on construction.

    A subclass is a frozen, keyword-only dataclass whose fields are the options of its mixer.

    Raises:
        SpecError: for a value that an option does not take.

    Example:
        >>> import attention
        >>> config = attention.parse("window:size=7x14,shift=false")
        >>> config.size, config.options()
        ((7, 14), {'size': (7, 14), 'shift': False})
        >>> str(config)
        'window:size=7x14,shift=false'
    """

    def __post_init__(self) -> None:
        read_fields(self, name_of(type(self)))

    @property
    def alternates(self) -> bool | None:
        """True if odd blocks of a stage differ from even ones; None if the config is silent."""
        return None

    def check(self, dim: int, heads: int) -> None:
        """Validates the width and the number of heads of a mixer with this config.

        Raises:
            SpecError: if no mixer of `dim` channels and `heads` heads can be built.
        """
        if dim % heads:
            raise SpecError(f"{self}: dim {dim} does not divide into {heads} heads")

    def shrink(self, h: int, w: int, rule: str) -> MixerConfig:
        """The config for an (h, w) map, which may be smaller than a group.

        rule: a value of `BackboneSpec.small_maps`.
        """
        return self

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: v for f in fields if (v := getattr(self, f.name)) != f.default}

    def __str__(self) -> str:
        """The notation that `parse` reads: ``pale:size=7x14,scores=cosine``."""
        written = ",".join(f"{key}={write(value)}" for key, value in self.options().items())
        return name_of(type(self)) + (":" + written if written else "")


# -- names -----------------------------------------------------------------------------------

_configs: dict[str, type[MixerConfig]] = {}
_classes: dict[type[MixerConfig], type[TokenMixer]] = {}
_modules: dict[type[MixerConfig], str] = {}  # where the class of a declared config is defined
_sources: dict[str, str] = {}  # a mixer's paper, or the module that added it


def declare(name: str, config: type[MixerConfig], source: str, module: str = "") -> None:
    """Registers the config of a mixer whose class follows when `module` is imported.

    The built-in mixers are declared, because their modules need torch.
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
    """Class decorator: after it, ``name`` builds the decorated TokenMixer.

    Args:
        name: the mixer's name in the notation: letters, digits and _.
        config: the class of its options; every mixer has a config class of its own.

    Returns:
        The decorator, which returns the class unchanged.

    Raises:
        ValueError: if the name is no identifier, or the name or the config is taken.

    Example:
        >>> from dataclasses import dataclass
        >>> import attention, torch
        >>> @dataclass(frozen=True, kw_only=True)
        ... class DoubleConfig(attention.MixerConfig):
        ...     factor: int = 2
        >>> @attention.register("double", config=DoubleConfig)
        ... class Double(attention.TokenMixer):
        ...     def forward(self, x):  # (b, h, w, c) -> (b, h, w, c)
        ...         return self.config.factor * x
        >>> attention.create("double:factor=3", dim=2, heads=1)(torch.ones(1, 1, 1, 2))
        tensor([[[[3., 3.]]]])
    """

    def add(cls: MixerClass) -> MixerClass:
        awaited = _configs.get(name) is config and config not in _classes
        if not (awaited and cls.__module__ == _modules.get(config)):  # no plug-in replaces ours
            declare(name, config, source=cls.__module__)
        _classes[config] = cls
        return cls

    if not name.isidentifier():
        raise ValueError(f"{name!r} cannot be a mixer's name: letters, digits and _ only")
    return add


def names() -> tuple[str, ...]:
    """The name of every registered mixer, installed plug-ins included.

    Returns:
        The names, sorted.

    Example:
        >>> import attention
        >>> {"cosine", "cross", "pale", "window"} <= set(attention.names())
        True
    """
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
            for store, content in zip(stores, before, strict=True):
                store.clear()
                store.update(content)
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
    """The config of mixer ``name``.

    Args:
        name: a registered mixer.
        options: values by option name, each a Python value or its text in the notation.

    Returns:
        An instance of the mixer's config class.

    Raises:
        SpecError: for an unknown name or option, or a value that the option does not take.

    Example:
        >>> import attention
        >>> attention.make_config("window", size="7x14") == attention.parse("window:size=7x14")
        True
    """
    cls = config_class(name)
    allowed = [field.name for field in dataclasses.fields(cls)]
    for key in options:
        if key not in allowed:
            hint = nearest(key, allowed)
            raise SpecError(f"{name}: it has no option {one_line(key)!r}{hint}", key)
    return cls(**options)


def parse(text: str) -> MixerConfig:
    """The config that the notation ``name:option=value,option=value`` describes.

    Args:
        text: the notation; sizes are written height first.

    Returns:
        An instance of the mixer's config class.

    Raises:
        SpecError: for what is not the notation, an unknown name or option, or a value that the
            option does not take; its `token` is the wrong part of the text.

    Example:
        >>> import attention
        >>> attention.parse("pale:size=7x14,scores=cosine").size
        (7, 14)
        >>> attention.parse("window:shift=maybe")
        Traceback (most recent call last):
        transom.errors.SpecError: window: shift='maybe': expected true or false
    """
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
    """Builds the mixer of a config.

    Args:
        config: the mixer's configuration.
        dim: channels c of its maps.
        heads: number of heads; divides dim.
        index: how many earlier blocks of the stage have an equal config; a mixer that alternates
            shifts or shuffles where it is odd.

    Returns:
        A module that maps (b, h, w, dim) to (b, h, w, dim) for any h, w >= 1.

    Raises:
        SpecError: if no mixer of this width and these heads can be built.

    Example:
        >>> import attention
        >>> attention.build(attention.parse("full"), dim=8, heads=2).extra_repr()
        'full, dim=8, heads=2, index=0'
    """
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
    """Builds one mixer, for use in any model.

    Args:
        text: the notation ``name:option=value,option=value``, or a config.
        dim: channels c of its maps.
        heads: number of heads; divides dim.
        index: as in `build`: 0 for an even block, 1 for an odd one, which shifts its windows.

    Returns:
        A module that maps (b, h, w, dim) to (b, h, w, dim) for any h, w >= 1.

    Raises:
        SpecError: for a text that describes no config, or if no mixer of this width and these
            heads can be built.

    Example:
        >>> import attention, torch
        >>> mixer = attention.create("pale:size=7", dim=24, heads=6)
        >>> mixer(torch.zeros(2, 9, 13, 24)).shape
        torch.Size([2, 9, 13, 24])
    """
    config = parse(text) if isinstance(text, str) else text
    return build(config, dim=dim, heads=heads, index=index)
