"""The notation of mixers, ``name:option=value,option=value``, read into configs."""

from __future__ import annotations

import dataclasses
from typing import Any

from attention.configs.config import MixerConfig
from attention.configs.registry import config_class
from transom.errors import SpecError, nearest, one_line


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
