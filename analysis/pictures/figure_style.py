"""Style of all figures: colours that print and that the colour-blind can distinguish."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Point(NamedTuple):
    """A named point of a figure, in the units of its axes."""

    label: str
    x: float
    y: float


def described(
    what: str, xlabel: str, ylabel: str, points: Sequence[Point], *, extremes: str = "xy"
) -> str:
    """The alt text of a figure: what it shows, its axes with units, and its extreme points.

    Args:
        what: a sentence on what is drawn.
        xlabel, ylabel: of the axes, with their units.
        points: all that are drawn.
        extremes: the axes whose least and greatest points are named.

    Returns:
        Lines of text.

    Example:
        >>> from analysis.pictures.figure_style import Point, described
        >>> points = [Point("a", 1, 80.0), Point("b", 4, 82.5)]
        >>> print(described("Two models.", "MACs, G", "top-1, %", points, extremes="y"))
        Two models.
        Across: MACs, G. Up: top-1, %.
        top-1, %: least 80 (a), most 82.5 (b).
    """
    lines = [what, f"Across: {xlabel}. Up: {ylabel}."]
    for name, label in (("x", xlabel), ("y", ylabel)):
        if name not in extremes or not points:
            continue
        ordered = sorted(points, key=lambda point: getattr(point, name))
        least, most = (f"{getattr(p, name):.4g} ({p.label})" for p in (ordered[0], ordered[-1]))
        lines.append(f"{label}: least {least}, most {most}.")
    return "\n".join(map(plain, lines))


def save(picture: Figure, out: Path, dpi: int = 130, *, describe: str | None = None) -> None:
    """Writes PNG, SVG or PDF by the ending, as `files.write` does.

    Args:
        picture: the figure.
        out: the file.
        dpi: dots an inch, of PNG.
        describe: alt text, which is written beside the figure, to the file's name and .txt.

    Raises:
        SpecError: for another ending, or a file that cannot be written.
    """
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
    if describe is not None:
        files.write(out.with_name(f"{out.name}.txt"), f"{describe}\n".encode())
