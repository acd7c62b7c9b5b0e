"""The Swin paper's Table 5 on this machine: the cost of connecting windows.

    window             no connection: what the others are measured against in the paper
    cyclic shift       roll, mask, roll back (Swin, section 3.2)
    padding            the windows at the edges are filled with masked pads: more windows
    neighbourhood      a window around every query, which borders move inward (NAT)
    flex               the same by FlexAttention, where it runs

Stages are single attention layers at the paper's sizes (window 7, 224 pixels); below them whole
backbones.  Everything of one column runs interleaved.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from analysis.results.measurement import MODES, Measurement
from analysis.results.session import Plan
from backbones.specs.notation import parse
from benchmarks import options
from transom import cli, table
from transom.errors import SpecError
from transom.fields import write

PLUGIN = "benchmarks.neighbours"
METHODS = {
    "window": "window:size={size},shift=false", "cyclic shift": "window:size={size}",
    "padding": "padded:size={size}", "neighbourhood": "neighbourhood:kernel={size}",
    "flex": "flex:kernel={size}",
}  # fmt: skip
BASE = "cyclic shift"
SHOWN = ("ms", "ci", "level", "n", "processes", "MiB")
EVEN = "every second stage"  # of what --quick leaves out
WORDS = ("window", "cyclic", "padding", "neighbourhood", "flex")
EPILOG = """examples:
  python -m benchmarks.shift --quick --no-whole
  python -m benchmarks.shift --backbone swin_t swin_s swin_b --batch 8 --store shift.jsonl --resume

exit code: 0 all were measured, 1 one failed or is invalid, 2 a bad request"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.shift", __doc__, EPILOG)
    add = parser.add_argument
    cli.add_backbones(
        parser, "of windows only (the paper: swin_t swin_s swin_b; default swin_t)", needed=False
    )
    add("--img-size", type=cli.image_size, metavar="SIZE", help="default: the backbone's own")
    add(
        "--method", type=options.listed("method", WORDS), metavar="A,B",
        help=f"of {', '.join(WORDS)} (default: all; with --quick all but flex, which compiles)",
    )  # fmt: skip
    add("--mode", choices=MODES, default="infer", help="default: infer")
    add("--dtype", type=options.dtypes, default=["float32"], help="default: float32")
    add("--batch", type=cli.count_from_one, default=1, help="default: 1 (the paper: 64)")
    add("--no-stages", action="store_true", help="leave out the single layers")
    add("--no-whole", action="store_true", help="leave out the whole backbones")
    options.add_measuring(parser)
    cli.add_output(parser)
    return parser


def groups_of(args: argparse.Namespace) -> list[list[Measurement]]:
    """A group per stage and per backbone.  Raises SpecError."""
    options.settle(args, "method", list(WORDS), list(WORDS[:-1]), "flex")
    methods = [BASE if word == "cyclic" else word for word in args.method]
    groups: list[list[Measurement]] = []
    for name in args.backbone or ["swin_t"]:
        spec = parse(name)
        sizes = [getattr(mixer, "size", None) for s in spec.stages for mixer in s.mixers]
        if None in sizes:
            raise SpecError(f"{name}: every mixer must have windows, such as swin_t's")
        size = args.img_size or spec.img_size
        for dtype in args.dtype:
            shared: dict[str, Any] = {
                "mode": args.mode, "dtype": dtype, "batch": args.batch,
                **options.shared_options(args),
            }  # fmt: skip
            windows = [getattr(stage.mixers[0], "size", (7, 7)) for stage in spec.stages]
            around = {"neighbourhood", "flex"} & set(methods)
            if around and any(h != w or h % 2 == 0 for h, w in windows):
                raise SpecError(
                    f"{name}: a window around a query is square, with an odd side; add --method "
                    "window,cyclic,padding"
                )
            places = zip(spec.stages, windows, spec.grids(size), strict=True)
            for number, (stage, window, grid) in enumerate(places, start=1):
                if args.quick and number % 2 == 0:
                    if not args.no_stages and EVEN not in args.left_out:
                        args.left_out.append(EVEN)
                elif not args.no_stages:
                    groups.append([
                        Measurement(
                            kind="mixer", name=method, size=grid, dim=stage.dim, index=1,
                            heads=stage.heads, what=METHODS[method].format(size=write(window)),
                            **shared,
                        )
                        for method in methods
                    ])  # fmt: skip
            if not args.no_whole:
                groups.append([
                    Measurement(
                        kind="backbone", name=method, size=size, **shared,
                        what="/".join([name, *(
                            f"{i}={METHODS[method].format(size=write(window))}"
                            for i, window in enumerate(windows, start=1)
                        )]),
                    )
                    for method in methods
                ])  # fmt: skip
    return list({str(group): group for group in groups}.values())  # stages that backbones share


def place_of(measurement: Measurement) -> str:
    """The column of a measurement: a stage by its map, or a backbone."""
    if measurement.kind == "mixer":
        return f"{write(measurement.size)} tokens, dim {measurement.dim}"
    return measurement.what.partition("/")[0]


def rows_of(lines: Sequence[Any], *, force: bool) -> list[dict[str, Any]]:
    """A row per method and place; speedup: how many times as fast as the cyclic shift."""
    from analysis.results import reporting, summary

    rows = []
    for line in lines:
        in_group = [x for x in lines if x.group == line.group]
        base = next((x for x in in_group if x.measurement.name == BASE), None)
        row: dict[str, Any] = {
            "place": place_of(line.measurement), "method": line.measurement.name,
            "mode": line.measurement.mode,
            "dtype": line.measurement.dtype, "batch": line.batch,
        }  # fmt: skip
        numbers = reporting.numbers(line)
        row |= {name: numbers[name] for name in SHOWN}
        row |= {"speedup": None, "in a process": None, "verdict": None}
        if base is not None and line is not base:
            found = summary.compare(line, base, force=force)
            row |= reporting.comparison_columns(found)
        rows.append(row | {"note": numbers["note"]})
    return rows


def main(argv: list[str] | None = None) -> int:
    args = options.read(build_parser(), argv)
    cli.load_plugins([*args.plugin, PLUGIN])

    def plan() -> Plan:
        groups = groups_of(args)
        if not groups:
            raise SpecError("--no-stages and --no-whole leave nothing to measure")
        return options.plan_of(args, groups, plugins=[*args.plugin, PLUGIN])

    rows, bad, left_out = options.rows_of(args, plan)

    from analysis.results import reporting, summary

    lines = summary.lines(rows)
    shown = rows_of(lines, force=args.force)
    if args.figure:
        reporting.bars(lines, args.figure, describe=args.describe)
    told = f"{reporting.NOTE}\nthe other: here the {BASE}"
    note = "\n".join([*left_out, told, reporting.machines(lines)])
    cli.emit(table.render(shown, cli.chosen_format(args), note=note), args)
    all_ok = all(line.is_valid for line in lines) and not bad
    return cli.AGREED if all_ok else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
