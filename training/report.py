"""What a comparison shows: a table with intervals and verdicts, and the curves."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from training.judge import Comparison, Runs, interval, judge, pairing

Row = dict[str, Any]


def by_backbone(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Judged rows of every backbone, in the order of the first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("kind") == "run" and not row["tuning"]:
            found.setdefault(row["backbone"], []).append(row)
    return found


def correct_of(row: Row) -> np.ndarray:
    """One bool per test image; a run that diverged or failed has none correct."""
    bits = np.frombuffer(base64.b64decode(row["correct"]), np.uint8)
    if not bits.size:
        return np.zeros(row["test_images"], bool)
    return np.unpackbits(bits, count=row["test_images"]).astype(bool)


def accuracies(name: str, rows: Sequence[Row]) -> Runs:
    """Accuracy by seed at the end of the budget; what diverged or failed counts as chance."""
    return Runs(
        name=name, seeds=tuple(row["seed"] for row in rows),
        scores=tuple(row["accuracy"] for row in rows),
        correct=tuple(map(correct_of, rows)),
    )  # fmt: skip


def arrival(row: Row, target: float, unit: str) -> float:
    """Steps, MACs or seconds of the first evaluation at or above the target; inf for a miss."""
    return next((p[unit] for p in row["curve"] if p["accuracy"] >= target), math.inf)


def arrivals(name: str, rows: Sequence[Row], target: float, unit: str = "steps") -> Runs:
    """What every seed spent until the target."""
    return Runs(
        name=name, seeds=tuple(row["seed"] for row in rows),
        scores=tuple(float(arrival(row, target, unit)) for row in rows),
    )  # fmt: skip


def table_rows(rows: Sequence[Row], baseline: str | None, target: float | None) -> list[Row]:
    """A row per backbone.

    Args:
        rows: of the store.
        baseline: backbone that the others are compared with; None: the first.
        target: accuracy; with it, the verdict is on the steps to it.
    """
    groups = by_backbone(rows)
    scored = [accuracies(name, runs) for name, runs in groups.items()]
    if target is not None:
        judged = [arrivals(name, runs, target) for name, runs in groups.items()]
    else:
        judged = scored
    verdicts = _verdicts(judged, baseline, higher=target is None)
    first = baseline or next(iter(groups), None)
    found = []
    for (name, runs), scores in zip(groups.items(), scored, strict=True):
        at = interval(scores)
        row: Row = {
            "backbone": name, "params": runs[0].get("params"),
            "MACs": runs[0].get("macs_per_image"), "seeds": len(runs),
            "accuracy, %": round(100 * at.centre, 2),
            "95%": f"{100 * at.low:.1f} to {100 * at.high:.1f}",
        }  # fmt: skip
        if target is not None:
            row |= _target_columns(name, runs, target)
        row |= _spent(runs)
        row["verdict"] = "baseline" if name == first else _words(verdicts.get(name))
        if bad := [run for run in runs if run["status"] != "ok"]:
            row["not ok"] = f"{len(bad)}: {bad[0]['status']}, {bad[0]['reason']}"
        found.append(row)
    return found


def _verdicts(judged: Sequence[Runs], baseline: str | None, higher: bool) -> dict[str, Comparison]:
    if len(judged) < 2:
        return {}
    return {found.left: found for found in judge(judged, baseline=baseline, higher=higher)}


def _words(found: Comparison | None) -> str:
    if found is None:
        return ""
    return f"{found.word}: {found.why}" if found.why else f"{found.word} (p = {found.p:.2g})"


def _target_columns(name: str, runs: Sequence[Row], target: float) -> Row:
    at = interval(arrivals(name, runs, target))
    cost = median(arrival(run, target, "macs") for run in runs)
    seconds = median(arrival(run, target, "seconds") for run in runs)
    return {
        f"steps to {target:.0%}": at.centre, "95% of the steps": f"{at.low:g} to {at.high:g}",
        f"GMACs to {target:.0%}": cost / 1e9, f"s to {target:.0%}": seconds,
    }  # fmt: skip


def _spent(runs: Sequence[Row]) -> Row:
    """What a run spent, in all four units, and its speed: medians over seeds."""
    done = [run for run in runs if "steps" in run]
    if not done:
        return {}
    units = ("steps", "macs", "epochs", "seconds")
    middle = {unit: median(run[unit] for run in done) for unit in units}
    rates = [run["images"] / run["seconds"] for run in done if run["seconds"]]
    return {
        "steps": middle["steps"], "TMACs": middle["macs"] / 1e12,
        "epochs": round(middle["epochs"], 2), "s": round(middle["seconds"], 1),
        "images/s": round(median(rates), 1) if rates else None,
    }  # fmt: skip


def notes(rows: Sequence[Row], baseline: str | None, target: float | None) -> list[str]:
    """Sentences below the table: what was equal, how the verdict is made, whether pairing helps."""
    groups = by_backbone(rows)
    if not groups:
        return []
    first = next(iter(groups.values()))[0]
    identity = first["identity"]
    found = [
        f"{identity['data']}, {first['test_images']:,} test images; budget {identity['budget']} "
        f"for every run, batch {identity['batch']}, recipe {identity['recipe.name']}; training "
        "costs 3 forwards; s is training alone, without evaluation",
        "better or worse: at least 7 seeds a side, exact Mann-Whitney p < 0.002 and Holm's p over "
        "all pairs of the table < 0.05; interval: bootstrap over seeds and test images"
        + ("; the verdict is on the steps to the target, a miss is inf" if target else ""),
    ]
    scored = [accuracies(name, runs) for name, runs in groups.items()]
    base = next((each for each in scored if each.name == baseline), scored[0])
    others = [pairing(each, base) for each in scored if each is not base]
    known = [ratio for _, ratio, _ in others if ratio is not None]
    if known:
        middle = median(known)
        word = f"would narrow it to {middle:.0%}" if middle < 1 else "would not narrow it"
        found.append(
            f"pairing by seed {word} of the spread of unpaired differences (median of "
            f"{len(known)} pairs); the verdicts do not use it"
        )
    return found


def draw(rows: Sequence[Row], out: Path) -> None:
    """Curves of accuracy by training MACs: the median over seeds, and the band of all of them."""
    from analysis.pictures import figure_style

    figure = figure_style.figure(7, 4.5)
    ax = figure.subplots()
    for number, (name, runs) in enumerate(by_backbone(rows).items()):
        curves = [run["curve"] for run in runs if run["curve"]]
        if not curves:
            continue
        length = min(map(len, curves))
        x = [point["macs"] / 1e12 for point in curves[0][:length]]
        y = np.array([[100 * p["accuracy"] for p in curve[:length]] for curve in curves])
        color = f"C{number % 10}"
        ax.plot(x, np.median(y, axis=0), color=color, label=figure_style.words(name), linewidth=1.5)
        ax.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
    ax.set_xlabel("multiply-adds of training, T")
    ax.set_ylabel("accuracy, % (median and range over seeds)")
    ax.legend(fontsize=8)
    figure_style.save(figure, out)
