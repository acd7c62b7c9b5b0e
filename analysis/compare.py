"""Backbones side by side: ours, hybrids, timm's, torchvision's, a user's, at any sizes.

Parameters, MACs and activations are counted; published accuracies carry their source.  Column
names are those of timm's result files, so that the table joins with them.  --measure adds
latency, throughput and memory.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from analysis.papers import published
from analysis.pictures import draw_front, figure_style
from analysis.results import latency
from backbones.specs import variants
from transom import cli, files, table
from transom.errors import SpecError, cause_of, nearest
from transom.layout import Look

if TYPE_CHECKING:
    from analysis.counting.report import Report
    from analysis.models.lookup import ModelFactory

EPILOG = """examples:
  python -m analysis.compare --backbone swin_t cswin_t pale_t "swin_t/3=pale"
  python -m analysis.compare --backbone swin_t timm:swinv2_tiny_window8_256 --img-size 224 256
  python -m analysis.compare --backbone swin_t swin_s swin_b --sort -top1 --format html --out t.html
  python -m analysis.compare --backbone swin_t cswin_t timm:resnet50 --measure --sort latency_ms

exit code: 0 every row was counted and agrees, 1 a row failed or differs, 2 a bad request"""

COLUMNS = {
    "model": "name", "library": "whose", "infer_img_size": "pixels",
    "param_count": "parameters, millions", "infer_gmacs": "MACs, billions",
    "gflops": "FLOPs = 2 x MACs, billions", "infer_macts": "outputs of products, millions",
    "attention_%": "share of the MACs in the mixers", "padding_%": "share of the MACs on pads",
    "top1": "published ImageNet-1K top-1 at this size", "miou": "published ADE20K, UPerNet",
    "box_ap": "published COCO, Mask R-CNN", "mask_ap": "published COCO, Mask R-CNN",
    "source": "of the published figures", **latency.COLUMNS, "agree": "the counts agree",
    "note": "why a row failed, or what is missing", "params": "exact", "macs": "exact",
}  # fmt: skip
LOOK = Look(
    heads={
        "infer_img_size": "pixels", "param_count": "params, M", "infer_gmacs": "MACs, G",
        "gflops": "FLOPs, G", "infer_macts": "outputs, M", "attention_%": "attention, %",
        "padding_%": "padding, %", "top1": "top-1, %", "miou": "mIoU, %", "box_ap": "box AP",
        "mask_ap": "mask AP", "latency_ms": "latency, ms", "latency_iqr": "spread, ms",
        "latency_ci": "interval, ms", "latency_n": "samples", "images_per_s": "images/s",
        "peak_mib": "peak, MiB",
    },
    first=("param_count", "infer_gmacs", "top1", "agree", "note", *latency.COLUMNS, "miou",
           "box_ap", "infer_img_size", "source", "infer_macts", "attention_%", "padding_%",
           "mask_ap", "gflops", "library"),
    best={"param_count": "least", "infer_gmacs": "least", "top1": "most", "miou": "most",
          "box_ap": "most", "mask_ap": "most", "latency_ms": "least", "peak_mib": "least"},
    footnotes=("source",), bad=lambda key, value: key == "agree" and value is False,
)  # fmt: skip
EXACT = ("params", "macs")  # in csv and JSON, or asked for
MEASURED = tuple(latency.COLUMNS)  # with --measure


def build_parser() -> argparse.ArgumentParser:
    columns = "\n".join(f"  {name:16}{meaning}" for name, meaning in COLUMNS.items())
    parser = cli.parser("analysis.compare", __doc__, f"columns:\n{columns}\n\n{EPILOG}")
    add = parser.add_argument
    cli.add_backbones(parser, "as in analysis.flops")
    add(
        "--img-size", nargs="+", type=cli.image_size, metavar="SIZE",
        help="pixels, 224 or 512x1024; several make a row each; default: each model's own",
    )  # fmt: skip
    add("--sort", metavar="COLUMN", help="ascending, or descending with a minus: --sort -top1")
    add("--columns", metavar="A,B,...", help="only these, in this order")
    add("--figure", action=files.OutFile, metavar="FILE", help="draw the Pareto front of --x, --y")
    axes = ", ".join(draw_front.AXES)
    add("--x", choices=draw_front.AXES, default="macs", metavar="WHAT", help=f"{axes} (macs)")
    add("--y", choices=draw_front.AXES, default="accuracy", metavar="WHAT", help="(accuracy)")
    figure_style.add_describe(parser)
    add(
        "--trace", action="store_true",
        help="count ours with fvcore too (a real forward each), not by formula and torch alone",
    )  # fmt: skip
    add = parser.add_argument_group("measuring").add_argument
    add(
        "--measure", action="store_true",
        help="add latency, throughput and peak memory: float32, eager, in processes of their own; "
        "benchmarks.speed says whether a difference is one",
    )  # fmt: skip
    count = cli.count_from_one
    add("--batch", type=count, default=1, help="images that are timed together (default 1)")
    add("--processes", type=count, default=3, help="that time everything (default 3)")
    add("--samples", type=count, default=5, help="in each process (default 5)")
    cli.add_output(parser, table.REPORT_FORMATS)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(_join_minus(argv))
    cli.load_plugins(args.plugin)
    columns = _columns(args.columns)
    sort = _sort(args.sort)
    requested = [*(columns or ()), (args.sort or "").removeprefix("-")]
    if unmeasured := [name for name in requested if name in MEASURED and not args.measure]:
        raise SpecError(f"column {unmeasured[0]!r} is measured: add --measure")
    figure_style.check(args)
    if args.figure and {args.x, args.y} & {*draw_front.MEASURED} and not args.measure:
        raise SpecError(f"--x {args.x} --y {args.y}: one of them is measured: add --measure")
    from analysis.models import lookup

    factories = [lookup.find(name) for name in args.backbone]
    jobs = [(s, size) for s in factories for size in args.img_size or [s.img_size]]
    from transom.progress import Bar

    progress = Bar(jobs, unit="row")
    rows = [row_of(factory, size, trace=args.trace) for factory, size in progress]
    failed = not all(row["agree"] for row in rows)
    if args.measure:
        failed |= not add_measured(
            rows, [(s.name, size) for s, size in jobs], batch=args.batch,
            processes=args.processes, samples=args.samples, plugins=args.plugin,
        )  # fmt: skip
    if sort:
        rows = sort(rows)
    style = cli.chosen_format(args)
    if columns is None:
        hidden = (*(() if style in ("csv", "json") else EXACT), *(() if args.measure else MEASURED))
        columns = [c for c in COLUMNS if c not in hidden]
    if args.figure:
        draw_front.draw(rows, args.x, args.y, args.figure, describe=args.describe)
    chosen = [{c: row.get(c) for c in columns} for row in rows]
    from analysis.counting.report import CONVENTION

    title = "Backbones compared: " + " ".join(args.backbone)
    cli.emit(table.render(chosen, style, title=title, note=CONVENTION, look=LOOK), args)
    return cli.DIFFER if failed else cli.AGREED


def add_measured(
    rows: list[table.Row], jobs: list[tuple[str, tuple[int, int]]], *, batch: int,
    processes: int, samples: int, plugins: Sequence[str],
) -> bool:  # fmt: skip
    """Adds the measured columns to rows of (name, size) jobs; True if every row was measured."""
    measured = latency.columns(
        jobs, batch=batch, processes=processes, samples=samples, plugins=plugins
    )
    for row, found in zip(rows, measured, strict=True):
        row |= {name: found[name] for name in MEASURED}
        row["note"] = "; ".join(filter(None, [row["note"], found["measured_note"]]))
    return all(found["measured"] for found in measured)


def _join_minus(argv: list[str] | None) -> list[str]:
    """``--sort -top1`` as ``--sort=-top1``, which argparse can read."""
    import sys

    words = list(sys.argv[1:] if argv is None else argv)
    for i in range(len(words) - 1):
        if words[i] == "--sort" and words[i + 1].lstrip("-") in COLUMNS:
            return [*words[:i], f"--sort={words[i + 1]}", *words[i + 2 :]]
    return words


def _columns(text: str | None) -> list[str] | None:
    if text is None:
        return None
    chosen = text.split(",")
    for name in chosen:
        if name not in COLUMNS:
            raise SpecError(f"--columns: no column {name!r}{nearest(name, COLUMNS)}")
    return chosen


def _sort(text: str | None) -> Callable[[list[table.Row]], list[table.Row]] | None:
    """The sorting of --sort; rows without a value stay last in both directions."""
    if text is None:
        return None
    name = text.removeprefix("-")
    if name not in COLUMNS:
        raise SpecError(f"--sort: no column {name!r}{nearest(name, COLUMNS)}")

    def key(row: table.Row) -> Any:
        value = row[name]
        if name != "infer_img_size":
            return value
        return value * value if isinstance(value, int) else math.prod(map(int, value.split("x")))

    def sort(rows: list[table.Row]) -> list[table.Row]:
        known = [row for row in rows if row.get(name) not in (None, "")]
        rest = [row for row in rows if row.get(name) in (None, "")]
        return sorted(known, key=key, reverse=text.startswith("-")) + rest

    return sort


def row_of(
    factory: ModelFactory, img_size: tuple[int, int], *, trace: bool = False
) -> dict[str, Any]:
    """The row of a model at (height, width) pixels; a failure is its note."""
    from analysis.counting.count import count

    h, w = img_size
    library, _, bare = factory.name.rpartition(":") if factory.foreign else ("transom", "", "")
    row: dict[str, Any] = dict.fromkeys(name for name in COLUMNS if name not in MEASURED)
    row |= {
        "model": bare or factory.name, "library": library,
        "infer_img_size": h if h == w else f"{h}x{w}",
    }  # fmt: skip
    try:
        model = factory.make(img_size)
        report = count(model, img_size, name=factory.name, trace=trace or factory.foreign)
    except Exception as error:  # whatever a foreign model raises is the reason of its row
        reason = cause_of(error)
        return {**row, "agree": False, "note": f"failed: {reason}"}
    row |= _counts(report)
    if not factory.foreign:
        row |= _published(factory, img_size)
    return row


def _counts(report: Report) -> dict[str, Any]:
    total, macs = report.stages[-1], max(report.macs, 1)
    attention = None
    if report.macs_formula is not None:
        attention = sum(total[c] for c in ("projection", "mixing", "position"))
    return {
        "param_count": report.params / 1e6, "infer_gmacs": report.macs / 1e9,
        "gflops": report.flops / 1e9, "infer_macts": report.activations / 1e6,
        "attention_%": None if attention is None else 100 * attention / macs,
        "padding_%": None if report.padding_macs is None else 100 * report.padding_macs / macs,
        "agree": report.agree, "note": report.note if report.agree else report.trust,
        "params": report.params, "macs": report.macs,
    }  # fmt: skip


_PUBLISHED_COLUMNS = {"imagenet": ("top1",), "ade20k": ("miou_ss",), "coco": ("box_ap", "mask_ap")}


def _published(factory: ModelFactory, img_size: tuple[int, int]) -> dict[str, Any]:
    """Published figures of this variant with their source; top-1 at its published size only."""
    name = variants.ALIASES.get(factory.name, factory.name)
    figures: dict[str, Any] = {}
    sources: dict[str, list[str]] = {}
    for task, columns in _PUBLISHED_COLUMNS.items():
        entry = published.best(name, task)
        if entry is None or (task == "imagenet" and img_size != factory.img_size):
            continue
        shown = [column.removesuffix("_ss") for column in columns]
        figures |= {short: entry[column] for short, column in zip(shown, columns, strict=True)}
        source = ", ".join(filter(None, (entry["source"], entry["pretrain"], entry["schedule"])))
        sources.setdefault(source, []).extend(shown)
    if len(sources) == 1:
        return {**figures, "source": next(iter(sources))}
    lines = (f"{' '.join(columns)}: {source}" for source, columns in sources.items())
    return {**figures, "source": "; ".join(lines) or None}


if __name__ == "__main__":
    cli.run(main)
