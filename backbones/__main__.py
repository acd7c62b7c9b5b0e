"""The named backbones: exact parameters and MACs at their own image size, and their source."""

import argparse
from typing import Any

from backbones.specs import variants
from transom import cli, table

EPILOG = """edit one with slashes: swin_t/3=pale:size=7/4=full, swin_t/1.heads=4/norm=res_post
counted by: python -m analysis.flops --backbone NAME"""


def rows() -> list[dict[str, Any]]:
    """A row per variant, in the order of the families."""
    aliases = {target: alias for alias, target in variants.ALIASES.items()}
    found = []
    for name in variants.names():
        row = variants.get(name)
        h, w = row.spec.img_size
        found.append(
            {
                "backbone": name, "alias": aliases.get(name, ""), "img_size": f"{h}x{w}",
                "params": row.params, "macs": row.macs,
                "mixers": " ".join(stage.pattern() for stage in row.spec.stages),
                "drop_path": row.drop_path, "source": row.source, "note": row.note,
            }
        )  # fmt: skip
    return found


def listing() -> str:
    """Text for the terminal: the variants under their sources."""
    lines: list[str] = []
    source = None
    for row in rows():
        if row["source"] != source:
            source = row["source"]
            lines += [source, f"{'':4}{'backbone':18}{'size':>9}{'parameters':>13}{'MACs':>17}"]
        also = f"  = {row['alias']}" if row["alias"] else ""
        also += f"  ({row['note']})" if row["note"] else ""
        name, size = row["backbone"], row["img_size"]
        lines.append(f"    {name:18}{size:>9}{row['params']:>13,}{row['macs']:>17,}{also}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("backbones", __doc__, EPILOG)
    cli.add_output(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    style = cli.chosen_format(args)
    cli.emit(listing() if style == "table" else table.render(rows(), style), args)
    return cli.AGREED


if __name__ == "__main__":
    cli.run(main)
