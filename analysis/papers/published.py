"""Published numbers with their sources, from `published.csv` in this folder."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.csv")
TASKS = ("imagenet", "coco", "ade20k")
RANKED_BY = {"imagenet": "top1", "coco": "box_ap", "ade20k": "miou_ss"}  # what a task is ranked by
NUMBERS = ("params_m", "flops_g", "top1", "box_ap", "mask_ap", "miou_ss", "miou_ms")
MAIN_METHOD = {"imagenet": "classification", "coco": "Mask R-CNN", "ade20k": "UPerNet"}

Row = dict[str, Any]


def _number(text: str) -> int | float | None:
    """The number of a cell; `str` of it equals the printed text, so that digits can be counted."""
    return None if not text else int(text) if text.isdecimal() else float(text)


@lru_cache
def _read() -> tuple[Row, ...]:
    with FILE.open(encoding="utf-8", newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        row |= {name: _number(row[name]) for name in NUMBERS}
        sides = [int(side) for side in row["img_size"].split("x")]
        row["img_size"] = (sides[0], sides[-1])
    return tuple(rows)


def rows() -> list[Row]:
    """All rows: the columns of the file, numbers as int or float, None where nothing was published,
    and img_size as (height, width) in pixels.  backbone: a variant of ours, or timm:NAME.

    params_m: millions.  flops_g: billions, in the source's own convention.  second_hand: no, all,
    or the column that was taken from a transcription instead of from the authors.
    """
    return [dict(row) for row in _read()]


def of(backbone: str, task: str | None = None) -> list[Row]:
    """The rows of a variant, for one task of `TASKS` or all."""
    return [r for r in rows() if r["backbone"] == backbone and task in (None, r["task"])]


def best(backbone: str, task: str) -> Row | None:
    """The row for comparisons with other backbones: the task's main method (`MAIN_METHOD`), with
    ImageNet-1K pre-training where that was published, and of several rows the highest; None if
    there is none."""
    candidates = [r for r in of(backbone, task) if r["method"] == MAIN_METHOD[task]]
    candidates = [r for r in candidates if r[RANKED_BY[task]] is not None]
    in1k_only = [r for r in candidates if r["pretrain"] == "ImageNet-1K"]
    return max(in1k_only or candidates, key=lambda row: row[RANKED_BY[task]], default=None)


def is_second_hand(row: Row, column: str) -> bool:
    """True if this number of a row was taken from a transcription of the paper."""
    return row["second_hand"] == "all" or column in row["second_hand"].split()


def is_unconfirmed(row: Row, column: str) -> bool:
    """True if this number is second hand and was not found in the paper."""
    return is_second_hand(row, column) and "unconfirmed" in row["source"]
