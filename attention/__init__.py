"""Token mixers of the window-attention family behind one registry.

    mixer = attention.create("pale:size=7", dim=96, heads=6)   # (b, h, w, 96) -> (b, h, w, 96)

Names, options and errors are plain Python; torch is imported when a mixer is built.
"""

from typing import TYPE_CHECKING, Any

from attention import configs as _configs  # noqa: F401  (declares the built-in names)
from attention.options import SpecError, option
from attention.registry import Cost, MixerConfig, build, create, make_config, names, parse, register

if TYPE_CHECKING:
    from attention.mixer import TokenMixer

__all__ = [
    "Cost", "MixerConfig", "SpecError", "TokenMixer", "build", "create", "make_config", "names",
    "option", "parse", "register",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "TokenMixer":  # the one name here that needs torch
        from attention.mixer import TokenMixer

        return TokenMixer
    raise AttributeError(f"module 'attention' has no attribute {name!r}")
