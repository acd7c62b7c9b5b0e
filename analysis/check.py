"""Checks a mixer or a network against a suite of properties, with a verdict for each.

WHAT is one of
  pale:size=7                a registered mixer
  my_module:MyMixer          a TokenMixer class, or a callable (dim, heads) or (dim) that makes a
                             module (b, h, w, c) -> (b, h, w, c); with options of its config:
                             my_module:MyMixer:size=4,shift=false
  swin_t/3=pale              a backbone: its blocks at 8 channels a head, on small images
  timm:NAME torchvision:NAME a network of others at its own size or --img-size, and so is a
                             callable without arguments; the reach of its first blocks is measured

Even and odd blocks of a mixer are checked, unless its config says that they are alike
(`alternates = False`).  A subclass of a registered mixer, or one with its config, is also compared
with it on the same parameters; --against names another one.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from transom import cli, table
from transom.errors import SpecError, nearest
from transom.progress import Bar

if TYPE_CHECKING:
    from analysis.checking.checks import Property, Result, Subject

EPILOG = """examples:
  python -m analysis.check window:size=7
  python -m analysis.check my_mixers:Pool --dim 96 --heads 3
  python -m analysis.check my_module:MyWindows --against window:size=8
  python -m analysis.check timm:swin_tiny_patch4_window7_224 --img-size 256 --only locality

verdicts: pass; FAIL, with the smallest case; measured, where nothing is promised; skipped, and why
exit code: 0 nothing fails, 1 something does, 2 the request cannot be answered"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("analysis.check", __doc__, EPILOG)
    add = parser.add_argument
    add("what", metavar="WHAT", help="a mixer, a backbone, or a module of your own")
    add("--dim", type=cli.count_from_one, default=64, help="channels (default 64)")
    add("--heads", type=cli.count_from_one, default=4, help="heads (default 4)")
    add("--index", type=int, choices=(0, 1), help="even or odd block; default: both")
    add("--against", default="", metavar="MIXER", help="a registered mixer that WHAT must equal")
    add("--img-size", type=cli.image_size, metavar="SIZE", help="of a network of others")
    add("--only", nargs="+", metavar="PROPERTY", help="these properties instead of all")
    add("--json", action="store_const", const="json", dest="format", help="--format json")
    cli.add_output(parser)
    return parser


def check(subject: Subject, only: list[str] | None = None) -> list[tuple[Property, Result]]:
    """Checks a subject against its suite, or the properties named in `only`.  Raises SpecError."""
    from analysis.checking import properties

    suite = properties.NETWORK if subject.network else properties.MIXER
    known = [prop.name for prop in suite]
    for name in only or ():
        if name not in known:
            raise SpecError(f"--only: no property is called {name!r}{nearest(name, known)}")
    wanted = [prop for prop in suite if not only or prop.name in only]
    return [(prop, prop.check(subject)) for prop in Bar(wanted, unit="property")]


def rows(title: str, results: list[tuple[Property, Result]]) -> list[dict[str, Any]]:
    """A row per property; names and messages of foreign code are printable text in all formats."""
    return [
        {
            "candidate": table.plain(title), "property": prop.name, "verdict": result.verdict,
            "case": table.plain(result.case), "detail": _plain_lines(result.detail),
            "picture": _plain_lines(result.picture), "meaning": prop.meaning,
        }
        for prop, result in results
    ]  # fmt: skip


def _plain_lines(text: str) -> str:
    return "\n".join(table.plain(line) for line in text.split("\n"))


def listing(found: list[dict[str, Any]]) -> str:
    """Text: a subject, then a line per property, with details below a failure."""
    lines: list[str] = []
    title = None
    for row in found:
        if row["candidate"] != title:
            title = row["candidate"]
            lines += ["", title] if lines else [title]
        case = f"at {row['case']}: " if row["case"] else ""
        first, *more = (case + row["detail"]).splitlines() or [""]
        lines.append(f"  {row['verdict']:9}{row['property']:29}{first}")
        lines += [f"  {'':38}{line}" for line in more]
        if row["verdict"] == "FAIL":
            lines.append(f"  {'':9}what must hold: {row['meaning']}")
        if row["picture"]:
            key = "Q query, # reaches it, ! reaches it and may not, ? may and does not"
            lines += [f"  {'':9}{line}" for line in (key, *row["picture"].splitlines())]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    from analysis.checking import subjects

    indices = () if args.index is None else (args.index,)
    result_rows = [
        row
        for title, subject in subjects.find(
            args.what, dim=args.dim, heads=args.heads, indices=indices, against=args.against,
            img_size=args.img_size,
        )
        for row in rows(title, check(subject, args.only))
    ]  # fmt: skip
    failed = sum(row["verdict"] == "FAIL" for row in result_rows)
    style = cli.chosen_format(args)
    if style == "table":
        count = len(result_rows)
        verdict = f"{failed} of {count} fail" if failed else f"none of {count} fails"
        text = f"{listing(result_rows)}\n\n{verdict}"
    elif style == "json":
        text = table.as_json({"failed": failed, "rows": result_rows})
    else:
        text = table.render(result_rows, style)
    cli.emit(text, args)
    return cli.DIFFER if failed else cli.AGREED


if __name__ == "__main__":
    cli.run(main)
