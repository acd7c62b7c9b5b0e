"""What no training can give a backbone: relations that hold for random weights, in seconds.

  compare             is the output more than a sum over the parts of the image: can two places in
                      different halves be compared?
  columns             does the output change when two columns, rows or patches of different halves
  rows, patches       are exchanged?
  adjacent            ... when the first two patches are, which stand inside one window?
  l/r, t/b            ... when the left and right, or the upper and lower half are?

"cannot": the relation holds to 1e-12 of the response, in float64, for every draw of all parameters,
images and places; so it is an identity of the architecture for images of this size, which no
weights can break.  Else the largest violation; below 1e-4 it has a "?", and nothing is certified
(a model that computes in float32 inside ends there).
"""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING, Any

from transom import cli, table
from transom.errors import SpecError, printable

if TYPE_CHECKING:
    from torch import nn

    from analysis.checking.certificates import Certificates
    from analysis.models.lookup import ModelFactory

EPILOG = """examples:
  python -m analysis.certify swin_t pale_t "swin_t/3=full" --img-size 64
  python -m analysis.certify "swin_t/1=window:shift=false" --seeds 5 --format json
  python -m analysis.certify timm:swin_tiny_patch4_window7_224 torchvision:resnet18 --img-size 128
  python -m analysis.certify my_module:my_network --img-size 64 --patch 8

exit code: 0 every model was measured, 2 the request cannot be answered"""

COLUMNS = {
    "compare": ("compare_left_right", "compare_top_bottom", "compare_diagonal"),
    "columns": ("columns",), "rows": ("rows",), "patches": ("patches",),
    "adjacent": ("adjacent_patches",), "l/r": ("left_right",), "t/b": ("top_bottom",),
}  # fmt: skip
WIDTH = 100  # of a line of text
LONGEST_NAME = 26  # longer names stand below the table, by number
NOTE = (
    "largest violation of all draws, relative to the response; cannot: an identity of the\n"
    "architecture at this size, which no training breaks; a number forbids and promises nothing"
)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("analysis.certify", __doc__, EPILOG)
    add = parser.add_argument
    cli.add_backbones(parser, "backbones, named as in analysis.flops")
    add(
        "--img-size", type=cli.image_size, metavar="SIZE",
        help="pixels: 64, or 64x128 with the height first; default: each model's own",
    )  # fmt: skip
    add(
        "--patch", type=cli.count_from_one, metavar="PIXELS",
        help="side of the patches that are compared and exchanged; default: a token of the last "
        "stage, or 32 where a network of others does not state it",
    )  # fmt: skip
    add(
        "--seeds", type=cli.count_from_one, default=3, metavar="N",
        help="draws of weights, images and places (default 3)",
    )  # fmt: skip
    cli.add_output(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    factories = [_find(name) for name in args.backbone]  # every name, before any work
    from analysis.checking.certificates import certify

    found = [
        certify(
            _make(factory, size), size, seeds=args.seeds, patch=args.patch, name=factory.name
        )
        for factory in factories
        for size in [args.img_size or factory.img_size]
    ]  # fmt: skip
    cli.emit(render(found, cli.chosen_format(args)), args)
    return cli.AGREED


def _find(name: str) -> ModelFactory:
    from analysis.models import lookup

    try:
        return lookup.find(name)
    except (SpecError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # whatever the import of a user's module raises
        raise SpecError(f"{printable(name)}: {type(error).__name__}: {printable(error)}") from None


def _make(factory: ModelFactory, size: tuple[int, int]) -> nn.Module:
    """The model with weights; those of ours that `lookup` makes have none."""
    import backbones

    try:
        return factory.make(size) if factory.foreign else backbones.create(factory.name)
    except (SpecError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # whatever a foreign constructor raises
        raise SpecError(f"{factory.name}: cannot be built: {printable(error)}") from None


def render(found: list[Certificates], style: str) -> str:
    """The certificates in one of the formats of `table.FORMATS`."""
    if style == "json":
        note = NOTE.replace("\n", " ")
        return table.as_json({"convention": note, "rows": [one.to_dict() for one in found]})
    if style == "csv":
        return table.csv([_exact(one) for one in found])
    sections = [table.render([_row(i, one) for i, one in enumerate(found, 1)], style, note=NOTE)]
    for i, one in enumerate(found, 1):
        h, w = one.img_size
        draws = f"patches of {one.patch} pixels, draws: {one.seeds}"
        head = table.cell(f"{_label(i, one)}{one.name} at {h}x{w}, {draws}", style)
        if style == "md":
            lines = ["", *("- " + table.cell(sentence, style) for sentence in one.sentences())]
        else:
            lines = [_wrapped(table.plain(sentence)) for sentence in one.sentences()]
        sections.append("\n".join([head, *lines]))
    return "\n\n".join(sections)


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _label(i: int, one: Certificates) -> str:
    """The number of a model whose name does not fit into the table."""
    return f"({i}) " if len(one.name) > LONGEST_NAME else ""


def _row(i: int, one: Certificates) -> dict[str, Any]:
    """A row of the table: "cannot", or the largest violation, with a "?" where it is unclear."""
    cells: dict[str, Any] = {"backbone": _label(i, one).strip() or one.name}
    for column, relations in COLUMNS.items():
        worst = max(relations, key=lambda relation: one.values[relation])
        marks = {"cannot": "cannot", "can": f"{one.values[worst]:.1g}"}
        cells[column] = marks.get(one.verdict(worst), f"{one.values[worst]:.0e}?")
    return cells


def _exact(one: Certificates) -> dict[str, Any]:
    h, w = one.img_size
    return {
        "backbone": one.name, "img_size": f"{h}x{w}", "patch": one.patch, "seeds": one.seeds,
        **one.values, "cannot": " ".join(one.named("cannot")),
        "unclear": " ".join(one.named("unclear")),
    }  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
