"""Package guard: the packages' folder, and a check that no other distribution's package of a
common name (attention, analysis) is imported instead."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
# a package may import those before it in this list
NAMES = ("transom", "attention", "backbones", "analysis", "benchmarks")


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


def digest(names: Sequence[str]) -> str:
    """Twelve hexadecimal digits of all Python files of packages, sub-packages included.

    Example:
        >>> from transom.packages import digest
        >>> len(digest(["transom"]))
        12
    """
    files = sorted(path for name in names for path in (HOME / name).rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]
