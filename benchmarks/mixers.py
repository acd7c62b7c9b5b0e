"""Every mixer alone, over grids: time, memory, MACs a second, and how time grows with the tokens.

Beside the exponent of the time stands the exponent that the MACs predict on these grids.  All
mixers on all grids run interleaved in every process, so that drift of the machine cancels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

from analysis.results.measurement import MODES, Measurement
from analysis.results.session import Plan
from attention.configs import registry
from benchmarks import options
from transom import cli, table
from transom.errors import SpecError
from transom.fields import write

GRIDS = [(side, side) for side in (56, 112, 168, 224)]
QUICK_GRIDS = [(28, 28), (56, 56)]
EPILOG = """examples:
  python -m benchmarks.mixers --quick --grid 28 56
  python -m benchmarks.mixers --mixer window cross pale --mode train --store mixers.jsonl --resume
  python -m benchmarks.mixers --table mixers.jsonl --figure growth.svg

exit code: 0 all were measured, 1 one failed or is invalid, 2 a bad request"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.mixers", __doc__, EPILOG)
    add = parser.add_argument
    add("--mixer", nargs="+", metavar="MIXER", help="such as pale:size=7 (default: all built in)")
    add(
        "--grid", nargs="+", type=cli.image_size, metavar="SIZE",
        help="tokens, 56 or 56x112 (default 56 112 168 224: images of 224 to 896 pixels; with "
        "--quick 28 56)",
    )  # fmt: skip
    add("--dim", type=cli.count_from_one, default=96, help="channels (default 96)")
    add("--heads", type=cli.count_from_one, default=4, help="heads (default 4)")
    add("--index", type=int, choices=(0, 1), default=1, help="1: shifted, shuffled (default)")
    add("--mode", choices=MODES, default="infer", help="default: infer")
    add("--dtype", type=options.dtypes, default=["float32"], help="default: float32")
    add("--compile", action="store_true", help="torch.compile of each mixer")
    add("--batch", type=cli.count_from_one, default=1, help="maps in a batch (default 1)")
    add(
        "--max-macs", type=float, default=50.0, metavar="G",
        help="leave out what takes more MACs than this, in billions, and say so (default 50)",
    )  # fmt: skip
    options.add_measuring(parser)
    cli.add_output(parser)
    return parser


def groups_of(args: argparse.Namespace) -> tuple[list[list[Measurement]], list[str]]:
    """(groups of measurements, a line per mixer and grid left out).  Raises SpecError."""
    import attention

    options.settle(args, "grid", GRIDS, QUICK_GRIDS, "grids over 56")
    plain = ("window", "cosine", "shuffle", "cross", "pale", "axial", "token_mlp", "full")
    names = args.mixer or [name for name in plain if name in registry.names()]
    models = {name: attention.create(name, dim=args.dim, heads=args.heads) for name in names}
    groups, left_out = [], []
    for dtype in args.dtype:
        mixer_runs, shapes = [], []
        for grid in args.grid:
            rows = min(args.batch * grid[0] * grid[1], 2**15)
            shapes.append(f"{rows}x{args.dim}x{3 * args.dim}")
            for name, model in models.items():
                try:
                    giga = model.cost(*grid).total * args.batch / 1e9
                except NotImplementedError:
                    raise SpecError(f"{name} states no cost; its growth cannot be judged") from None
                if giga > args.max_macs:
                    what = f"{name} on {write(grid)}: {giga:,.0f} G"
                    left_out.append(f"left out, over --max-macs: {what}")
                    continue
                mixer_runs.append(Measurement(
                    kind="mixer", what=name, mode=args.mode, dtype=dtype, compile=args.compile,
                    batch=args.batch, size=grid, dim=args.dim, heads=args.heads, index=args.index,
                    **options.shared_options(args),
                ))  # fmt: skip
        if mixer_runs:
            groups.append([*mixer_runs, *options.share_of_peak(args, dtype, shapes)])
    return groups, left_out


def growth_rows(lines: Sequence[Any]) -> list[dict[str, Any]]:
    """A row per mixer and dtype: the exponent of the time, fitted in each process, and that of the
    MACs on these grids."""
    from analysis.counting.scaling import exponent

    rows = []
    for key in dict.fromkeys((x.measurement.what, x.measurement.dtype) for x in lines):
        usable_lines = [
            x for x in lines
            if (x.measurement.what, x.measurement.dtype) == key and x.usable and x.macs is not None
        ]  # fmt: skip
        tokens = [x.measurement.size[0] * x.measurement.size[1] for x in usable_lines]
        shared = set.intersection(*(set(x.times) for x in usable_lines)) if usable_lines else set()
        fits = sorted(
            fit for p in shared
            if (fit := exponent(tokens, [median(x.times[p]) for x in usable_lines])) is not None
        )  # fmt: skip
        predicted = exponent(tokens, [x.macs for x in usable_lines]) if usable_lines else None
        row: dict[str, Any] = {"mixer": key[0], "dtype": key[1], "grids": len(usable_lines)}
        if fits and predicted is not None:
            middle = median(fits)
            row |= {
                "time ~ tokens^": middle, "from": fits[0], "to": fits[-1],
                "processes": len(fits), "MACs ~ tokens^": predicted,
                "difference": middle - predicted,
            }  # fmt: skip
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    args = options.read(build_parser(), argv)
    cli.load_plugins(args.plugin)
    left_out: list[str] = []

    def plan() -> Plan:
        groups, missing = groups_of(args)
        left_out.extend(missing)
        if not groups:
            raise SpecError("; ".join(left_out))
        return options.plan_of(args, groups, plugins=args.plugin)

    rows, bad, quick = options.rows_of(args, plan)

    from analysis.results import reporting, summary

    lines = summary.lines(rows)
    shown = []
    for line in lines:
        measurement = line.measurement
        row: dict[str, Any] = {"mixer": measurement.what, "grid": write(measurement.size)}
        row |= {"mode": measurement.mode}
        row |= {"dtype": measurement.dtype, "compile": line.compiled, "batch": line.batch}
        numbers = reporting.numbers(line)
        del numbers["img/s"]
        s, note = line.summary, numbers.pop("note")
        rate = line.macs * line.batch / s.median / 1e9 if s and line.macs else None
        shown.append(row | {"MMACs": line.macs and line.macs / 1e6} | numbers
                     | {"GMAC/s": rate, "note": note})  # fmt: skip
    fits = growth_rows(lines)
    if args.figure:
        reporting.growth(lines, args.figure, describe=args.describe)
    note = "\n".join([*quick, *left_out, reporting.NOTE, reporting.machines(lines)])
    style = cli.chosen_format(args)
    if style == "json":
        text = table.as_json({"convention": note, "rows": shown, "exponents": fits})
    elif style == "csv":
        text = table.csv(shown)
    else:
        text = table.render(shown, style) + "\n\n" + table.render(fits, style, note=note)
    cli.emit(text, args)
    all_ok = all(line.is_valid for line in lines) and not bad
    return cli.AGREED if all_ok else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
