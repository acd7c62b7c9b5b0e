"""The token mixers: what each is called, where it is from, and its options with their defaults."""

import dataclasses
import json
from typing import Any

from attention import terminal
from attention.registry import config_class, names, source_of, write

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


def main(argv: list[str] | None = None) -> int:
    parser = terminal.parser("attention", __doc__, EPILOG)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    terminal.load_plugins(args.plugin)
    if args.format == "json":
        print(json.dumps(rows(), indent=1))
        return 0
    for row in rows():
        print(f"{row['mixer']}: {row['source']}")
        for option in row["options"]:
            allowed = f"  [{'|'.join(option['allowed'])}]" if option["allowed"] else ""
            print(f"    {option['name'] + '=' + option['default']:24}{option['doc']}{allowed}")
    return 0


if __name__ == "__main__":
    terminal.run(main)
