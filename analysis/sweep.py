"""Cost against resolution, window size, width or depth: points, exponents, crossings, a figure.

Every point is counted by the models' formulas and by torch on the meta device; nothing is run.

  mixing       MACs between tokens: scores and weighted values, or a token matrix
  total        all MACs        padding %  the share of them whose token, query or key is a pad
  memory       activations alive together in a plain forward of one image, scores in full
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from analysis.counting import crossings, scaling
from analysis.counting.scaling import Number, Row, Series
from analysis.pictures import draw_curves, figure_style
from attention.configs.notation import parse as parse_mixer
from backbones.specs.notation import parse as parse_backbone
from backbones.specs.stage import StageSpec
from transom import cli, files, table
from transom.errors import SpecError
from transom.fields import read_count

EPILOG = """examples:
  python -m analysis.sweep --backbone swin_t pale_t full_t --figure cost.svg
  python -m analysis.sweep --mixer window full --values 14 28 56 112 224 448
  python -m analysis.sweep --mixer window full --times 2
  python -m analysis.sweep --backbone swin_t --policy fixed scale
  python -m analysis.sweep --backbone swin_t cswin_t --over size --img-size 512
  python -m analysis.sweep --backbone swin_t --over depth --values 0.5 1 2 --format csv

table and md show points, exponents and crossings, json has them in full, csv the points alone

exit code: 0 every point agrees, 1 a point does not, 2 the request cannot be answered"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("analysis.sweep", __doc__, EPILOG)
    add = parser.add_argument
    cli.add_backbones(parser, "whole backbones of ours, in our notation", needed=False)
    add(
        "--mixer", nargs="+", action="extend", default=[], metavar="MIXER",
        help="single mixers, such as pale:size=7, on a grid of image / 4 tokens",
    )  # fmt: skip
    add("--dim", type=cli.count_from_one, default=96, help="channels of a mixer (default 96)")
    add("--heads", type=cli.count_from_one, default=4, help="heads of a mixer (default 4)")
    add("--over", choices=scaling.AXES, default="resolution", help="default: resolution")
    add(
        "--values", nargs="+", metavar="N",
        help="pixels (default 224 448 ... 2016 2048), sizes (default 4 to 28), or factors such as "
        "0.5 or 2/3 (default: what can be built of 0.5 to 2 for width, 0.5 to 3 for depth)",
    )  # fmt: skip
    add(
        "--img-size", type=cli.image_size, metavar="SIZE",
        help="pixels, where they are not swept (default: the first backbone's own, or 224)",
    )  # fmt: skip
    add(
        "--policy", nargs="+", choices=("fixed", "scale"), default=["fixed"],
        help="windows, stripes and pales as stated, or in proportion to the image; or both",
    )  # fmt: skip
    add(
        "--base-img", type=cli.image_size, metavar="SIZE",
        help="image that the stated sizes are for (default: the backbone's own, or 224)",
    )  # fmt: skip
    add(
        "--times", type=_times, default=1.0, metavar="X",
        help="look for where one costs X times the other (default 1)",
    )  # fmt: skip
    add("--figure", action=files.OutFile, metavar="FILE", help="also draw it: .svg, .png or .pdf")
    figure_style.add_describe(parser)
    cli.add_output(parser)
    return parser


def _times(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a factor from 1")
    return value


# -- the request -----------------------------------------------------------------------------


class Request(NamedTuple):
    """What is swept: the values of the axis `over` for every series.

    img_size: (height, width) in pixels, where the resolution is not swept.  times: factor of cost
    at which two series cross.
    """

    series: list[Series]
    over: str
    values: dict[Series, list[Number]]
    img_size: tuple[int, int]
    times: float


def series_of(args: argparse.Namespace) -> list[Series]:
    """A series per backbone and mixer, or per policy; torch is not imported.  Raises SpecError."""
    stated = []
    for text in args.backbone:
        spec = parse_backbone(text)
        stated.append(Series(text, spec, base=args.base_img or spec.img_size))
    for text in args.mixer:
        block = StageSpec(dim=args.dim, depth=1, heads=args.heads, mixers=(parse_mixer(text),))
        stated.append(Series(text, block, base=args.base_img or (224, 224)))
    names = [series.name for series in stated]
    if not stated:
        raise SpecError("nothing to sweep: give a --backbone or a --mixer")
    if twice := [name for name in names if names.count(name) > 1]:
        raise SpecError(f"{twice[0]!r} is given twice")
    if args.over == "resolution" and args.img_size:
        raise SpecError("--img-size: the image is what is swept; use --values")
    if args.over != "resolution" and (args.policy != ["fixed"] or args.base_img):
        raise SpecError(f"--policy and --base-img are for --over resolution, not {args.over}")
    if (args.over == "size" or "scale" in args.policy) and not any(s.sizes for s in stated):
        raise SpecError(f"{', '.join(names)}: no window, stripe or pale whose size could change")
    by_policy: list[Series] = []
    for series in stated:
        for policy in dict.fromkeys(args.policy if series.sizes else ["fixed"]):
            scaled = policy == "scale"
            name = f"{series.name} (scale)" if scaled else series.name
            by_policy.append(replace(series, name=name, scale=scaled))
    return by_policy


def _read_factor(text: str) -> Fraction:
    try:
        factor = Fraction(text) if len(text) < 20 else Fraction(0)
    except (ValueError, ZeroDivisionError):
        factor = Fraction(0)
    if not Fraction(1, 100) <= factor <= 100:
        raise ValueError("a factor from 0.01 to 100, such as 1.5 or 2/3")
    return factor


def values_of(texts: Sequence[str] | None, over: str) -> list[Number] | None:
    """The distinct values of --values in rising order, or None.  Raises SpecError."""
    values: set[Number] = set()
    for text in texts or ():
        try:
            values.add(read_count(text) if over in scaling.SQUARE else _read_factor(text))
        except ValueError as error:
            raise SpecError(f"--values {text}: expected {error}") from None
    return sorted(values) or None


def read_request(args: argparse.Namespace) -> Request:
    """The request of a command line.  Raises SpecError for what cannot be built, before a count."""
    series, over = series_of(args), args.over
    stated = values_of(args.values, over)
    img_size = args.img_size or series[0].base
    values = {line: stated or scaling.default_values(line, over, img_size) for line in series}
    for line in series:
        for value in values[line]:
            line.at(over, value, img_size)
    return Request(series, over, values, img_size, args.times)


# -- the answer ------------------------------------------------------------------------------


class Answer(NamedTuple):
    """Rows of points, of fitted exponents and of crossings, with a sentence per crossing."""

    rows: list[Row]
    fits: list[Row]
    crossings: list[Row]
    sentences: list[str]

    @property
    def disagreeing(self) -> int:
        """Number of points at which formula and torch differ."""
        return sum(not row["agree"] for row in self.rows)


def readable(row: Row) -> Row:
    """A row of the table: billions of MACs, MiB."""
    return {
        "series": row["series"], row["over"]: row["value"], "tokens": row["tokens"],
        "dim": row["dim"], "size": row["size"], "mixing, G": row["mixing"] / 1e9,
        "total, G": row["macs_formula"] / 1e9, "torch, G": row["macs_torch"] / 1e9,
        "padding %": row["padding_%"], "memory, MiB": row["peak_bytes"] / 2**20,
        "agree": row["agree"],
    }  # fmt: skip


def readable_fit(fit: Row) -> Row:
    """A row of the table of exponents."""
    return {
        "series": fit["series"], f"mixing ~ {fit['against']}^": fit["mixing"],
        f"total ~ {fit['against']}^": fit["total"], "fitted to": fit["fitted"],
    }  # fmt: skip


def compute(request: Request) -> Answer:
    """Counts every point, fits every series and compares every pair of series."""
    from transom.progress import Bar

    series, over, img_size = request.series, request.over, request.img_size
    points = [(line, value) for line in series for value in request.values[line]]
    rows = [
        scaling.row_of(line, over, value, img_size) for line, value in Bar(points, unit="point")
    ]
    fits = [scaling.exponents([r for r in rows if r["series"] == line.name]) for line in series]
    crossing_rows, sentences = [], []
    for left, right in Bar([*itertools.combinations(series, 2)], unit="pair"):
        shared = sorted(set(request.values[left]) & set(request.values[right]))
        if shared:
            row = crossings.crossing(left, right, over, shared, img_size, request.times)
            crossing_rows.append(row)
            sentences.append(crossings.sentence(row, over, shared))
    return Answer(rows, fits, crossing_rows, sentences)


def render(answer: Answer, style: str) -> str:
    """The answer as text: json has it in full, csv the points alone."""
    from analysis.counting.report import CONVENTION

    if style == "json":
        return table.as_json({
            "convention": CONVENTION, "rows": answer.rows, "exponents": answer.fits,
            "crossings": answer.crossings,
        })  # fmt: skip
    if style == "csv":
        return table.csv(answer.rows)
    count, bad = len(answer.rows), answer.disagreeing
    verdict = f"{count} points: " + (
        f"{bad} do not agree" if bad else "formula and torch agree at every one"
    )
    bullet = "- " if style == "md" else ""
    lines = [bullet + table.cell(line, style) for line in answer.sentences]
    return "\n\n".join([
        table.grid([readable(row) for row in answer.rows], style),
        table.grid([readable_fit(fit) for fit in answer.fits], style),
        "\n".join([*lines, verdict]),
        CONVENTION,
    ])  # fmt: skip


# -- command ---------------------------------------------------------------------------------


def save_figure(answer: Answer, over: str, path: Path, *, describe: bool = False) -> None:
    """Writes the figure, and with `describe` its text beside it.  Raises SpecError."""
    import matplotlib

    text = draw_curves.described(answer.rows, answer.fits, answer.sentences, over)

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text that can be searched
        picture = draw_curves.draw(
            answer.rows, answer.fits, answer.crossings, answer.sentences, over
        )
        figure_style.save(picture, path, describe=text if describe else None)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    figure_style.check(args)
    request = read_request(args)
    answer = compute(request)
    text = render(answer, cli.chosen_format(args))
    if args.figure:
        save_figure(answer, args.over, args.figure, describe=args.describe)
    cli.emit(text, args)
    return cli.DIFFER if answer.disagreeing else cli.AGREED


if __name__ == "__main__":
    cli.run(main)
