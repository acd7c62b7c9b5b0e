"""Style of all figures: colours that print and that the colour-blind can distinguish."""

from __future__ import annotations

import argparse
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


def add_describe(to: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the option --describe of all commands that draw."""
    to.add_argument(
        "--describe", action="store_true",
        help="beside the figure FILE also FILE.txt: what is drawn, in words",
    )  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """Refuses --figure and --describe that cannot be carried out, before any work.

    Raises:
        SpecError: there is nothing to describe, no figure ends so, or matplotlib is missing.
    """
    if args.describe and not args.figure:
        raise SpecError("--describe: puts the figure into words; add --figure FILE")
    if not args.figure:
        return
    check_ending(args.figure, "--figure")
    require()


def check_ending(out: Path, option: str = "--out") -> None:
    """Raises SpecError for a file whose ending is that of no figure."""
    if out.suffix not in ENDINGS:
        raise SpecError(f"{option} {out}: expected a name ending in {', '.join(ENDINGS)}")


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


def in_words(picture: Figure, what: str) -> str:
    """The alt text of a figure of panels: what it shows, and the words that stand on it.

    Args:
        picture: the figure.
        what: a sentence on what is drawn.

    Returns:
        Lines of text: the heading, the sentence, panels, axes, colours and legends.
    """
    parts = [picture, *picture.subfigs]
    headings = [
        _drawn(str(text.get_label() or text.get_text()))
        for text in picture.texts
        if text.get_text() == picture.get_suptitle()
    ]
    panels = []
    more = [_drawn(part.get_suptitle()) for part in picture.subfigs if part.get_suptitle()]
    legends = [legend for part in parts for legend in part.legends]
    for axes in (axes for axes in picture.axes if axes.get_visible()):
        title, across, up = map(_drawn, (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))
        if axes.get_label() == "<colorbar>":
            more.append(f"Colours: {up}.")
        elif up:
            more.append(f"Curves. Across: {across}. Up: {up}.")
        else:
            text = "" if _squeezed(across) in _squeezed(what) else across
            panels.append(": ".join(filter(None, (title, text))))
        legends += filter(None, [axes.get_legend()])
    for part in parts:
        across, up = _drawn(part.get_supxlabel()), _drawn(part.get_supylabel())
        more += [f"Panels. Across: {across}. Up: {up}."] if up else []
    more += [
        f"Legend: {'; '.join(_drawn(text.get_text()) for text in legend.get_texts())}."
        for legend in legends
    ]
    new = [heading for heading in headings if _squeezed(heading) not in _squeezed(what)]
    return "\n".join(map(plain, [*new, what, f"Panels: {'; '.join(panels)}.", *more]))


def _drawn(text: str) -> str:
    """What `words` was made of, in one line."""
    return " ".join(text.replace(r"\$", "$").split())


def _squeezed(text: str) -> str:
    """What two ways of breaking a text into lines have in common."""
    return "".join(c for c in text if c not in " ,;")


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
    check_ending(out)
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
