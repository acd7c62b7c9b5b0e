"""The published figures: read as printed, complete, one row each, and chosen as stated."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter

import pytest

from analysis.models import lookup
from analysis.papers import published
from backbones.families import ours
from backbones.specs import variants

ROWS = published.rows()
RAW = list(csv.DictReader(published.FILE.open(encoding="utf-8", newline="")))


def test_numbers_are_as_printed():
    """str() of a number gives the digits of the file back."""
    for row, raw in zip(ROWS, RAW, strict=True):
        for name in published.NUMBERS:
            assert ("" if row[name] is None else str(row[name])) == raw[name], raw


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['backbone']}-{row['method']}")
def test_row_is_whole(row):
    """A variant of ours or a model of timm's, a known task and head, size, measure and source."""
    source, _, _ = row["backbone"].rpartition(":")
    own = lookup.find(row["backbone"]).img_size
    assert source or variants.get(row["backbone"]).spec.name == row["backbone"]  # no alias
    assert source in ("", "timm") and row["task"] in published.TASKS
    ranked = row[published.RANKED_BY[row["task"]]] is not None
    assert ranked == (row["pretrain"] != "no weights")
    assert row["source"] and row["pretrain"] and min(row["img_size"]) >= 224
    assert row["second_hand"] in ("no", "all", *published.NUMBERS)
    if row["task"] == "imagenet":
        assert row["img_size"] == own and row["method"] == "classification"
    else:
        assert row["schedule"]


def test_no_figure_stands_twice():
    keys = ("backbone", "official", "task", "method", "pretrain", "img_size", "schedule")
    assert max(Counter(tuple(row[k] for k in keys) for row in ROWS).values()) == 1


def test_every_variant_of_a_paper_has_its_figures():
    papers = {n for n in variants.names() if variants.get(n).source != ours.OURS}
    found = {row["backbone"] for row in ROWS if row["task"] == "imagenet"}
    assert {name for name in found if ":" not in name} == papers


def test_what_has_no_weights_is_said_in_the_source():
    """timm counts some models of which it has no weights: they have no rank."""
    found = [row for row in ROWS if row["pretrain"] == "no weights"]
    assert len(found) == 5
    for row in found:
        assert row["source"].endswith("(no released weights)") and row["flops_g"]
        assert published.best(row["backbone"], "imagenet") is None


def test_pale_is_labelled():
    """Parameters and top-1 are in the abstract, FLOPs and all dense results are transcribed, from
    where no Pale row was found again."""
    found = [row for row in ROWS if row["backbone"].startswith("pale_")]
    assert len(found) == 9
    for row in found:
        dense = row["task"] != "imagenet"
        for column in published.NUMBERS:
            second = dense or column == "flops_g"
            assert published.is_second_hand(row, column) == second
            assert published.is_unconfirmed(row, column) == second


def test_second_hand_is_said_in_the_source():
    """In words, beside the column that says which numbers; nothing but Pale's is unconfirmed."""
    for row in ROWS:
        assert ("second hand" in row["source"]) == (row["second_hand"] != "no")
        pale = row["backbone"].startswith("pale_")
        assert published.is_unconfirmed(row, "flops_g") == pale
    others = {(r["backbone"], r["method"], r["schedule"]) for r in ROWS if r["second_hand"] == "all"
              and not r["backbone"].startswith("pale_")}  # fmt: skip
    assert others == {
        *((f"cswin_{size}", "Mask R-CNN", "1x") for size in "tsb"),
        *((f"swin_{size}", "Semantic FPN", "80k") for size in "tsb"),
        *((f"dat_{size}", "classification", "") for size in "tsb"),
    }


@pytest.mark.parametrize(
    ("backbone", "method", "schedule", "wanted"),
    [
        ("swin_t", "Mask R-CNN", "1x", (48, 267, 43.7, 39.8)),
        ("swin_t", "Cascade Mask R-CNN", "1x", (86, 745, 48.1, 41.7)),
        ("cswin_t", "Cascade Mask R-CNN", "3x", (80, 757, 52.5, 45.3)),
        ("cswin_s", "Cascade Mask R-CNN", "3x", (92, 820, 53.7, 46.4)),
        ("cswin_b", "Cascade Mask R-CNN", "3x", (135, 1004, 53.9, 46.4)),
        ("cswin_t", "Mask R-CNN", "1x", (None, None, 46.7, 42.2)),
        ("cswin_t", "Semantic FPN", "80k", (26, 202, 48.2, None)),
        ("cswin_s", "Semantic FPN", "80k", (39, 271, 49.2, None)),
        ("cswin_b", "Semantic FPN", "80k", (81, 464, 49.9, None)),
        ("swin_t", "Semantic FPN", "80k", (None, 182, 41.5, None)),
        ("swin_b", "Semantic FPN", "80k", (None, 422, 46.0, None)),
    ],
)
def test_dense_rows(backbone, method, schedule, wanted):
    """Parameters, FLOPs, box AP or mIoU, mask AP, as the sources print them."""
    rows = [r for r in published.of(backbone) if r["method"] == method]
    (row,) = [r for r in rows if r["schedule"] == schedule]
    measure = row[published.RANKED_BY[row["task"]]]
    assert (row["params_m"], row["flops_g"], measure, row["mask_ap"]) == wanted


@pytest.mark.parametrize(
    ("backbone", "task", "measure", "value", "pretrain"),
    [
        ("swin_t", "imagenet", "top1", 81.2, "ImageNet-1K"),
        ("swin_b", "imagenet", "top1", 83.5, "ImageNet-1K"),  # not 85.2, after ImageNet-22K
        ("swin_l", "imagenet", "top1", 86.3, "ImageNet-22K"),  # nothing else was published
        ("vit_base_patch16_224", "imagenet", "top1", 79.154, "ImageNet-1K"),
        ("vit_tiny_patch16_224", "imagenet", "top1", 75.452, "ImageNet-21K"),
        ("deit3_base_patch16_224", "imagenet", "top1", 83.8, "ImageNet-1K"),
        ("swin_t", "coco", "box_ap", 46.0, "ImageNet-1K"),  # not Cascade's 50.4
        ("cswin_b", "ade20k", "miou_ss", 51.1, "ImageNet-1K"),
        ("pale_s", "ade20k", "miou_ms", 52.2, "ImageNet-1K"),
    ],
)
def test_best(backbone, task, measure, value, pretrain):
    row = published.best(backbone, task)
    assert row is not None and (row[measure], row["pretrain"]) == (value, pretrain)


def test_nothing_is_made_up():
    assert published.best("swin_b", "coco") is None  # only Cascade Mask R-CNN
    assert published.best("axial_t", "imagenet") is None and published.of("axial_t") == []


def test_rows_are_copies():
    published.rows()[0]["top1"] = 0
    assert published.rows() == ROWS


def test_loading_needs_no_torch():
    code = "import sys; from analysis.papers import published; published.rows(); "
    code += "assert 'torch' not in sys.modules"
    root = published.FILE.parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
