"""Parameters, MACs and FLOPs of backbones, counted three ways that must agree.

  formula  the exact cost that every mixer states
  fvcore   the operators of a real, traced forward, with exact handles
  torch    torch.utils.flop_counter on the meta device
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from transom import cli, table
from transom.errors import SpecError
from transom.layout import Look

if TYPE_CHECKING:
    from analysis.counting.report import Report

EPILOG = """examples:
  python -m analysis.flops --backbone swin_t
  python -m analysis.flops --backbone swin_t pale_t "swin_t/3=pale:size=7/4=full"
  python -m analysis.flops --backbone timm:swin_tiny_patch4_window7_224 --by operator
  python -m analysis.flops --backbone swin_t --backward
  python -m analysis.flops --backbone swinv2_t --img-size 512x1024 --format json --out v2.json

exit code: 0 the counts agree, 1 they differ, 2 the request cannot be answered"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("analysis.flops", __doc__, EPILOG)
    add = parser.add_argument
    cli.add_backbones(
        parser, "a variant (transom variants lists them), a notation such as swin_t/3=pale, a "
        ".toml file, timm:NAME, torchvision:NAME or my_module:Class",
    )  # fmt: skip
    add(
        "--img-size", type=cli.image_size, metavar="SIZE",
        help="pixels: 224, or 512x1024 with the height first; default: each model's own",
    )  # fmt: skip
    add(
        "--by", choices=("stage", "block", "operator", "module"), default="stage",
        help="rows of the table; module: the tree of modules, of networks of others too",
    )  # fmt: skip
    add(
        "--depth", type=cli.count_from_one, default=4, metavar="N",
        help="levels of --by module (default 4); csv and JSON have all",
    )  # fmt: skip
    add("--backward", action="store_true", help="count the backward pass, too")
    add(
        "--max-memory", type=cli.memory_size, default="4G", metavar="SIZE",
        help="skip fvcore where a real forward needs more (default 4G)",
    )  # fmt: skip
    add(
        "--max-seconds", type=float, default=30.0, metavar="S",
        help="skip fvcore where a real forward would take longer (default 30)",
    )  # fmt: skip
    cli.add_output(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    from analysis.models import lookup

    factories = [lookup.find(name) for name in args.backbone]  # every name, before any work
    from analysis.counting.count import Budget, count
    from analysis.counting.report import CONVENTION
    from transom.progress import Bar

    budget = Budget(args.max_memory, args.max_seconds)
    reports = []
    for factory in Bar(factories, unit="model"):
        size = args.img_size or factory.img_size
        try:
            model = factory.make(size)
        except (SpecError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever a foreign constructor raises
            raise SpecError(f"{factory.name}: cannot be built: {error}") from None
        reports.append(count(model, size, name=factory.name, budget=budget,
                             backward=args.backward))  # fmt: skip
    cli.emit(render(reports, cli.chosen_format(args), args.by, CONVENTION, args.depth), args)
    return cli.AGREED if all(report.agree for report in reports) else cli.DIFFER


def render(
    reports: list[Report], style: str, by: str, convention: str, depth: int = 4
) -> str:  # fmt: skip
    """The reports in one of the formats of `table.FORMATS`."""
    if style == "json":
        rows = [report.to_dict(by) for report in reports]
        return table.as_json({"convention": convention, "rows": rows})
    if style == "csv":
        return table.csv([row for report in reports for row in _csv_rows(report, by)])
    sections = [_section(report, style, by, depth) for report in reports]
    return "\n\n".join([*sections, convention])


def _csv_rows(report: Report, by: str) -> list[dict[str, Any]]:
    """One row per stage, block or operator, the total last; each repeats the model's columns."""
    h, w = report.img_size
    model = {"backbone": report.backbone, "img_size": f"{h}x{w}"}
    trust = {
        "macs_formula": report.macs_formula, "macs_fvcore": report.macs_fvcore,
        "macs_torch": report.macs_torch, "agree": report.agree,
        "uncounted": " ".join(report.uncounted), "note": report.note,
    }  # fmt: skip
    if report.macs_backward is not None:
        trust |= {
            "macs_backward": report.macs_backward,
            "macs_backward_foretold": report.macs_backward_foretold,
        }
    rows = report.stages if by == "stage" else [*getattr(report, by + "s"), report.stages[-1]]
    named = [{by: "total", **row} if by != "stage" else row for row in rows]
    return [
        {**model, **row, "flops": 2 * row["macs"] if row["macs"] is not None else None, **trust}
        for row in named
    ]


def _section(report: Report, style: str, by: str, depth: int) -> str:
    (h, w), at_least = report.img_size, ">= " if report.uncounted else ""
    head = (
        f"{table.cell(report.backbone, style)} at {h}x{w}: {report.params:,} parameters, "
        f"{at_least}{_giga(report.macs)} GMACs ({report.macs:,} MACs), "
        f"{at_least}{_giga(report.flops)} GFLOPs; below, in millions:"
    )
    found = getattr(report, by + "s")
    if by == "module":
        found = [_leaf(row, style) for row in found if _level(row) <= depth]
    rows = [_headings(row) for row in found]
    lines = [f"### {head}", ""] if style == "md" else [head]
    told = ["trust: " + table.cell(report.trust, style)]
    if report.backward:
        told.append(table.cell(report.backward, style))
    return "\n".join([*lines, table.grid(rows, style, LOOK), *lines[1:2], *told])


def _level(row: dict[str, Any]) -> int:
    return row["module"].count(".") + bool(row["module"])


def _leaf(row: dict[str, Any], style: str) -> dict[str, Any]:
    """A row of the tree: the last part of the name, indented by its level; the model is "."."""
    indent = "  " if style == "table" else "- " * (style == "md")
    return {**row, "module": indent * _level(row) + row["module"].rpartition(".")[2] or "."}


def _giga(value: int) -> str:
    return f"{value / 1e9:.4g}" if value < 1e13 else f"{value / 1e9:,.0f}"


_HEADINGS = {
    "params": "params", "macs": "MACs", "mlp": "MLP", "resample": "stem/down",
    "norm_elements": "norms", "padding_%": "padding %", "share_%": "share %",
}  # fmt: skip
LOOK = Look(first=("params", "MACs", "grid", "mixers", "projection", "mixing", "MLP", "dim",
                   "heads", "depth"))  # fmt: skip
_LABELS = ("stage", "block", "operator", "grid", "dim", "depth", "heads", "mixers", "module",
           "class", "output")  # fmt: skip


def _headings(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: counts in millions; csv and JSON have exact counts."""
    return {
        _HEADINGS.get(key, key): value
        if key in _LABELS or key.endswith("%") or value is None
        else value / 1e6
        for key, value in row.items()
        if key != "padding_macs"
    }


if __name__ == "__main__":
    cli.run(main)
