"""The registry: a name stands for a config (what to build) and a class (what it computes).

The registry is plain Python; the module of a built-in mixer, which needs torch, is imported when
the first mixer of this name is built.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

from transom.errors import SpecError, cause_of, nearest, one_line

if TYPE_CHECKING:
    from attention.configs.config import MixerConfig
    from attention.mixer import TokenMixer

    MixerClass = TypeVar("MixerClass", bound=type[TokenMixer])


log = logging.getLogger("transom")

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
            reason = cause_of(error, named=True)
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


def class_of(config: type[MixerConfig]) -> type[TokenMixer]:
    """The class of a config's mixer; the module of a declared one is imported for it."""
    if config not in _classes:
        importlib.import_module(_modules[config])
    return _classes[config]
