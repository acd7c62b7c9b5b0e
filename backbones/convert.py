"""Converts weights of other repositories, such as Swin's or timm's ViT, to a file of ours.

The state dict in a file is found by its structure, the library by the keys, and the backbone by
the shapes; what these do not tell is asked for by name.  Nothing in a file is ever run, and
nothing is written unless everything fits.
"""

from __future__ import annotations

import argparse
import os

from backbones.names.key_rules import METHODS, PARTIAL, SOURCES, TARGETS
from transom import cli, files
from transom.errors import SpecError, printable
from transom.fields import read_number, read_size

EPILOG = """examples:
  python -m backbones.convert swin_tiny_patch4_window7_224.pth --to swin_t.safetensors
  python -m backbones.convert timm.safetensors --source-img-size 224 --check --to ours.safetensors
  python -m backbones.convert swin.pth --img-size 384 --window 12 --num-classes 10 --to new.safetensors
  python -m backbones.convert mask_rcnn.pth --source-img-size 224 --to body.safetensors
  python -m backbones.convert swin.pth --spec swin_t/3=pale --partial replaced --to hybrid.safetensors
  python -m backbones.convert ours.safetensors --as torchvision --to theirs.safetensors
  python -m backbones.convert hf:timm/swin_tiny_patch4_window7_224.ms_in1k --spec swin_t --to s.safetensors
  python -m backbones.convert deit_tiny_patch16_224.pth --img-size 384 --to deit_384.safetensors

--check compares before anything is resized: the source's library and ours on one input, or ours
with the input and logits of a .safetensors file.

exit code: 0 converted, 1 converted but --check differs by more than 1e-5 of the largest logit,
2 refused; nothing is written"""  # noqa: E501


def _sizes(text: str) -> list[tuple[int, int]]:
    try:
        return [read_size(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {error}; one a stage") from None


def _windows_or_none(text: str) -> list[tuple[int, int] | None]:
    return [None if part in ("0", "none") else _sizes(part)[0] for part in text.split(",")]


def _counts(text: str) -> list[int]:
    return [cli.count_from_one(part) for part in text.split(",")]


def _numbers(text: str) -> list[float]:
    try:
        return [read_number(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {error}; one a stage") from None


def _rename_pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old.strip("."):
        raise argparse.ArgumentTypeError(f"{text!r}: expected OLD=NEW, parts of names")
    return old, new


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("backbones.convert", __doc__, EPILOG)
    parser.add_argument("file", help=".safetensors, .pth or hf:owner/name")
    parser.add_argument("--to", action=files.OutFile, required=True, metavar="OUT.safetensors")
    parser.add_argument("--spec", help="the backbone of the weights, default: from their shapes; "
                        "with --partial, the one to be made")
    parser.add_argument("--source", choices=tuple(SOURCES), metavar="NAME",
                        help=f"whose names they are, of {', '.join(SOURCES)}; default: from the "
                        "keys")
    parser.add_argument("--entry", help="which state dict, of several in a file: ema.module")
    parser.add_argument("--prefix", default="", help="which backbone, of several: encoder.")
    parser.add_argument("--partial", choices=PARTIAL,
                        help="replaced: all outside what differs between the weights' backbone and "
                        "--spec; fitting: whatever fits by name and shape.  The rest starts fresh")
    parser.add_argument("--drop", action="append", default=[], metavar="NAME",
                        help="leave this tensor out; * stands for anything; repeatable")
    parser.add_argument("--rename", action="append", default=[], type=_rename_pair,
                        metavar="OLD=NEW",
                        help="exchange a part of all names, such as attn.core=attn; repeatable")
    parser.add_argument("--as", dest="target", choices=TARGETS, metavar="NAME",
                        help="write the names and layout of this source instead of ours")
    unstated = parser.add_argument_group("what the shapes do not tell (one value, or one a stage)")
    unstated.add_argument("--source-window", type=_sizes, metavar="SIZES", help="8 or 1,2,7,7")
    unstated.add_argument("--pretrained-window", type=_windows_or_none, metavar="SIZES",
                      help="12,12,12,6; 0: the window itself")  # fmt: skip
    unstated.add_argument("--source-img-size", type=cli.image_size, metavar="SIZE")
    unstated.add_argument("--qk-scale", type=_numbers, metavar="NUMBERS",
                      help="0.25 or one a stage; default: heads' channels ** -0.5")
    unstated.add_argument("--heads", type=_counts, metavar="COUNTS", help="3,6,12,24")
    target = parser.add_argument_group("what the new file has otherwise")
    target.add_argument("--img-size", type=cli.image_size, metavar="SIZE")
    target.add_argument("--window", type=cli.image_size, metavar="SIZE")
    target.add_argument("--num-classes", type=int, metavar="N", help="a new head; 0: none")
    target.add_argument("--in-channels", type=cli.count_from_one, metavar="N")
    target.add_argument("--resize", choices=METHODS, default="bicubic", help="default: bicubic")
    target.add_argument("--check", nargs="?", const=True, metavar="IO.safetensors",
                         help="compare with the source model, or with its stored input and logits")
    cli.add_output(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    cli.load_plugins(args.plugin)
    if not args.file.startswith("hf:") and not os.path.lexists(args.file):
        reason = "No such file or directory; expected a .safetensors or .pth file"
        raise SpecError(f"{printable(args.file)}: cannot be read: {reason}")
    from backbones.weights.conversion import convert

    code, text = convert(args)
    cli.emit(text, args)
    return code


if __name__ == "__main__":
    cli.run(main)
