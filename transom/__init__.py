"""The front door, and the base of all packages: errors, options, command lines, tables, pages.

    import transom

    transom.count("swin_t/3=pale")                      # parameters and MACs, counted three ways
    transom.compare("swin_t", "cswin_t").to_frame()     # what the command prints, for pandas

A public name is imported when it is asked for: no module here imports torch or knows of attention.
"""

from typing import Any as _Any

from transom.packages import lazy as _lazy

__all__ = [
    "SpecError", "Table", "audit", "check", "compare", "complexity", "count", "create", "fit",
    "load_weights", "measure", "mixers", "sweep", "variants",
]  # fmt: skip

_public = _lazy(__name__, {
    "SpecError": "transom.errors", "Table": "transom.answer", "create": "backbones.factory",
    "check": "analysis.facade.checks",
    **dict.fromkeys(("audit", "compare", "count", "measure"), "analysis.facade.costs"),
    **dict.fromkeys(("complexity", "sweep"), "analysis.facade.scaling"),
    **dict.fromkeys(("fit", "mixers", "variants"), "analysis.facade.choices"),
})  # fmt: skip
_load = _lazy(__name__, {"load": "backbones.weights.loading"})


def __getattr__(name: str) -> _Any:
    return _load("load") if name == "load_weights" else _public(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
