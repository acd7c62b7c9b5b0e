"""The effect of each piece of the CPU backend: each is switched off alone.

Ours with all pieces, without one piece after another, by the reference backend, and timm with
our weights, interleaved in one process: inference, training, compiled inference, peak memory.
"""

from __future__ import annotations

import argparse
from typing import Any

from analysis.results.measurement import Measurement
from analysis.results.session import Plan
from benchmarks import options
from transom import cli, table

MODELS = ("swin_t", "swinv2_t_w8", "cswin_t", "pale_t")
MODES = ("infer", "train", "compile")
NOTE = """\
ms: least of all rounds
x: time without the piece over time with it, least over least: above 1 it pays
memory: the same of the most that a step holds"""
EPILOG = """examples:
  python -m benchmarks.ablation --backbone swin_t --mode infer --batch 8 --samples 7
  python -m benchmarks.ablation --store ablation.jsonl --resume
  python -m benchmarks.ablation --table benchmarks/results/*/ablation/*.jsonl --format md

exit code: 0 all were measured, 1 one failed or is invalid, 2 a bad request"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.ablation", __doc__, EPILOG)
    add = parser.add_argument
    default = f"default {' '.join(MODELS)}; with --quick the first"
    cli.add_backbones(parser, f"our notation ({default})", needed=False)
    add(
        "--mode", type=options.listed("mode", MODES), metavar="A,B",
        help="infer, train, compile: compiled inference (default all; with --quick infer)",
    )  # fmt: skip
    add(
        "--batch", type=options.counts, metavar="1,8", help="default: 1,8; with --quick 1"
    )  # fmt: skip
    options.add_measuring(parser)
    cli.add_output(parser)
    return parser


def groups_of(args: argparse.Namespace) -> list[list[Measurement]]:
    """A group for every model, mode and batch: ours first.  Raises SpecError."""
    from analysis.models.counterparts import has_counterpart
    from analysis.timing.pieces import USED_IN
    from backbones.specs.notation import parse

    options.settle(args, "backbone", MODELS, MODELS[:1], f"{len(MODELS) - 1} of the backbones")
    options.settle(args, "mode", MODES, MODES[:1], f"modes {' and '.join(MODES[1:])}")
    options.settle(args, "batch", (1, 8), (1,), "batch 8")
    groups = []
    for mode in args.mode:
        for name in args.backbone:
            spec = parse(name)
            for batch in args.batch:
                shared: dict[str, Any] = {
                    "what": name, "size": spec.img_size, "batch": batch,
                    "mode": "train" if mode == "train" else "infer", "compile": mode == "compile",
                    **options.shared_options(args),
                }  # fmt: skip
                ours = {"kind": "backbone", **shared}
                group = [Measurement(**ours)]
                for piece, modes in USED_IN.items():
                    if mode in modes:
                        by = "cpu" if mode == "infer" else "auto"
                        group.append(Measurement(without=piece, backend=by, **ours))
                if mode != "compile":
                    names = ("cpu", "reference") if mode == "infer" else ("reference",)
                    group += [Measurement(backend=name, **ours) for name in names]
                if has_counterpart(spec):
                    group.append(Measurement(kind="peer", library="timm", **shared))
                groups.append(group)
    return groups


def rows_of(lines: list[Any]) -> list[dict[str, Any]]:
    """A row per line, with its ratio to ours of the same group."""
    ours_by_group = {
        line.group: line for line in lines
        if (line.measurement.kind, line.measurement.backend) == ("backbone", "auto")
        and not line.measurement.without
    }  # fmt: skip
    rows = []
    for line in lines:
        measurement, ours = line.measurement, ours_by_group.get(line.group)
        least, unit = _least(line), ours and _least(ours)
        row: dict[str, Any] = {
            "model": measurement.what,
            "mode": "compile" if measurement.compile else measurement.mode,
            "batch": line.batch, "what": measurement.label, "ms": least and 1e3 * least,
            "x": least / unit if least and unit else None,
        }  # fmt: skip
        our_bytes = ours.peak_bytes if ours else None
        row["memory"] = line.peak_bytes / our_bytes if line.peak_bytes and our_bytes else None
        row["n"] = sum(map(len, line.times.values()))
        row["note"] = line.note if line.usable else f"{line.status}: {line.reason}"
        rows.append(row)
    return rows


def _least(line: Any) -> float | None:
    return min((s for samples in line.times.values() for s in samples), default=None)


def main(argv: list[str] | None = None) -> int:
    args = options.read(build_parser(), argv)
    cli.load_plugins(args.plugin)

    def plan() -> Plan:
        return options.plan_of(args, groups_of(args), plugins=args.plugin)

    rows, bad, left_out = options.rows_of(args, plan)

    from analysis.results import reporting, summary

    lines = summary.lines(rows)
    shown = rows_of(lines)
    if args.figure:
        reporting.bars(lines, args.figure, describe=args.describe)
    note = "\n".join([*left_out, NOTE, reporting.machines(lines)])
    text = table.render(shown, cli.chosen_format(args), note=note)
    cli.emit(text, args)
    all_ok = all(line.usable for line in lines) and not bad
    return cli.AGREED if all_ok else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
