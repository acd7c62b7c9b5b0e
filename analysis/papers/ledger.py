"""Rows of the paper ledger: our count of a published figure, in the source's convention, and the
verdict on it."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import NamedTuple

from analysis.models import lookup
from analysis.papers import dense_heads, published
from backbones.families import pale, shuffle, swin, twins, vit
from backbones.specs import variants
from transom import table
from transom.progress import Bar

UNITS = {"params": 10**6, "flops": 10**9}
CLAIMS = {"params": "params_m", "flops": "flops_g"}
ROUNDS, ROUNDS_UP, CUT_OFF = "rounds to", "rounds up to", "cut off to"
MODES = {ROUNDS: ROUND_HALF_UP, ROUNDS_UP: ROUND_CEILING, CUT_OFF: ROUND_DOWN}
PRINTED = {  # of a family's figures, beside rounding
    ("cswin", "params"): ROUNDS_UP,  # 22.32 M is printed as 23M, 77.38 M as 78M
    ("shuffletransformer", "params"): CUT_OFF,  # 28.53 M as 28M
    ("shuffletransformer", "flops"): CUT_OFF,  # 4.673 G as 4.6G, 8.967 G as 8.9G
    ("msg", "flops"): CUT_OFF,  # 8.465 G as 8.4G, 14.252 G as 14.2G
    ("deit", "params"): CUT_OFF,  # 5.72 M as 5M, 86.57 M as 86M
    ("deit3", "params"): CUT_OFF,  # 22.06 M as 22.0M
    ("deit3", "flops"): CUT_OFF,  # 17.583 G as 17.5G
}
TOLERANCES = (Decimal("1"), Decimal("1.5"))  # percent

# Differences that were looked into and stay unexplained: (backbone, method, quantity).
UNEXPLAINED = {
    ("cswin_l", "classification", "flops"): "unknown: the authors' code gives our count too",
    ("cswin_l_384", "classification", "flops"): "unknown: the authors' code gives our count too",
    ("cswin_t", "UPerNet", "params"): "unknown: the FLOPs of this row agree with the same layers; "
    "Swin-T's row has this figure",
    ("cswin_l", "UPerNet", "flops"): "unknown, and no config is published: stripes of 12 instead "
    "of 7 give 2770 G",
    ("swin_l", "UPerNet", "flops"): "unknown: windows of 12 instead of 7 give 2583 G; this row's "
    "parameters agree, and so do Swin-B's FLOPs at this size",
    ("swin_t", "Semantic FPN", "flops"): "unknown: 180.4 G without norms and the windows' pads",
    ("swin_s", "Semantic FPN", "flops"): "unknown: 269.1 G without norms and the windows' pads",
}  # fmt: skip

# Differences within a tolerance whose cause is known: (backbone, quantity).
EXPLAINED = {
    ("vit_large_patch32_224", "params"): "305.51 M without the head, which has no released weights",
    ("deit3_small_patch16_384", "params"): "the figure of 224 pixels: more positions are embedded",
}
# Their FLOPs were counted by tools that count 5 for every element of a layer norm.
COUNTED_BY_TOOLS = (vit.VIT, vit.DEIT, vit.DEIT3, vit.MIXER)


class Count(NamedTuple):
    """A count of ours for one published figure.

    counted: in the source's convention.  macs: plain multiply-adds, None for parameters.  formula:
    the terms of the sum.  note: for the row if the digits differ.
    """

    counted: int
    macs: int | None
    formula: str
    note: str = ""


# -- counting --------------------------------------------------------------------------------


@lru_cache
def _norms(name: str, dense: bool, img_size: tuple[int, int]) -> dense_heads.Norms:
    return dense_heads.norm_elements(dense_heads.backbone(name, dense), *img_size)


def _norms_of_all(name: str, img_size: tuple[int, int]) -> int:
    """Elements of the layer norms of a classifier whose final norm has all tokens as its input,
    also those of the map that ours leaves out where it pools a token."""
    spec = variants.get(name).spec
    h, w = spec.grids(img_size)[-1]
    left_out = h * w * spec.stages[-1].dim if spec.pool == "token" else 0
    return _norms(name, False, img_size).layer + left_out


def _merged(name: str, img_size: tuple[int, int]) -> int:
    """Elements of the maps that stages merge to, and of their messengers."""
    spec = variants.get(name).spec
    stages = zip(spec.stages[1:], spec.grids(img_size)[1:], strict=True)
    return sum((h * w + stage.tokens_beside(h, w)) * stage.dim for stage, (h, w) in stages)


def _head(row: published.Row) -> list[dense_heads.Layer]:
    spec = variants.get(row["backbone"]).spec
    dims = [stage.dim for stage in spec.stages]
    return dense_heads.layers(row["method"], dims, spec.grids(row["img_size"]))


@lru_cache
def _foreign_counts(name: str, img_size: tuple[int, int]) -> tuple[int, int, int]:
    """(parameters, multiply-adds, multiply-adds of products of two activations) of timm's model."""
    import torch

    from analysis.counting import counters

    with torch.device("meta"):
        model = lookup.find(name).make(img_size)
    tally = counters.on_meta(model, (1, 3, *img_size))
    params = sum(p.numel() for p in model.parameters())
    return params, tally.macs[""], tally.operators["bmm"]


def count_params(row: published.Row) -> Count:
    if ":" in row["backbone"]:
        return Count(_foreign_counts(row["backbone"], row["img_size"])[0], None, "parameters")
    dense = row["task"] != "imagenet"
    total = sum(p.numel() for p in dense_heads.backbone(row["backbone"], dense).parameters())
    if not dense:
        return Count(total, None, "parameters")
    total += sum(layer.params for layer in _head(row))
    return Count(total, None, "backbone + head parameters")


def count_flops(row: published.Row) -> Count:
    name, size, dense = row["backbone"], row["img_size"], row["task"] != "imagenet"
    if ":" in name:
        _, macs, products = _foreign_counts(name, size)
        return Count(macs - products, macs, "MACs - attention products")
    parts = dense_heads.backbone(name, dense).cost(*size)
    head = _head(row) if dense else []
    macs = sum(part.macs for part in parts) + sum(layer.macs for layer in head)
    formula = "backbone + head MACs" if dense else "MACs"
    source = variants.get(name).source
    if source == swin.SWIN_V2 and not dense:
        bias = sum(part.macs for part in parts if part.column == "position")
        return Count(macs - bias, macs, f"{formula} - log-CPB")
    if source == pale.PALE:
        norms, batch = _norms(name, dense, size), 5 if dense else 2
        counted = macs + 5 * norms.layer + batch * norms.batch
        return Count(counted, macs, f"{formula} + 5 LN + {batch} BN of the backbone")
    if source == swin.SWIN and dense:
        batch = sum(layer.norm_elements for layer in head)
        counted = macs + 5 * _norms(name, dense, size).layer + 2 * batch
        return Count(counted, macs, f"{formula} + 5 LN + 2 BN")
    if source in COUNTED_BY_TOOLS and not dense:
        return Count(macs + 5 * _norms_of_all(name, size), macs, f"{formula} + 5 LN")
    if source == shuffle.MSG and not dense:
        elements = _norms_of_all(name, size) + _merged(name, size)
        return Count(macs + elements, macs, f"{formula} + LN, twice where maps merge")
    if source == twins.TWINS:
        products = sum(part.macs for part in parts if part.column == "mixing")
        return Count(macs - products, macs, f"{formula} - attention products")
    pads = sum(part.padding for part in parts)
    note = f"unknown: {(macs - pads) / 1e9:.1f} G without the pads of the stripes" if pads else ""
    return Count(macs, macs, formula, note)


# -- verdicts --------------------------------------------------------------------------------


def difference(claimed: int | float, counted: int, unit: int) -> Decimal:
    """Percent by which a count exceeds a claim; unit: of the claim."""
    return 100 * (Decimal(counted) / unit / Decimal(str(claimed)) - 1)


def compare_claim(claimed: int | float, counted: int, unit: int, *, also: str = "") -> str:
    """The result of comparing a count with a figure printed as `str(claimed)` units.

    also: another way in which the source makes digits, a key of `MODES`.
    """
    printed, exact = Decimal(str(claimed)), Decimal(counted) / unit
    step = Decimal(1).scaleb(int(printed.as_tuple().exponent))
    for verdict in filter(None, (ROUNDS, also)):
        if exact.quantize(step, rounding=MODES[verdict]) == printed:
            return verdict
    off = difference(claimed, counted, unit)
    for tolerance in TOLERANCES:
        if abs(off) <= tolerance:
            return f"within {tolerance}%"
    return f"differs by {off:+.1f}%"


def ledger(rows: Iterable[published.Row]) -> list[table.Row]:
    """A row per published parameter count and FLOPs figure of `published.rows`."""
    ledger_rows = []
    for row in Bar(rows, unit="row"):
        for quantity, count in (("params", count_params), ("flops", count_flops)):
            if row[CLAIMS[quantity]] is not None:
                ledger_rows.append(_ledger_row(row, quantity, count(row)))
    return ledger_rows


def _ledger_row(row: published.Row, quantity: str, count: Count) -> table.Row:
    claimed, unit = row[CLAIMS[quantity]], UNITS[quantity]
    family = row["backbone"].split("_")[0]
    also = PRINTED.get((family, quantity), "")
    verdict = compare_claim(claimed, count.counted, unit, also=also)
    known = EXPLAINED.get((row["backbone"], quantity), count.note)
    cause = known if verdict.startswith("within") else ""
    if verdict.startswith("differs by"):
        cause = UNEXPLAINED.get((row["backbone"], row["method"], quantity), "")
        verdict = verdict.replace("differs by", "not reproducible:") if cause else verdict
    h, w = row["img_size"]
    return {
        **{name: row[name] for name in ("backbone", "task", "method", "pretrain")},
        "img_size": str(h) if h == w else f"{h}x{w}", "schedule": row["schedule"],
        "quantity": quantity, "claimed": claimed,
        "counted": count.counted, "macs": count.macs, "formula": count.formula,
        "difference_%": float(round(difference(claimed, count.counted, unit), 3)),
        "verdict": verdict, "cause": cause, "source": row["source"],
        "second_hand": published.is_second_hand(row, CLAIMS[quantity]),
        "unconfirmed": published.is_unconfirmed(row, CLAIMS[quantity]),
    }  # fmt: skip
