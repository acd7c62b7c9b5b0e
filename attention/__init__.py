"""Token mixers of the window-attention family behind one registry.

    mixer = attention.create("pale:size=7", dim=96, heads=6)   # (b, h, w, 96) -> (b, h, w, 96)

Names, options and errors are plain Python; torch is imported when a mixer is built.
"""

import importlib
from typing import TYPE_CHECKING, Any

from attention import catalogue as _configs  # noqa: F401  (declares the built-in names)
from attention.registry import Cost, MixerConfig, build, create, make_config, names, parse, register
from transom.errors import SpecError
from transom.fields import option

if TYPE_CHECKING:
    from attention.execution.backends import backend
    from attention.execution.dispatch import backend_of
    from attention.mixer import TokenMixer

__all__ = [
    "Cost", "MixerConfig", "SpecError", "TokenMixer", "backend", "backend_of", "build", "create",
    "make_config", "names", "option", "parse", "register",
]  # fmt: skip
_NEED_TORCH = {
    "TokenMixer": "attention.mixer", "backend": "attention.execution.backends",
    "backend_of": "attention.execution.dispatch",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module 'attention' has no attribute {name!r}")
