"""Token mixers of the window-attention family behind one registry.

    mixer = attention.create("pale:size=7", dim=96, heads=6)   # (b, h, w, 96) -> (b, h, w, 96)

Names, options and errors are plain Python; torch is imported when a mixer is built.
"""

from typing import TYPE_CHECKING

from attention.configs import catalogue as _configs  # noqa: F401  (declares the built-in names)
from attention.configs.config import MixerConfig
from attention.configs.notation import make_config, parse
from attention.configs.registry import names, register
from attention.cost import Cost
from attention.factory import build, create
from transom.errors import SpecError
from transom.fields import option
from transom.packages import lazy

if TYPE_CHECKING:
    from attention.execution.backends import backend
    from attention.execution.dispatch import backend_of
    from attention.mixer import TokenMixer

__all__ = [
    "Cost", "MixerConfig", "SpecError", "TokenMixer", "backend", "backend_of", "build", "create",
    "make_config", "names", "option", "parse", "register",
]  # fmt: skip
__getattr__ = lazy(
    __name__,
    {
        "TokenMixer": "attention.mixer", "backend": "attention.execution.backends",
        "backend_of": "attention.execution.dispatch",
    },
)  # fmt: skip
