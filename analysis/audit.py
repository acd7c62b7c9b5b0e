"""The paper ledger: every published parameter count and FLOPs figure of our backbones, with our
count beside it.

  claimed   as printed: parameters in millions, FLOPs in billions (papers mean multiply-adds)
  counted   exact, in the source's own convention; macs: our plain multiply-adds beside it
  formula   what was added up
  verdict   rounds to, rounds up to: the printed digits; within 1%, within 1.5%; differs by x%;
            not reproducible: differs by x%, looked into, and the cause is not known

Conventions.  Swin V2's published FLOPs leave out log-CPB, as the authors' `flops()` does.  Norms
are no multiply-adds, but some figures fit better with them: per element, 5 of a layer norm and 2
of a batch norm in Pale's classification figures (5 and 5 in its dense ones, heads left out) and in
Swin's dense ones, heads included.  No paper says so: of several ways to count, these were chosen
by how many figures they meet.  They move a count by less than 0.6%.  All others are plain
multiply-adds, but for those of Twins-PCPVT (timm's models), which leave out the two products of
every attention.  Dense rows add the heads of analysis/papers/dense_heads.py.  second_hand marks
what is a transcription of the paper's tables, unconfirmed what is not found where it is said to
stand.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from analysis.models import lookup
from analysis.papers import dense_heads, published
from backbones.specs import variants
from transom import cli, table
from transom.errors import SpecError

EPILOG = """examples:
  python -m analysis.audit
  python -m analysis.audit --backbone swin_t cswin_l --task imagenet coco
  python -m analysis.audit --check
  python -m analysis.audit --out analysis/papers/verdicts.csv      (records the verdicts anew)

exit code: 0, or 1 with --check where a row is not as recorded, 2 the request cannot be answered"""

RECORDED = Path(__file__).with_name("papers") / "verdicts.csv"
UNITS = {"params": 10**6, "flops": 10**9}
CLAIMS = {"params": "params_m", "flops": "flops_g"}
KEY = ("backbone", "task", "method", "pretrain", "img_size", "schedule", "quantity")
CHECKED = ("claimed", "counted", "macs", "verdict")
MODES = {"rounds to": ROUND_HALF_UP, "rounds up to": ROUND_CEILING}
ROUNDED_UP = ("cswin", "params")  # 22.32 M is printed as 23M, 77.38 M as 78M
TOLERANCES = (Decimal("1"), Decimal("1.5"))  # percent

# Differences that were looked into and stay unexplained: (backbone, method, quantity).
UNEXPLAINED = {
    ("cswin_l", "classification", "flops"): "unknown: the authors' code gives our count too",
    ("cswin_l_384", "classification", "flops"): "unknown: the authors' code gives our count too",
    ("cswin_t", "UPerNet", "params"): "unknown: the FLOPs of this row agree with the same layers; "
    "Swin-T's row has this figure",
    ("cswin_l", "UPerNet", "flops"): "unknown, and no config is published: stripes of 12 instead "
    "of 7 give 2770 G",
    ("swin_l", "UPerNet", "flops"): "unknown: windows of 12 instead of 7 give 2583 G; this row's "
    "parameters agree, and so do Swin-B's FLOPs at this size",
    ("swin_t", "Semantic FPN", "flops"): "unknown: 180.4 G without norms and the windows' pads",
    ("swin_s", "Semantic FPN", "flops"): "unknown: 269.1 G without norms and the windows' pads",
}  # fmt: skip


class Count(NamedTuple):
    """A count of ours for one published figure.

    counted: in the source's convention.  macs: plain multiply-adds, None for parameters.  formula:
    the terms of the sum.  note: for the row if the digits differ.
    """

    counted: int
    macs: int | None
    formula: str
    note: str = ""


# -- counting --------------------------------------------------------------------------------


@lru_cache
def _norms(name: str, dense: bool, img_size: tuple[int, int]) -> dense_heads.Norms:
    return dense_heads.norm_elements(dense_heads.backbone(name, dense), *img_size)


def _head(row: published.Row) -> list[dense_heads.Layer]:
    spec = variants.get(row["backbone"]).spec
    dims = [stage.dim for stage in spec.stages]
    return dense_heads.layers(row["method"], dims, spec.grids(row["img_size"]))


@lru_cache
def _foreign_counts(name: str, img_size: tuple[int, int]) -> tuple[int, int, int]:
    """(parameters, multiply-adds, multiply-adds of products of two activations) of timm's model."""
    import torch

    from analysis.counting import counters

    with torch.device("meta"):
        model = lookup.find(name).make(img_size)
    tally = counters.on_meta(model, (1, 3, *img_size))
    params = sum(p.numel() for p in model.parameters())
    return params, tally.macs[""], tally.operators["bmm"]


def count_params(row: published.Row) -> Count:
    if ":" in row["backbone"]:
        return Count(_foreign_counts(row["backbone"], row["img_size"])[0], None, "parameters")
    dense = row["task"] != "imagenet"
    total = sum(p.numel() for p in dense_heads.backbone(row["backbone"], dense).parameters())
    if not dense:
        return Count(total, None, "parameters")
    total += sum(layer.params for layer in _head(row))
    return Count(total, None, "backbone + head parameters")


def count_flops(row: published.Row) -> Count:
    name, size, dense = row["backbone"], row["img_size"], row["task"] != "imagenet"
    if ":" in name:
        _, macs, products = _foreign_counts(name, size)
        return Count(macs - products, macs, "MACs - attention products")
    parts = dense_heads.backbone(name, dense).cost(*size)
    head = _head(row) if dense else []
    macs = sum(part.macs for part in parts) + sum(layer.macs for layer in head)
    formula = "backbone + head MACs" if dense else "MACs"
    source = variants.get(name).source
    if source == variants.SWIN_V2 and not dense:
        bias = sum(part.macs for part in parts if part.column == "position")
        return Count(macs - bias, macs, f"{formula} - log-CPB")
    if source == variants.PALE:
        norms, batch = _norms(name, dense, size), 5 if dense else 2
        counted = macs + 5 * norms.layer + batch * norms.batch
        return Count(counted, macs, f"{formula} + 5 LN + {batch} BN of the backbone")
    if source == variants.SWIN and dense:
        batch = sum(layer.norm_elements for layer in head)
        counted = macs + 5 * _norms(name, dense, size).layer + 2 * batch
        return Count(counted, macs, f"{formula} + 5 LN + 2 BN")
    pads = sum(part.padding for part in parts)
    note = f"unknown: {(macs - pads) / 1e9:.1f} G without the pads of the stripes" if pads else ""
    return Count(macs, macs, formula, note)


# -- verdicts --------------------------------------------------------------------------------


def difference(claimed: int | float, counted: int, unit: int) -> Decimal:
    """Percent by which a count exceeds a claim; unit: of the claim."""
    return 100 * (Decimal(counted) / unit / Decimal(str(claimed)) - 1)


def compare_claim(claimed: int | float, counted: int, unit: int, *, up: bool = False) -> str:
    """The result of comparing a count with a figure printed as `str(claimed)` units.

    up: whether the source rounds up, so that digits rounded up count as equal.
    """
    printed, exact = Decimal(str(claimed)), Decimal(counted) / unit
    step = Decimal(1).scaleb(int(printed.as_tuple().exponent))
    for verdict, mode in list(MODES.items())[: 2 if up else 1]:
        if exact.quantize(step, rounding=mode) == printed:
            return verdict
    off = difference(claimed, counted, unit)
    for tolerance in TOLERANCES:
        if abs(off) <= tolerance:
            return f"within {tolerance}%"
    return f"differs by {off:+.1f}%"


def ledger(rows: Iterable[published.Row]) -> list[table.Row]:
    """A row per published parameter count and FLOPs figure of `published.rows`."""
    ledger_rows = []
    for row in rows:
        for quantity, count in (("params", count_params), ("flops", count_flops)):
            if row[CLAIMS[quantity]] is not None:
                ledger_rows.append(_ledger_row(row, quantity, count(row)))
    return ledger_rows


def _ledger_row(row: published.Row, quantity: str, count: Count) -> table.Row:
    claimed, unit = row[CLAIMS[quantity]], UNITS[quantity]
    family = row["backbone"].split("_")[0]
    verdict = compare_claim(claimed, count.counted, unit, up=(family, quantity) == ROUNDED_UP)
    cause = count.note if verdict.startswith("within") else ""
    if verdict.startswith("differs by"):
        cause = UNEXPLAINED.get((row["backbone"], row["method"], quantity), "")
        verdict = verdict.replace("differs by", "not reproducible:") if cause else verdict
    h, w = row["img_size"]
    return {
        **{name: row[name] for name in ("backbone", "task", "method", "pretrain")},
        "img_size": str(h) if h == w else f"{h}x{w}", "schedule": row["schedule"],
        "quantity": quantity, "claimed": claimed,
        "counted": count.counted, "macs": count.macs, "formula": count.formula,
        "difference_%": float(round(difference(claimed, count.counted, unit), 3)),
        "verdict": verdict, "cause": cause, "source": row["source"],
        "second_hand": published.is_second_hand(row, CLAIMS[quantity]),
        "unconfirmed": published.is_unconfirmed(row, CLAIMS[quantity]),
    }  # fmt: skip


# -- recorded --------------------------------------------------------------------------------


def deviations(rows: Iterable[table.Row], recorded: Iterable[dict[str, str]]) -> list[str]:
    """A line for each row that differs from the recorded one, is new, or is missing."""
    before = {tuple(row[name] for name in KEY): row for row in recorded}
    lines = []
    for row in rows:
        key = tuple(row[name] for name in KEY)
        old = before.pop(key, None)
        if old is None:
            lines.append(f"{_row_name(key)}: not recorded: {row['verdict']}")
            continue
        now = {name: "" if row[name] is None else str(row[name]) for name in CHECKED}
        changed = [f"{name} {now[name]}, recorded {old[name]}" for name in CHECKED
                   if now[name] != old[name]]  # fmt: skip
        if changed:
            lines.append(f"{_row_name(key)}: {'; '.join(changed)}")
    return [*lines, *(f"{_row_name(key)}: recorded, but in the ledger no more" for key in before)]


def _row_name(key: Sequence[str]) -> str:
    """The name of a row: the fields of its key that are not empty."""
    return " ".join(filter(None, key))


def recorded(path: Path) -> list[dict[str, str]]:
    """The rows of a ledger written as csv.  Raises SpecError."""
    try:
        return table.read_csv(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"--check: {path}: {error.strerror or error}") from None


# -- command ---------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("analysis.audit", __doc__, EPILOG)
    add = parser.add_argument
    add(
        "--backbone", nargs="+", action="extend", default=[], metavar="NAME",
        help="only these variants (python -m backbones lists them); repeatable",
    )  # fmt: skip
    add(
        "--task", nargs="+", action="extend", default=[], choices=published.TASKS, metavar="TASK",
        help=f"only these, of {', '.join(published.TASKS)}",
    )  # fmt: skip
    add("--check", action="store_true", help=f"compare with {RECORDED.name}; exit 1 on a change")
    cli.add_output(parser)
    return parser


def selected(rows: Iterable[Any], names: Sequence[str], tasks: Sequence[str]) -> list[Any]:
    """The rows of these variants and tasks; an empty list selects all."""
    return [
        row
        for row in rows
        if (not names or row["backbone"] in names) and (not tasks or row["task"] in tasks)
    ]


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    names = [n if published.of(n) else variants.get(n).spec.name for n in args.backbone]
    for name in names:
        if not published.of(name):
            raise SpecError(f"--backbone {name}: no published number of it is held here")
    before = selected(recorded(RECORDED), names, args.task) if args.check else []
    rows = ledger(selected(published.rows(), names, args.task))
    cli.emit(render(rows, cli.chosen_format(args)), args.out)
    changed = deviations(rows, before) if args.check else []
    for line in changed:
        print(line, file=sys.stderr)
    return cli.DIFFER if changed else cli.AGREED


def render(rows: Sequence[table.Row], style: str) -> str:
    """Rows as text: exact counts in csv and JSON, millions and billions in tables."""
    if style in ("csv", "json"):
        return table.render(rows, style)
    note = summary(rows)
    return table.render([_for_reading(row) for row in rows], style, note=note)


def _for_reading(row: table.Row) -> table.Row:
    unit, sign = UNITS[row["quantity"]], {"params": "M", "flops": "G"}[row["quantity"]]
    shown = {**row, "claimed": f"{row['claimed']} {sign}", "counted": row["counted"] / unit}
    if row["macs"] is not None:
        shown["macs"] = row["macs"] / unit
    return shown


def summary(rows: Sequence[table.Row]) -> str:
    """One line: the number of rows by verdict, and of claims that were not confirmed."""
    counts = Counter(row["verdict"].split(":")[0].split(" by ")[0] for row in rows)
    lines = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    unconfirmed = sum(row["unconfirmed"] for row in rows)
    return f"{len(rows)} numbers: {lines}" + (f"; {unconfirmed} unconfirmed" if unconfirmed else "")


if __name__ == "__main__":
    cli.run(main)
