"""Speed of backbones beside their counterparts in other libraries, with equal weights.

Throughput, latency and its spread, peak memory, and the share of what the machine's matrix product
reaches in the same run.  Every group - one backbone, size, mode, dtype and batch - runs
interleaved in fresh processes; a difference is reported only if it is significant.

  infer   eval(), no gradients          train   forward, cross-entropy, backward; no optimiser
          half dtypes: weights are cast         half dtypes: autocast over float32 weights
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

from analysis.results.measurement import BACKENDS, LAYOUTS, MODES, Measurement
from analysis.results.session import Plan
from analysis.results.store import to_csv
from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec
from benchmarks import options
from transom import cli, table
from transom.errors import SpecError

PEERS = ("timm", "timm-fused", "torchvision", "transformers")
SHOW = ("full", "short", "raw")
EPILOG = """examples:
  python -m benchmarks.speed --backbone swin_t --peers timm,torchvision --quick
  python -m benchmarks.speed --backbone swin_t swinv2_t_w8 --peers timm,torchvision,transformers \\
      --mode infer,train --batch 1,8 --compile off,on --store speed.jsonl --resume
  python -m benchmarks.speed --backbone swin_t --by operator --quick
  python -m benchmarks.speed --table benchmarks/results/*/speed/*.jsonl --show short --format md

exit code: 0 everything was measured, 1 an entry failed, is invalid or has other logits, or a
stored line cannot be read, 2 a bad request"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.speed", __doc__, EPILOG)
    add = parser.add_argument
    cli.add_backbones(parser, "our notation", needed=False)
    add(
        "--peers", type=options.listed("library", (*PEERS, "none")), default=[], metavar="A,B",
        help=f"of {', '.join(PEERS)}; timm-fused has its fused attention switched on",
    )  # fmt: skip
    add("--mode", type=options.listed("mode", MODES), default=["infer"], help="infer,train")
    add("--dtype", type=options.dtypes, default=["float32"], help="float32,bfloat16,float16")
    add(
        "--compile", type=options.listed("state", ("off", "on")), default=["off"], metavar="off,on",
        help="torch.compile of whole models, ours and theirs",
    )  # fmt: skip
    add("--batch", type=options.counts, default=[1], metavar="1,8", help="images in a batch")
    add(
        "--img-size", nargs="+", type=cli.image_size, metavar="SIZE",
        help="pixels, 224 or 512x1024 (default: each backbone's own)",
    )  # fmt: skip
    add(
        "--also", type=options.listed("backend", BACKENDS[1:4]), default=[], metavar="NAME",
        help="ours in eager once more, by this backend: reference,cpu,kernel",
    )  # fmt: skip
    add("--layout", choices=LAYOUTS, default="contiguous", help="of images and weights")
    add("--no-peak", action="store_true", help="do not measure the machine's matrix product")
    options.add_measuring(parser)
    add = parser.add_argument_group("showing").add_argument
    add("--by", choices=("stage", "operator"), help="also split the time of eager models")
    add(
        "--show", choices=SHOW, default="full",
        help="full: a row per entry; short: ours against the best peer; raw: what is stored",
    )  # fmt: skip
    cli.add_output(parser)
    return parser


# -- the request -----------------------------------------------------------------------------


def groups_of(args: argparse.Namespace) -> list[list[Measurement]]:
    """Groups of measurements that run in the same processes, all dtypes of a model together, ours
    first.  Raises SpecError."""
    libraries = [name for name in args.peers if name != "none"]
    groups = []
    for name in args.backbone:
        spec = parse(name)
        if libraries:
            from analysis.models import counterparts

            for library in libraries:
                counterparts.require(library, name)
        for size in args.img_size or [spec.img_size]:
            for mode, batch in itertools.product(args.mode, args.batch):
                group: list[Measurement] = []
                for dtype in args.dtype:
                    shared: dict[str, Any] = {
                        "what": name, "size": size, "mode": mode, "dtype": dtype, "batch": batch,
                        "layout": args.layout, **options.shared_options(args),
                    }  # fmt: skip
                    models = _models(args, shared, libraries)
                    group += models
                    group += [] if args.no_peak else _products(args, spec, models[0])
                groups.append(group)
    return groups


def _models(
    args: argparse.Namespace, shared: dict[str, Any], libraries: Sequence[str]
) -> list[Measurement]:  # fmt: skip
    measurements = []
    for compiled in (state == "on" for state in args.compile):
        names = ["auto"] if compiled else ["auto", *args.also]
        common = {"compile": compiled, **shared}
        measurements += [Measurement(kind="backbone", backend=name, **common) for name in names]
        measurements += [Measurement(kind="peer", library=name, **common) for name in libraries]
    return measurements


def _products(
    args: argparse.Namespace, spec: BackboneSpec, measurement: Measurement
) -> list[Measurement]:
    """Matrix products for the peak rate, two of them in shapes of this backbone."""
    shapes = []
    for stage, (h, w) in list(zip(spec.stages, spec.grids(measurement.size), strict=True))[:3:2]:
        shapes.append(f"{min(measurement.batch * h * w, 2**15)}x{stage.dim}x{4 * stage.dim}")
    return options.share_of_peak(args, measurement.dtype, shapes)


# -- the answer ------------------------------------------------------------------------------


def answer(
    args: argparse.Namespace, rows: list[dict[str, Any]], left_out: Sequence[str] = ()
) -> tuple[str, bool]:
    """(text, whether everything was measured and agrees).  left_out: lines below the table."""
    from analysis.results import reporting, summary

    lines = summary.lines(rows)
    style = cli.chosen_format(args)
    all_ok = all(line.is_valid for line in lines)
    if args.figure:
        reporting.panels(lines, args.figure, describe=args.describe)
    if args.show == "raw":
        return (to_csv(rows) if style == "csv" else table.as_json({"rows": rows})), all_ok
    make = reporting.short if args.show == "short" else reporting.full
    shown = make(lines, force=args.force)
    note = "\n".join([*left_out, reporting.NOTE, reporting.machines(lines)])
    if style == "json":
        content = {"convention": note, "rows": shown}
        return table.as_json(content | _profiles_of(args, lines)), all_ok
    text = table.render(shown, style, note=note)
    for name, parts in _profiles_of(args, lines).items():
        text += f"\n\nby {name}; watching_%: how much slower a watched call is\n\n"
        text += table.render(parts, style)
    return text, all_ok


def _profiles_of(args: argparse.Namespace, lines: Sequence[Any]) -> dict[str, Any]:
    from analysis.results import reporting

    return {args.by: reporting.profiles(lines, args.by)} if args.by else {}


def main(argv: list[str] | None = None) -> int:
    args = options.read(build_parser(), argv)
    cli.load_plugins(args.plugin)
    if args.table and args.backbone:
        raise SpecError("--table: shows what is stored; --backbone measures")
    if not args.table and not args.backbone:
        raise SpecError("nothing to measure: give a --backbone, or a --table")
    if not args.table and args.by and "on" in args.compile:
        raise SpecError("--by: a compiled model has no parts of its own; use --compile off")

    def plan() -> Plan:
        return options.plan_of(args, groups_of(args), profile=bool(args.by), plugins=args.plugin)

    rows, bad, left_out = options.rows_of(args, plan)
    text, all_ok = answer(args, rows, left_out)
    cli.emit(text, args)
    return cli.AGREED if all_ok and not bad else cli.DIFFER


if __name__ == "__main__":
    cli.run(main)
