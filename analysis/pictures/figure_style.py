"""Style of all figures: colours that print and that the colour-blind can distinguish."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom import files
from transom.errors import SpecError
from transom.table import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito 2008, in an order whose greys differ too.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
INK, FAINT, NOTHING = "#222222", "#bbbbbb", "#f4f4f4"
HEAT = "cividis"  # rises evenly in lightness, also for the colour-blind and in grey print
SIGNED = "PuOr"  # for values around 0
ENDINGS = (".png", ".svg", ".pdf")


def require() -> None:
    """Raises SpecError where matplotlib is not installed; called before anything is computed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise SpecError(
            "pictures need matplotlib, which is not installed: pip install transom[report]"
        ) from None


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches.  Raises SpecError where matplotlib is not installed."""
    require()
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({
        "font.size": 9, "axes.titlesize": 9, "axes.edgecolor": INK, "text.color": INK,
        "legend.frameon": False, "svg.hashsalt": "transom",
    })  # fmt: skip
    return Figure((width, height), layout="constrained", facecolor="white")


def words(text: str) -> str:
    """Text that matplotlib draws as it is: $ is escaped, and a leading _, for which a legend omits
    the label, is preceded by a space."""
    shown = "\n".join(map(plain, text.split("\n"))).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def save(picture: Figure, out: Path, dpi: int = 130) -> None:
    """Writes PNG, SVG or PDF by the ending, as `files.write` does.  Raises SpecError."""
    if out.suffix not in ENDINGS:
        raise SpecError(f"--out {out}: expected a name ending in {', '.join(ENDINGS)}")
    options: dict[str, Any] = {
        ".png": {"pil_kwargs": {"optimize": True}}, ".svg": {"metadata": {"Date": None}},
        ".pdf": {"metadata": {"CreationDate": None}},
    }  # fmt: skip
    drawn = io.BytesIO()
    # without the date the same request writes the same bytes
    picture.savefig(drawn, format=out.suffix[1:], dpi=dpi, **options[out.suffix])
    files.write(out, drawn.getvalue())
