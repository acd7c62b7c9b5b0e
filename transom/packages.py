"""Where the packages stand, and that they are ours: their names are common, and another
distribution may own one of them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
# each may import those before it
NAMES = ("transom", "attention", "backbones", "analysis", "benchmarks")


def require(*names: str) -> None:
    """Raises ImportError with both files if a sibling package is somebody else's."""
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
    """Twelve hexadecimal digits of every line of code in these packages, folders inside included.

    Example:
        >>> len(digest(["transom"]))
        12
    """
    files = sorted(path for name in names for path in (HOME / name).rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]
