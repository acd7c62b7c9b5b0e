"""Builds a mixer from its config or notation; torch is imported with the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention.configs.config import MixerConfig
from attention.configs.notation import parse
from attention.configs.registry import class_of
from transom.errors import SpecError
from transom.fields import read_count

if TYPE_CHECKING:
    from attention.mixer import TokenMixer


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
    return class_of(type(config))(config, dim=dim, heads=heads, index=index)


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
