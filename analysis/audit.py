"""The paper ledger: every published parameter count and FLOPs figure of our backbones, with our
count beside it.

  claimed   as printed: parameters in millions, FLOPs in billions (papers mean multiply-adds)
  counted   exact, in the source's own convention; macs: our plain multiply-adds beside it
  formula   what was added up
  verdict   rounds to, rounds up to, cut off to: the printed digits; within 1%, within 1.5%;
            differs by x%; not reproducible: differs by x%, looked into, and the cause is not known

Conventions.  Swin V2's published FLOPs leave out log-CPB, as the authors' `flops()` does.  Norms
are no multiply-adds, but some figures fit better with them: per element, 5 of a layer norm and 2
of a batch norm in Pale's classification figures (5 and 5 in its dense ones, heads left out) and in
Swin's dense ones, heads included.  No paper says so: of several ways to count, these were chosen
by how many figures they meet.  They move a count by less than 0.6%.  ViT's, DeiT's and MLP-Mixer's
figures are from tools that count 5 of a layer norm, MSG's `flops()` counts 1, and 2 where maps
merge; the final norm is that of all tokens, where ours norms only the token that it pools.  All
others are plain multiply-adds, but for those of Twins (ours and timm's models), which leave out
the two products of every attention, inside windows too.  Dense rows add the heads of
analysis/papers/dense_heads.py.  second_hand marks what is a transcription of the paper's tables,
unconfirmed what is not found where it is said to stand.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis.papers import published
from analysis.papers.ledger import UNITS, ledger
from backbones.specs import variants
from transom import cli, table
from transom.errors import SpecError
from transom.layout import Look

EPILOG = """examples:
  python -m analysis.audit
  python -m analysis.audit --backbone swin_t cswin_l --task imagenet coco
  python -m analysis.audit --check
  python -m analysis.audit --out analysis/papers/verdicts.csv      (records the verdicts anew)

exit code: 0, or 1 with --check where a row is not as recorded, 2 the request cannot be answered"""

RECORDED = Path(__file__).with_name("papers") / "verdicts.csv"
KEY = ("backbone", "task", "method", "pretrain", "img_size", "schedule", "quantity")
CHECKED = ("claimed", "counted", "macs", "verdict")


LOOK = Look(
    heads={"img_size": "pixels", "difference_%": "off, %", "second_hand": "second hand"},
    first=("quantity", "claimed", "counted", "verdict", "difference_%", "task", "method",
           "img_size", "pretrain", "source", "cause"),
    footnotes=("formula", "cause", "source"),
    bad=lambda key, value: key == "verdict" and str(value).startswith(("differs", "not rep")),
)  # fmt: skip


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
    cli.add_backbones(
        parser, "only these variants (transom variants lists them)", needed=False
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
    cli.emit(render(rows, cli.chosen_format(args)), args)
    changed = deviations(rows, before) if args.check else []
    for line in changed:
        print(line, file=sys.stderr)
    return cli.DIFFER if changed else cli.AGREED


def render(rows: Sequence[table.Row], style: str) -> str:
    """Rows as text: exact counts in csv and JSON, millions and billions in tables."""
    if style in ("csv", "json"):
        return table.render(rows, style)
    note = summary(rows)
    return table.render([_for_reading(row) for row in rows], style, note=note, look=LOOK)


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
