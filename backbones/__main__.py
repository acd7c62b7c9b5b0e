"""The named backbones: exact parameters and MACs at their own image size, and their source."""

import json
from typing import Any

from attention import terminal
from backbones import variants

EPILOG = """edit one with slashes: swin_t/3=pale:size=7/4=full, swin_t/1.heads=4/norm=res_post
counted by: python -m analysis.flops --backbone NAME"""


def rows() -> list[dict[str, Any]]:
    """A dict per variant, in the order of the families."""
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


def main(argv: list[str] | None = None) -> int:
    parser = terminal.parser("backbones", __doc__, EPILOG)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    terminal.load_plugins(args.plugin)
    if args.format == "json":
        print(json.dumps(rows(), indent=1))
        return 0
    source = None
    for row in rows():
        if row["source"] != source:
            source = row["source"]
            print(f"{source}\n{'':4}{'backbone':18}{'size':>9}{'parameters':>13}{'MACs':>17}")
        also = f"  = {row['alias']}" if row["alias"] else ""
        also += f"  ({row['note']})" if row["note"] else ""
        print(
            f"    {row['backbone']:18}{row['img_size']:>9}{row['params']:>13,}{row['macs']:>17,}"
            + also
        )
    return 0


if __name__ == "__main__":
    terminal.run(main)
