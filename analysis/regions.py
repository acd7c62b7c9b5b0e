"""Figures of attention: footprints, masks, receptive fields, biases, weights on a photo.

  footprint  what a query can reach after 1, 2, 4 blocks, by integer arithmetic
  reach      how many blocks until every token has seen the whole map, as a table
  masks      the groups after the cyclic shift, and each window's mask
  erf        effective receptive field: the gradient of one unit at every pixel
  bias       relative position bias, a table per head
  attention  what each head gives to every token, on a photo
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.pictures import figure_style
from transom import cli, files, table
from transom.errors import SpecError

if TYPE_CHECKING:
    from analysis.pictures.studies import Study

EPILOG = """examples:
  python -m analysis.regions footprint --mixers window cross pale full --grid 28 --query 5,9
  python -m analysis.regions footprint swin_t cswin_t
  python -m analysis.regions reach swin_t "swin_t/3=pale:size=7"
  python -m analysis.regions masks --mixer window:size=7 --grid 14
  python -m analysis.regions erf swin_t pale_t timm:resnet50 --out erf.svg
  python -m analysis.regions bias swinv2_t_w8 --stage 1
  python -m analysis.regions attention swin_t --stage 2 --block 2 --query 10,12

Each takes --help.  Weights are random unless --weights names a file.
exit code: 0 written, 2 the request cannot be answered"""

MIXERS = (
    "window", "messenger", "shuffle", "neighbourhood", "halo", "cross", "pale", "axial",
    "axial_deeplab:span=9", "sra:ratio=8", "deformable", "full",
)  # fmt: skip


def tokens(text: str) -> tuple[int, int]:
    """(row, column), from 0, of ``5,9``."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected row,column such as 5,9, from 0")
    return int(parts[0]), int(parts[1])


QUERY: dict[str, Any] = {"type": tokens, "metavar": "ROW,COLUMN"}
PIXELS: dict[str, Any] = {
    "type": cli.image_size, "metavar": "SIZE", "help": "pixels (default: the backbone's own)",
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("analysis.regions", __doc__, EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (
        _add_footprint, _add_reach, _add_masks, _add_erf, _add_bias, _add_attention,
    ):  # fmt: skip
        add_command(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], Any], doc: str
) -> cli.Parser:
    """Adds a subcommand; returns its parser."""
    subparser: cli.Parser = commands.add_parser(name, description=doc, help=doc)
    subparser.set_defaults(run=run)
    subparser.add_argument(
        "--plugin", action="append", default=argparse.SUPPRESS, metavar="MODULE",
        help="import a module that registers mixers of your own; repeatable",
    )  # fmt: skip
    if name != "reach":
        subparser.add_argument(
            "--out", action=files.OutFile, default=Path(f"{name}.png"), metavar="FILE",
            help=f"ends in {', '.join(figure_style.ENDINGS)} (default {name}.png)",
        )  # fmt: skip
        figure_style.add_describe(subparser)
    return subparser


def _add_weights(add: Any) -> None:
    add("--weights", type=Path, metavar="FILE", help="a .safetensors file (default: random)")
    add("--source", default="transom", metavar="NAME", help="whose names it has: timm, swin, ...")


def _add_block(add: Any) -> None:
    add("--stage", type=cli.count_from_one, default=1, metavar="N", help="default 1")
    add("--block", type=cli.count_from_one, default=1, metavar="N", help="default 1")
    _add_weights(add)


# -- a parser and a function per command -------------------------------------------------------


def _add_footprint(commands: Any) -> None:
    doc = "what a query token can reach after some blocks"
    parser = _command(commands, "footprint", _footprint, doc)
    cli.add_backbones(parser, "ours: through their stages, instead of --mixers", needed=False)
    add, size, count = parser.add_argument, cli.image_size, cli.count_from_one
    add("--mixers", nargs="+", metavar="MIXER", help="such as pale:size=7, or window+axial")
    add("--grid", type=size, default=(28, 28), metavar="SIZE", help="tokens (default 28x28)")
    add("--img-size", **PIXELS)
    add("--query", **QUERY, help="a token of the map (default 5,9 on 28x28; centre of a stage)")
    add("--blocks", type=count, nargs="+", default=[1, 2, 4], metavar="N", help="default 1 2 4")


def _footprint(args: argparse.Namespace) -> Study:
    from analysis.pictures import studies

    if args.backbone and args.mixers:
        raise SpecError("--mixers and names of backbones: choose one of the two")
    if args.backbone:
        return studies.backbone_footprints(args.backbone, args.img_size, args.query, args.blocks)
    return studies.footprints(args.mixers or MIXERS, args.grid, args.query, args.blocks)


def _add_reach(commands: Any) -> None:
    doc = "blocks until every token has seen the whole map"
    parser = _command(commands, "reach", _reach, doc)
    cli.add_backbones(parser, "ours, in the notation")
    add = parser.add_argument
    add("--img-size", **PIXELS)
    add("--format", choices=table.FORMATS, help="default: table, or by the ending of --out")
    add("--out", action=files.OutFile, metavar="FILE", help="write there instead of the terminal")


def _reach(args: argparse.Namespace) -> None:
    import backbones
    from analysis.models import reach
    from transom.progress import Bar

    rows: list[table.Row] = []
    specs = [(name, backbones.parse(name)) for name in args.backbone]
    shown = Bar(specs, unit="backbone")
    for name, spec in shown:
        shown.say(name)
        rows += [{"backbone": name, **row} for row in reach.reach(spec, args.img_size)]
    style = cli.chosen_format(args)
    note = (
        "blocks_to_see_its_map: going on with the stage's mixers, until every token has seen the "
        "stage's map (empty: never); image_seen: share of the image's patches that a token has "
        "seen when the stage ends; image_seen_after: blocks through all stages so far"
    )
    cli.emit(table.render(rows, style, note="" if style == "csv" else note), args)


def _add_masks(commands: Any) -> None:
    doc = "the groups after the cyclic shift, and each window's mask"
    add = _command(commands, "masks", _masks, doc).add_argument
    size, count = cli.image_size, cli.count_from_one
    add("--mixer", default="window:size=7", metavar="MIXER", help="default window:size=7")
    add("--grid", type=size, default=(14, 14), metavar="SIZE", help="tokens (default 14x14)")
    add("--index", type=int, choices=(0, 1), default=1, help="even or odd block (default 1)")
    add("--branch", type=count, default=1, metavar="N", help="of cross, axial, pale (default 1)")


def _masks(args: argparse.Namespace) -> Study:
    from analysis.pictures import studies

    return studies.masks(args.mixer, args.grid, index=args.index, branch=args.branch)


def _add_erf(commands: Any) -> None:
    doc = "gradient of the centre unit of a stage at every pixel"
    parser = _command(commands, "erf", _erf, doc)
    cli.add_backbones(parser, "ours, timm:, torchvision:")
    add, count = parser.add_argument, cli.count_from_one
    add("--stage", type=count, metavar="N", help="default: the last")
    add("--seeds", type=count, default=3, metavar="N", help="drawn models (default 3)")
    add("--img-size", **PIXELS)
    _add_weights(add)


def _erf(args: argparse.Namespace) -> Study:
    from analysis.pictures import views

    return views.erf(
        args.backbone, args.img_size, stage=args.stage, seeds=args.seeds, weights=args.weights,
        source=args.source,
    )  # fmt: skip


def _add_bias(commands: Any) -> None:
    doc = "relative position bias per head, as images and curves"
    parser = _command(commands, "bias", _bias, doc)
    cli.add_backbones(parser, "ours, in the notation", one=True)
    add = parser.add_argument
    add("--img-size", **PIXELS)
    _add_block(add)


def _bias(args: argparse.Namespace) -> Study:
    from analysis.pictures import views

    return views.bias(
        args.backbone, args.img_size, stage=args.stage, block=args.block, weights=args.weights,
        source=args.source,
    )  # fmt: skip


def _add_attention(commands: Any) -> None:
    doc = "what each head gives to every token, on a photo"
    parser = _command(commands, "attention", _attention, doc)
    cli.add_backbones(parser, "ours, in the notation", one=True)
    add = parser.add_argument
    add("--query", **QUERY, help="a token of the stage's map (default: its centre)")
    add("--image", type=Path, metavar="FILE", help="default: scikit-image's astronaut")
    add("--img-size", **PIXELS)
    _add_block(add)


def _attention(args: argparse.Namespace) -> Study:
    from analysis.pictures import views

    return views.attention(
        args.backbone, args.img_size, stage=args.stage, block=args.block, query=args.query,
        image=args.image, weights=args.weights, source=args.source,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    if args.command == "reach":
        _reach(args)
        return cli.AGREED
    figure_style.check_ending(args.out)
    files.checked(args.out)  # the default too
    figure_style.require()
    study = args.run(args)
    text = figure_style.in_words(study.figure, study.summary) if args.describe else None
    figure_style.save(study.figure, args.out, describe=text)
    cli.emit(f"wrote {args.out}: {study.summary}", None)
    return cli.AGREED


if __name__ == "__main__":
    cli.run(main)
