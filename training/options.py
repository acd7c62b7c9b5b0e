"""Options of a training comparison that `training.compare` and `training.study` share."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.pictures import figure_style
from transom import cli, files
from transom.fields import read_number


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds every option but the backbones and which of them is the baseline."""
    add = parser.add_argument
    add("--data", default="order", metavar="NAME", help="name or path (default: order)")
    add("--budget", default="300steps", metavar="AMOUNT",
        help="2e15macs, 500steps, 10epochs, 0.5h (default 300steps)")  # fmt: skip
    add("--seeds", type=cli.count_from_one, default=7, metavar="N",
        help="runs of every backbone (default 7, the least that can decide)")  # fmt: skip
    add("--recipe", default="micro", metavar="NAME",
        help="micro, swin, timm-a1, simmim, micro-simmim, with fields as in swin:lr=1e-3,mixup=0, "
        "or a .toml file")  # fmt: skip
    add("--lr", type=_rates, default=(), metavar="RATE[,RATE]",
        help="in place of the recipe's; of several the best on images that are not judged")
    add("--batch", type=cli.count_from_one, default=64, metavar="N",
        help="images of a step, on all devices together (default 64)")  # fmt: skip
    add("--img-size", type=cli.image_size, metavar="SIZE", help="pixels (default: the data's)")
    add("--weights", metavar="FILE",
        help="start every run from a file or hf:OWNER/NAME; a head of other classes is fresh")
    add("--partial", choices=("none", "replaced", "fitting"), default="none",
        help="of --weights: all of them (default), all but replaced mixers, or whatever fits")
    add("--keep-weights", action="store_true",
        help="keep trained weights in FILE.d of --store, for --weights and backbones.convert")
    add("--target", type=_share, metavar="SHARE",
        help="accuracy such as 0.95: judge the steps to it")  # fmt: skip
    add("--eval-size", nargs="+", type=cli.image_size, default=[], metavar="SIZE",
        help="also evaluate the trained models at these sizes, windows kept and in proportion")
    add("--evaluations", type=cli.count_from_one, default=20, metavar="N",
        help="of a run, equally spaced (default 20)")  # fmt: skip
    add("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="default: fp32")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 (default cpu)")
    add("--backend", choices=("reference", "cpu", "kernel"), default="cpu",
        help="of our mixers (default cpu)")  # fmt: skip
    add("--jobs", type=cli.count_from_one, metavar="N",
        help="runs at a time (default: one a core on a CPU, else 1; on a cluster all)")  # fmt: skip
    add("--threads", type=cli.count_from_one, default=1, metavar="N",
        help="of a run on a CPU; other threads, other bits (default 1)")  # fmt: skip
    add("--workers", type=_count, metavar="N",
        help="processes of a run that make its batches (default: 0 for arrays, else up to 8)")
    add("--compile", action="store_true",
        help="train through torch.compile; its time counts, and the last digits differ")
    add("--store", type=Path, metavar="FILE", help="keep runs and checkpoints in FILE and FILE.d")
    add("--resume", action="store_true", help="go on with the runs of --store")
    add("--submit", choices=("local", "slurm"),
        help="make the runs of --store in jobs of a cluster, or of this machine (submitit)")
    add("--partition", metavar="NAME", help="of Slurm (default: its own)")
    add("--gpus-per-job", type=cli.count_from_one, metavar="N",
        help="GPUs of a run of --submit with --device cuda (default 1)")  # fmt: skip
    add("--minutes", type=cli.count_from_one, metavar="N",
        help="time limit of a job, which saves before it and goes on (default 240)")  # fmt: skip
    add("--table", nargs="+", type=Path, default=[], metavar="FILE",
        help="show stored runs instead of making any")  # fmt: skip
    add("--figure", action=files.OutFile, metavar="FILE", help="also draw the curves: .svg, .png")
    figure_style.add_describe(parser)
    add("--save-steps", type=cli.count_from_one, default=0, metavar="N",
        help="steps between checkpoints (default: as many as take a minute)")  # fmt: skip
    cli.add_output(parser)


def _count(text: str) -> int:
    return 0 if text == "0" else cli.count_from_one(text)


def _rates(text: str) -> tuple[float, ...]:
    try:
        found = tuple(read_number(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) <= 0 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected rates above 0 such as 1e-3,3e-3")
    return found


def _share(text: str) -> float:
    try:
        value = read_number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share such as 0.95 or 95%")
    return value
