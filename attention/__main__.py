"""The token mixers: what each is called, where it is from, and its options with their defaults."""

import argparse
import dataclasses
from typing import Any

from attention.configs.registry import config_class, names, source_of
from transom import cli, table
from transom.fields import write

EPILOG = "write one as name:option=value,option=value, such as pale:size=7,scores=cosine"


def rows() -> list[dict[str, Any]]:
    """A dict per mixer: name, source, options (name, default, allowed, meaning)."""
    return [
        {
            "mixer": name,
            "source": source_of(name),
            "options": [
                {
                    "name": field.name,
                    "default": write(field.default),
                    "allowed": list(getattr(field.metadata.get("read"), "allowed", ())),
                    "doc": field.metadata.get("doc", ""),
                }
                for field in dataclasses.fields(config_class(name))
            ],
        }
        for name in names()
    ]


def options() -> list[dict[str, Any]]:
    """A row per option of a mixer, and one for a mixer without options."""
    nothing: dict[str, Any] = {"name": "", "default": "", "allowed": [], "doc": ""}
    return [
        {
            "mixer": row["mixer"], "option": option["name"], "default": option["default"],
            "allowed": " ".join(option["allowed"]), "doc": option["doc"], "source": row["source"],
        }
        for row in rows()
        for option in row["options"] or [nothing]
    ]  # fmt: skip


def listing() -> str:
    """The listing as text: a line per mixer, then a line per option."""
    lines = []
    for row in rows():
        lines.append(f"{row['mixer']}: {row['source']}")
        for option in row["options"]:
            allowed = f"  [{'|'.join(option['allowed'])}]" if option["allowed"] else ""
            written = f"{option['name']}={option['default']}"
            lines.append(f"    {written:24}{option['doc']}{allowed}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("attention", __doc__, EPILOG)
    cli.add_output(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    style = cli.chosen_format(args)
    if style == "table":
        text = listing()
    else:
        text = table.render(rows() if style == "json" else options(), style)
    cli.emit(text, args)
    return cli.AGREED


if __name__ == "__main__":
    cli.run(main)
