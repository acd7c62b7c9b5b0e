"""The four packages have common names; another distribution may own one of them."""

import importlib.util
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent


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
