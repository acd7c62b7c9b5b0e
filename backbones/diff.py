"""Compares two backbones: the fields that differ, and the cost of each stage."""

from __future__ import annotations

import argparse
from typing import Any

from backbones.specs.notation import parse
from backbones.specs.spec import BackboneSpec, fields_of
from backbones.specs.stage import StageSpec
from transom import cli, table
from transom.fields import write

EPILOG = """examples:
  python -m backbones.diff swin_t swin_t/3=pale
  python -m backbones.diff swin_t pale_t --img-size 512x1024 --format json

exit code: 0, or 2 when the request cannot be answered"""


def changes(a: BackboneSpec, b: BackboneSpec) -> list[dict[str, str]]:
    """A row (where, field, a, b) per field that differs, except the names."""
    rows = []
    for field in fields_of(BackboneSpec):
        if field not in ("name", "stages") and getattr(a, field) != getattr(b, field):
            rows.append(_change("backbone", field, getattr(a, field), getattr(b, field)))
    for i in range(max(len(a.stages), len(b.stages))):
        pair = [spec.stages[i] if i < len(spec.stages) else None for spec in (a, b)]
        if None in pair:
            before, after = ("-" if stage is None else "+" for stage in pair)
            rows.append(_change(f"stage {i + 1}", "stage", before, after))
            continue
        for field in fields_of(StageSpec):
            before, after = (getattr(stage, field) for stage in pair)
            if before != after:
                rows.append(_change(f"stage {i + 1}", field, before, after))
    return rows


def _change(where: str, field: str, before: Any, after: Any) -> dict[str, str]:
    def text(value: Any) -> str:
        return "+".join(map(str, value)) if field == "mixers" else write(value)

    return {"where": where, "field": field, "a": text(before), "b": text(after)}


def costs(a: BackboneSpec, b: BackboneSpec, img_size: tuple[int, int]) -> list[dict[str, Any]]:
    """A row per stage, head and total: parameters and MACs of a and b, and the difference."""
    from backbones.model.sizes import Size, stage_sizes, total

    both = []
    for spec in (a, b):
        *stages, head = stage_sizes(spec, img_size)
        named = {str(i): size for i, size in enumerate(stages, start=1)}
        both.append({**named, "head": head, "total": total([*stages, head])})
    labels = sorted(set(both[0]) | set(both[1]), key=lambda k: (k == "total", k == "head", k))
    rows = []
    for label in labels:
        before, after = (sizes.get(label, Size(0, 0)) for sizes in both)
        row: dict[str, Any] = {"stage": label}
        for what in ("params", "macs"):
            x, y = getattr(before, what), getattr(after, what)
            change = 100 * (y - x) / x if x else None
            row |= {f"{what}_a": x, f"{what}_b": y, f"{what}_change": y - x, f"{what}_%": change}
        rows.append(row)
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("backbones.diff", __doc__, EPILOG)
    parser.add_argument("a", help="a notation, a variant, an alias or a .toml file")
    parser.add_argument("b", help="a notation, a variant, an alias or a .toml file")
    parser.add_argument("--img-size", type=cli.image_size, metavar="SIZE", help="default: a's")
    cli.add_output(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    a, b = parse(args.a), parse(args.b)
    h, w = size = args.img_size or a.img_size
    a, b = a.resolve(size), b.resolve(size)
    changed, cost = changes(a, b), costs(a, b, size)
    style = cli.chosen_format(args)
    if style == "json":
        text = table.as_json({"img_size": [h, w], "changes": changed, "stages": cost})
    elif style == "csv":
        text = table.csv(cost)
    else:
        what = table.grid(changed, style) if changed else "nothing differs"
        first, second = (table.cell(spec.name, style) for spec in (a, b))
        names = f"a = {first}\nb = {second}, both at {h}x{w}"
        text = f"{names}\n\n{what}\n\n{table.grid(cost, style)}"
    cli.emit(text, args)
    return cli.AGREED


if __name__ == "__main__":
    cli.run(main)
