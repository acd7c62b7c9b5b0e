"""Numbers that the authors published, each with its source; `published.csv` beside this file."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.csv")
TASKS = ("imagenet", "coco", "ade20k")
MEASURES = {"imagenet": "top1", "coco": "box_ap", "ade20k": "miou_ss"}  # what a task is ranked by
NUMBERS = ("params_m", "flops_g", "top1", "box_ap", "mask_ap", "miou_ss", "miou_ms")
USUAL = {"imagenet": "classification", "coco": "Mask R-CNN", "ade20k": "UPerNet"}

Row = dict[str, Any]


def _number(text: str) -> int | float | None:
    """As printed: `str` of it gives the text back, so that its digits can be counted."""
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
    """Every row: the columns of the file, with numbers as int or float, None where nothing was
    published, and img_size as (height, width).  backbone: a variant of ours, or timm:NAME.

    params_m: millions.  flops_g: billions, in the source's own convention.  second_hand: no, all,
    or the column that was taken from a transcription instead of from the authors.
    """
    return [dict(row) for row in _read()]


def of(backbone: str, task: str | None = None) -> list[Row]:
    """The rows of one variant, of one task of `TASKS` or of all."""
    return [r for r in rows() if r["backbone"] == backbone and task in (None, r["task"])]


def best(backbone: str, task: str) -> Row | None:
    """The row to set beside other backbones: the usual method of the task (`USUAL`), pre-trained
    on ImageNet-1K where that was published, since more data is not the backbone's merit; of
    several, the highest."""
    found = [r for r in of(backbone, task) if r["method"] == USUAL[task]]
    found = [r for r in found if r[MEASURES[task]] is not None]
    plain = [r for r in found if r["pretrain"] == "ImageNet-1K"]
    return max(plain or found, key=lambda row: row[MEASURES[task]], default=None)


def is_second_hand(row: Row, column: str) -> bool:
    """Whether this number of the row came through a transcription."""
    return row["second_hand"] == "all" or column in row["second_hand"].split()


def is_unconfirmed(row: Row, column: str) -> bool:
    """Whether this number is second hand and its source says that nobody found it there again."""
    return is_second_hand(row, column) and "unconfirmed" in row["source"]
