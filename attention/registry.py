"""The registry: a name stands for a config (what to build) and a class (what it does).

Everything here and in `configs` is plain Python: a misspelt name is answered before torch is
imported.  The module of a built-in mixer is imported when the first one is built.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from attention.mixer import TokenMixer

    MixerClass = TypeVar("MixerClass", bound=type[TokenMixer])


class SpecError(ValueError):
    """A request that cannot be built: one line with the place, the value and the way out."""


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


def nearest(word: str, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'? (a, b, c)``: the tail of every error about an unknown name."""
    allowed = list(allowed)
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} (one of: {', '.join(allowed)})"


# -- options ---------------------------------------------------------------------------------

LARGEST = 2**16  # no side, width or depth beyond this is a model; a typo is


def read_count(value: Any) -> int:
    """A whole number from 1 to 65536, from an int or its digits."""
    digits = isinstance(value, str) and value.isdecimal() and len(value) < 20
    number = int(value) if digits else value
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= LARGEST:
        raise ValueError(f"a whole number from 1 to {LARGEST}")
    return number


def read_size(value: Any) -> tuple[int, int]:
    """``7``, ``"7"``, ``"7x14"`` or ``(7, 14)``, height first, as ``(height, width)``."""
    parts = value.split("x") if isinstance(value, str) else value
    if isinstance(parts, int):
        parts = [parts]
    if isinstance(parts, (list, tuple)) and 1 <= len(parts) <= 2:
        try:
            return read_count(parts[0]), read_count(parts[-1])
        except ValueError:
            pass
    raise ValueError(f"7 or 7x14, height first, each from 1 to {LARGEST}")


def read_flag(value: Any) -> bool:
    known = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def read_number(value: Any) -> float:
    """A finite number, from a number or its text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def choice(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value in allowed:
            return str(value)
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"one of {', '.join(allowed)}{hint}")

    read.allowed = allowed  # type: ignore[attr-defined]  # for listings
    return read


def optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read_optional(value: Any) -> Any:
        return None if value is None or value == "none" else read(value)

    return read_optional


def option(default: Any, read: Callable[[Any], Any], doc: str) -> Any:
    """A dataclass field that knows how to read its value and what it means."""
    return dataclasses.field(default=default, metadata={"read": read, "doc": doc})


_READERS: dict[type, Callable[[Any], Any]] = {
    bool: read_flag, int: read_count, float: read_number, str: read_text, tuple: read_size,
}  # fmt: skip


def read_fields(instance: Any, place: str) -> None:
    """Reads every field of a frozen dataclass in place, so that equal values are equal text.

    A field without a reader of its own is read by the type of its default.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        read = field.metadata.get("read") or _READERS.get(type(field.default))
        if read is None:
            continue
        try:
            object.__setattr__(instance, field.name, read(value))
        except SpecError:
            raise  # a nested spec has said already what is wrong with it
        except ValueError as error:
            shown = repr(value)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            raise SpecError(f"{place}: {field.name}={shown}: expected {error}") from None


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """What a mixer is told: hashable, validated as it is written, known by its registered name.

    A subclass lists its options as fields; an option that a mixer does not use does not exist.
    """

    def __post_init__(self) -> None:
        read_fields(self, name_of(type(self)))

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


def write(value: Any) -> str:
    """The text that reads back as this value."""
    if isinstance(value, tuple):
        return str(value[0]) if value[0] == value[-1] else "x".join(map(str, value))
    if isinstance(value, float):
        text = f"{value:g}" if float(f"{value:g}") == value else repr(value)
        return text.replace("e+", "e")  # a + parts the mixers of a pattern
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


# -- names -----------------------------------------------------------------------------------

_configs: dict[str, type[MixerConfig]] = {}
_classes: dict[type[MixerConfig], type[TokenMixer]] = {}
_sources: dict[str, str] = {}  # where a mixer comes from: a paper, or the module that added it


def declare(name: str, config: type[MixerConfig], source: str) -> None:
    """Makes a name known before its class is: the built-in mixers, whose modules need torch."""
    if name in _configs:
        raise ValueError(f"a mixer called {name!r} is registered already ({_sources[name]})")
    if config in _configs.values():
        raise ValueError(f"{config.__name__} belongs to {name_of(config)!r}; subclass it")
    _configs[name] = config
    _sources[name] = source


def register(name: str, *, config: type[MixerConfig]) -> Callable[[MixerClass], MixerClass]:
    """Class decorator: ``name`` builds this TokenMixer from this config.

    Raises ValueError if the name or the config is taken.
    """

    def add(cls: MixerClass) -> MixerClass:
        awaited = _configs.get(name) is config and config not in _classes
        if not (awaited and cls.__module__ == f"attention.{name}"):  # a plug-in never stands in
            declare(name, config, source=cls.__module__)
        _classes[config] = cls
        return cls

    if not name.isidentifier():
        raise ValueError(f"{name!r} cannot be a mixer's name: letters, digits and _ only")
    return add


def names() -> tuple[str, ...]:
    """Every registered mixer, sorted."""
    return tuple(sorted(_configs))


def name_of(config: type[MixerConfig]) -> str:
    return next((name for name, known in _configs.items() if known is config), config.__name__)


def source_of(name: str) -> str:
    return _sources[name]


def config_class(name: str) -> type[MixerConfig]:
    if name not in _configs:
        raise SpecError(f"no mixer is called {name!r}{nearest(name, names())}")
    return _configs[name]


def make_config(name: str, **options: Any) -> MixerConfig:
    """The config of mixer ``name``; options as values or as their text.  Raises SpecError."""
    cls = config_class(name)
    allowed = [field.name for field in dataclasses.fields(cls)]
    for key in options:
        if key not in allowed:
            raise SpecError(f"{name}: it has no option {key!r}{nearest(key, allowed)}")
    return cls(**options)


def parse(text: str) -> MixerConfig:
    """A config from the notation ``name:option=value,option=value``.  Raises SpecError."""
    name, colon, rest = text.partition(":")
    config_class(name)
    options: dict[str, str] = {}
    for item in rest.split(",") if colon else ():
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise SpecError(f"{name}: {item!r} in {text!r} is not option=value")
        if key in options:
            raise SpecError(f"{name}: option {key!r} is given twice in {text!r}")
        options[key] = value
    return make_config(name, **options)


def build(config: MixerConfig, *, dim: int, heads: int, index: int = 0) -> TokenMixer:
    """The mixer of this config.  ``index``: how many earlier blocks of its stage have an equal
    config; what alternates (the shift, the shuffle) reads it.  Raises SpecError."""
    dim, heads = _count("dim", dim), _count("heads", heads)
    config.check(dim, heads)
    if type(config) not in _classes:
        importlib.import_module(f"attention.{name_of(type(config))}")
    return _classes[type(config)](config, dim=dim, heads=heads, index=index)


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
