"""Tables and figures of measured lines; every median has its spread and count beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.pictures import draw_bars, figure_style
from analysis.pictures.draw_bars import Bar
from analysis.results import summary
from analysis.results.statistics import Summary
from analysis.results.summary import Line
from transom.fields import write
from transom.table import plain

Row = dict[str, Any]
SHORT = (
    "px", "mode", "dtype", "compile", "malloc", "batch", "ms", "ci", "level", "n", "processes",
    "% peak",
)  # fmt: skip
NOTE = """\
ms: median of the processes' medians
iqr: middle half of all samples
ci: interval of the median, at the level beside it
% peak: 2 x MACs / time (training: 6) over the run's own best matrix product
malloc: keep: freed memory stays with the process; default: the C library's way
MiB: parameters, and the most that a step holds over the idle model
speedup: how many times as fast ours is as the other, by the medians
in a process: the same inside each process: median (least - largest)
memory: ours over the other's, in processes of their own
to float32: how many times as fast ours is as ours in float32, in a process
faster, slower: at p < 0.002 (Mann-Whitney, 10+ processes a side) and 3% only"""


def base(line: Line) -> Row:
    """The columns of a line that all tables of times share."""
    measurement = line.measurement
    batch = measurement.batch
    used = f"{batch} -> {line.batch}" if line.batch != batch else batch
    row: Row = {
        "px": write(measurement.size), "mode": measurement.mode, "dtype": measurement.dtype,
        "compile": line.compiled if line.usable else "on" if measurement.compile else "off",
        "malloc": measurement.malloc, "batch": used,
    }  # fmt: skip
    return row | numbers(line)


def numbers(line: Line) -> Row:
    """Times of a line in milliseconds with their spread; throughput in images per second."""
    notes = [line.note] if line.note else []
    s = line.summary
    if not line.usable:
        notes.insert(0, f"{line.status}: {line.reason}")
    row: Row = {"ms": None, "iqr": None, "ci": None, "level": None, "p95": None, "img/s": None}
    if s is not None:
        row = {
            "ms": 1e3 * s.median, "iqr": 1e3 * s.iqr, "ci": _ci(s),
            "level": f"{100 * s.level:.3g}%", "p95": 1e3 * s.p95, "img/s": line.batch / s.median,
        }  # fmt: skip
    if line.unstable:
        notes.append(f"unstable in {line.unstable} of {len(line.times)}")
    mib = line.peak_bytes
    return row | {
        "% peak": None if line.share is None else 100 * line.share,
        "MiB": None if mib is None else mib / 2**20,
        "n": s.n if s else 0, "processes": s.processes if s else 0,
        "note": "; ".join(notes) or None,
    }  # fmt: skip


def _ci(s: Summary) -> str:
    return f"{1e3 * s.low:.4g} - {1e3 * s.high:.4g}"


def family(line: Line) -> tuple[Any, ...]:
    """The settings that comparable lines of a table share."""
    e = line.measurement
    return (line.group, e.what, e.size, e.mode, e.dtype, e.batch, e.device, e.threads)


def full(lines: Sequence[Line], *, force: bool = False) -> list[Row]:
    """A row per line, with its ratio to ours in the same compile state."""
    rows = []
    for line in lines:
        family_lines = [x for x in lines if family(x) == family(line)]
        row: Row = {"model": line.measurement.what, "by": line.measurement.label} | base(line)
        note = row.pop("note")
        row |= {"speedup": None, "in a process": None, "verdict": None}
        row |= {"logits": _logits(line), "note": note}
        ours = _ours(family_lines, line.measurement.compile)
        if ours is not None and line is not ours:
            found = summary.compare(ours, line, force=force)
            row |= comparison_columns(found)
        rows.append(row)
    return rows


def comparison_columns(found: summary.Comparison) -> Row:
    """Columns of a comparison: the ratio, its spread inside processes, and the result."""
    within = found.within and "{:.3f} ({:.3f} - {:.3f})".format(*found.within)
    return {"speedup": found.ratio, "in a process": within, "verdict": found.text}


def _is_ours(line: Line) -> bool:
    return line.measurement.kind == "backbone" and line.measurement.backend != "reference"


def _ours(family_lines: Sequence[Line], compiled: bool) -> Line | None:
    ours = filter(_is_ours, family_lines)
    return next((x for x in ours if x.measurement.compile == compiled), None)


def _logits(line: Line) -> str | None:
    """The comparison of a peer's logits with ours at equal weights; None if not compared."""
    if line.logits_error is None:
        return None
    same = line.logits_error <= summary.SAME
    return "equal" if same else f"differ by {line.logits_error:.2g}"


def short(lines: Sequence[Line], *, force: bool = False) -> list[Row]:
    """A row per line of ours: time and memory against the best peer of its compile state.

    force: also against the best peer of the other state, marked.  Failed peers are left out.
    """
    rows = []
    for ours in filter(_is_ours, lines):
        peers_of_all_states = [
            x for x in lines if family(x) == family(ours) and x.measurement.kind == "peer"
        ]
        ours_row = base(ours)
        for state in (False, True):
            peers = [x for x in peers_of_all_states if x.measurement.compile == state]
            same_state = state == ours.measurement.compile
            if not same_state and not (peers and force):
                continue
            name, backend = ours.measurement.what, ours.measurement.backend
            name = name if backend == "auto" else f"{name} {backend}"
            row: Row = {"model": name, **{name: ours_row[name] for name in SHORT}}
            row |= {"best peer": None, "its ms": None, "its ci": None, "speedup": None}
            row |= {"in a process": None, "verdict": None, "memory": None}
            row |= {"to float32": _to_float32(ours, lines), "note": ours_row["note"]}
            allowed = [x for x in peers if force or (x.logits_error or 0.0) <= summary.SAME]
            peer = summary.best(allowed)
            if peer is not None and peer.summary is not None:
                found = summary.compare(ours, peer, force=force)
                row |= {
                    "best peer": peer.measurement.label + (" compiled" if state else ""),
                    "its ms": 1e3 * peer.summary.median, "its ci": _ci(peer.summary),
                    "memory": _ratio(ours.peak_bytes, peer.peak_bytes), **comparison_columns(found),
                }  # fmt: skip
            elif peers:
                row["verdict"] = "no peer could be compared"
            rows.append(row)
    return rows


def _to_float32(ours: Line, lines: Sequence[Line]) -> str | None:
    """The time of ours in float32 over its time in this dtype, inside processes."""
    measurement = replace(ours.measurement, dtype="float32")
    wide = next((x for x in lines if (x.group, x.measurement) == (ours.group, measurement)), None)
    if wide is None or wide is ours:
        return None
    return comparison_columns(summary.compare(ours, wide, force=True))["in a process"]


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def profiles(lines: Sequence[Line], by: str) -> list[Row]:
    """Rows of each line's profile, by stage or by kind of operator."""
    return [
        {"model": line.measurement.what, "by": line.measurement.label,
         "mode": line.measurement.mode,
         "batch": line.batch, **{k: v for k, v in part.items() if k != "of"}}
        for line in lines for part in line.profile if part["of"] == by
    ]  # fmt: skip


def machines(lines: Sequence[Line]) -> str:
    """The distinct machines and versions of the lines, one a line."""
    descriptions = []
    for line in lines:
        e = line.environment
        if not e:
            continue
        parts = [
            e.get("gpu") or e["processor"], f"{e['threads']} threads of {e['cores']} cores",
            f"torch {e['torch']}", *(f"{n} {e[n]}" for n in ("timm", "torchvision", "transformers")
                                     if e.get(n)),
            f"Python {e['python']}",
            f"commit {e['commit']}{' and changes' if e.get('commit_dirty') else ''}",
        ]  # fmt: skip
        descriptions.append(", ".join(map(str, parts)))
    return "\n".join(dict.fromkeys(descriptions))


RATE = "images per second; whiskers: interval of the median"


def bars(lines: Sequence[Line], out: Path, *, describe: bool = False) -> None:
    """Draws images per second of every line; whiskers are the interval of the median."""
    _save_bars({"": [_bar(line, _settings(line)) for line in _drawn(lines)]}, out, describe)


def panels(lines: Sequence[Line], out: Path, *, describe: bool = False) -> None:
    """Draws what `bars` draws in a panel for each mode and batch, with one legend."""
    found: dict[str, list[Bar]] = {}
    for line in _drawn(lines):
        title = f"{line.measurement.mode}, batch {line.batch}"
        found.setdefault(title, []).append(_bar(line, _model(line)))
    _save_bars(found or {"": []}, out, describe)


def _drawn(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.usable and line.summary is not None]


def _model(line: Line) -> str:
    m = line.measurement
    compiled = ", compiled" if m.compile else ""
    return f"{m.what[:28]}, {write(m.size)}, {m.dtype}{compiled}"


def _settings(line: Line) -> str:
    m = line.measurement
    compiled = ", compiled" if m.compile else ""
    return f"{m.what[:28]}, {write(m.size)}, {m.mode}, {m.dtype}, batch {line.batch}{compiled}"


def _bar(line: Line, name: str) -> Bar:
    s = line.summary
    assert s is not None
    rate, low, high = (line.batch / t for t in (s.median, s.high, s.low))
    return Bar(series=line.measurement.label, name=name, value=rate, low=low, high=high)


def _save_bars(found: dict[str, list[Bar]], out: Path, describe: bool) -> None:
    text = draw_bars.described(found, "Bars of throughput.", RATE) if describe else None
    figure_style.save(draw_bars.draw(found, RATE), out, describe=text)


def growth(lines: Sequence[Line], out: Path, *, describe: bool = False) -> None:
    """Draws the time of each mixer over the tokens of its grids, log-log, with the interval of the
    median; dashed lines are its MACs, scaled to the first point."""
    picture = figure_style.figure(6.4, 4.4)
    axes = picture.subplots()
    drawn = _drawn(lines)
    all_points: list[figure_style.Point] = []

    def curve_of(line: Line) -> tuple[str, str, str]:
        return line.measurement.what, line.measurement.mode, line.measurement.dtype

    for i, key in enumerate(dict.fromkeys(map(curve_of, drawn))):
        points = [line for line in drawn if curve_of(line) == key]
        points.sort(key=lambda line: line.measurement.size[0] * line.measurement.size[1])
        tokens = [line.measurement.size[0] * line.measurement.size[1] for line in points]
        spread = [s for line in points if (s := line.summary) is not None]
        times = [1e3 * s.median for s in spread]
        all_points += (figure_style.Point(key[0], *at) for at in zip(tokens, times, strict=True))
        whiskers = [[1e3 * (s.median - s.low) for s in spread],
                    [1e3 * (s.high - s.median) for s in spread]]  # fmt: skip
        color = figure_style.COLORS[i % len(figure_style.COLORS)]
        axes.errorbar(
            tokens, times, yerr=whiskers, color=color, marker="osD^vPX*"[i % 8], markersize=4,
            linewidth=1, capsize=2, gid=plain(f"time:{key[0]}"),
            label=figure_style.words(" ".join(dict.fromkeys(key))),
        )  # fmt: skip
        if all(line.macs for line in points):
            first = points[0].macs or 1
            predicted = [times[0] * (line.macs or 1) / first for line in points]
            axes.plot(tokens, predicted, "--", color=color, linewidth=0.7,
                      gid=plain(f"macs:{key[0]}"))  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.grid(True, which="major", color=figure_style.FAINT, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    text = figure_style.described(
        "Time of each mixer over the tokens of its grids, log-log; dashed: its MACs, scaled to "
        "the first point.", "tokens", "milliseconds", all_points,
    )  # fmt: skip
    figure_style.save(picture, out, describe=text if describe else None)
