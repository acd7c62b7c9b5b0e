"""What a comparison shows: a table with intervals and verdicts, and the curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from training.data.bits import unpacked
from training.judge import Comparison, Runs, interval, judge, pairing
from transom.layout import Look
from transom.table import plain

Row = dict[str, Any]


def by_backbone(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Judged rows of every backbone, in the order of the plans, else of the first appearance."""
    listed = [name for row in rows if row.get("kind") == "plan" for name in row["backbones"]]
    found: dict[str, list[Row]] = {name: [] for name in listed}
    for row in rows:
        if row.get("kind") == "run" and not row["tuning"]:
            found.setdefault(row["backbone"], []).append(row)
    return {name: runs for name, runs in found.items() if runs}


def correct_of(row: Row) -> np.ndarray:
    """One bool per test image; a run that diverged or failed has none correct."""
    return unpacked(row["correct"], row["test_images"])


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


# -- other image sizes -----------------------------------------------------------------------------


def sizes_of(rows: Sequence[Row]) -> list[str]:
    """Sizes that the trained models were evaluated at besides, such as 48 or 48x64."""
    found = {_short(at["size"]): None for row in rows for at in row.get("at") or ()}
    return list(found)


def _short(size: Sequence[int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def accuracies_at(name: str, rows: Sequence[Row], size: str, windows: str) -> Runs | None:
    """Accuracy by seed at another image size; None where no run was evaluated so.

    Args:
        name: of the backbone.
        rows: of the backbone.
        size: one of `sizes_of`.
        windows: kept, or scaled in proportion to the image.
    """
    found = [
        {(_short(at["size"]), at["windows"]): at for at in row.get("at") or ()}.get((size, windows))
        for row in rows
    ]
    if not any(found):
        return None
    pairs = list(zip(found, rows, strict=True))  # None where a run diverged or failed
    return Runs(
        name=name, seeds=tuple(row["seed"] for row in rows),
        scores=tuple(at["accuracy"] if at else 1 / row["classes"] for at, row in pairs),
        correct=tuple(
            unpacked(at["correct"] if at else "", row["test_images"]) for at, row in pairs
        ),
    )  # fmt: skip


def _size_columns(name: str, runs: Sequence[Row], sizes: Sequence[str]) -> Row:
    """A column a size: mean accuracy with the windows kept / scaled, where both were measured."""
    columns = {}
    for size in sizes:
        both = [accuracies_at(name, runs, size, windows) for windows in ("kept", "scaled")]
        shown = [f"{100 * interval(each).centre:.1f}" for each in both if each is not None]
        columns[f"at {size}, %"] = " / ".join(shown)
    return columns


def _size_notes(groups: dict[str, list[Row]], baseline: str | None) -> list[str]:
    """What the columns of other sizes hold, and a verdict a size and kind of windows."""
    sizes = sizes_of([row for runs in groups.values() for row in runs])
    if not sizes:
        return []
    lines = ["at a size: the trained weights on larger or smaller images, windows as they are / in "
             "proportion to the image (token_mlp has none)"]  # fmt: skip
    for size in sizes if len(groups) > 1 else ():
        for windows, words in ("kept", "windows as they are"), ("scaled", "windows in proportion"):
            at = {name: accuracies_at(name, runs, size, windows) for name, runs in groups.items()}
            if not any(at.values()):
                continue
            judged = [
                found for name, runs in groups.items()
                if (found := at[name] or accuracies_at(name, runs, size, "kept"))
            ]  # fmt: skip
            if len(judged) == len(groups):
                verdicts = _verdicts(judged, baseline, higher=True).values()
                said = "; ".join(f"{found.left} {_words(found)}" for found in verdicts)
                lines.append(f"at {size}, {words}: {said}")
    return lines


# -- the table -------------------------------------------------------------------------------------


def look(target: float | None) -> Look:
    """How the table is read: the verdict and what it is about before what was spent."""
    goal = [] if target is None else [f"steps to {target:.0%}", "95% of the steps"]
    return Look(
        first=("accuracy, %", "our difference", "paper's difference", *goal, "verdict", "95%",
               "not ok", "seeds", "steps", "MACs", "TMACs", "params"),
        best={"accuracy, %": "most", **dict.fromkeys(goal[:1], "least")},
        bad=lambda key, value: key == "not ok" and bool(value),
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
    sizes = sizes_of(rows)
    found = []
    for (name, runs), scores in zip(groups.items(), scored, strict=True):
        at = interval(scores)
        row: Row = {
            "backbone": name, "params": runs[0].get("params"),
            "MACs": runs[0].get("macs_per_image"), "seeds": len(runs),
            "accuracy, %": round(100 * at.centre, 2),
            "95%": f"{100 * at.low:.1f} to {100 * at.high:.1f}",
        }  # fmt: skip
        before = [run["untrained"] for run in runs if run.get("untrained") is not None]
        if before:
            row["untrained, %"] = round(100 * sum(before) / len(before), 2)
        if target is not None:
            row |= _target_columns(name, runs, target)
        row |= _size_columns(name, runs, sizes)
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
    found += _start_notes(groups) + _size_notes(groups, baseline)
    if any(run.get("untrained") is not None for runs in groups.values() for run in runs):
        found.append("accuracy is that of a linear probe of pooled features, which is fitted to "
                     "labelled training images; untrained: of the start's features")  # fmt: skip
    kept = [run["file"] for runs in groups.values() for run in runs if run.get("file")]
    if kept:
        found.append(f"trained weights of {len(kept)} runs, beside the store: {kept[0]} ...")
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


def _start_notes(groups: dict[str, list[Row]]) -> list[str]:
    """Which tensors came from --weights."""
    found = []
    for name, runs in groups.items():
        start = next((row["start"] for row in runs if row.get("start")), None)
        if start:
            counts = ", ".join(f"{count} {status}" for status, count in start.items())
            found.append(f"{name} starts from weights: {counts} tensors")
    return found


def draw(rows: Sequence[Row], out: Path, *, describe: bool = False) -> None:
    """Curves of accuracy by training MACs: the median over seeds, in a band of the middle half.

    The legend is in the order of the curves, the one that rises first at its top.  describe: write
    the figure in words beside it.
    """
    from analysis.pictures import figure_style

    figure = figure_style.figure(8, 5)
    ax = figure.subplots()
    areas: dict[str, float] = {}
    points: list[figure_style.Point] = []
    ends: list[str] = []
    for number, (name, runs) in enumerate(by_backbone(rows).items()):
        curves = [run["curve"] for run in runs if run["curve"]]
        if not curves:
            continue
        length = min(map(len, curves))
        x = [point["macs"] / 1e12 for point in curves[0][:length]]
        y = np.array([[100 * p["accuracy"] for p in curve[:length]] for curve in curves])
        color, middle = f"C{number % 10}", np.median(y, axis=0)
        ax.plot(x, middle, color=color, label=figure_style.words(name), linewidth=1.5)
        low, high = np.quantile(y, [0.25, 0.75], axis=0)
        ax.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        areas[figure_style.words(name)] = float(middle.mean())
        points += (figure_style.Point(name, a, float(b)) for a, b in zip(x, middle, strict=True))
        ends.append(f"{name} {middle[-1]:.4g}, from {low[-1]:.4g} to {high[-1]:.4g}")
    ax.set_xlabel("multiply-adds of training, T")
    ax.set_ylabel("accuracy, % (median and middle half of seeds)")
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: -areas[labels[i]])
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside lower center",
        ncols=2, fontsize=8,
    )  # fmt: skip
    what = f"Curves of {len(ends)} backbones: the median over seeds in a band of the middle half."
    text = figure_style.described(what, ax.get_xlabel(), ax.get_ylabel(), points, extremes="y")
    text += f"\nAt the end: {'; '.join(map(plain, ends))}."
    figure_style.save(figure, out, describe=text if describe else None)
