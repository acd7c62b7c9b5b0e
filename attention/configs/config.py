"""The base class of the mixers' configs, which are plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from attention.configs.registry import name_of
from transom.errors import SpecError
from transom.fields import read_fields, write


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

    @property
    def takes_tokens(self) -> bool:
        """True if the mixer also mixes tokens beside the map, which skip any other mixer."""
        return False

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
