"""Package guard: the packages' folder, and a check that no other distribution's package of a
common name (attention, analysis) is imported instead."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
# a package may import those before it in this list
NAMES = ("transom", "attention", "backbones", "analysis", "training", "benchmarks")


def require(*names: str) -> None:
    """Raises ImportError, with both files, where Python finds another distribution's package.

    Args:
        names: of `NAMES`.

    Example:
        >>> from transom import packages
        >>> packages.require("attention", "backbones")
    """
    for name in names:
        ours = HOME / name / "__init__.py"
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != ours:
            raise ImportError(
                f"transom needs its own package {name!r} at {ours}, but Python finds "
                f"{found or 'none'}; uninstall or move the other one, or put "
                f"{HOME} first on the path"
            )


def lazy(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose public names need torch: imported when asked for.

    Args:
        package: its name.
        modules: the module of every such name.

    Returns:
        A function from a name to what the module calls so; it raises AttributeError for others.

    Example:
        >>> from transom import packages
        >>> packages.lazy("mine", {"sqrt": "math"})("sqrt")(4)
        2.0
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get


def digest(names: Sequence[str]) -> str:
    """Twelve hexadecimal digits of all Python files of packages, sub-packages included.

    Example:
        >>> from transom.packages import digest
        >>> len(digest(["transom"]))
        12
    """
    files = sorted(path for name in names for path in (HOME / name).rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]
