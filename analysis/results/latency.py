"""Latency, throughput and peak memory as columns of a comparison, by analysis.results.session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from analysis.results import environment, session, summary
from analysis.results.measurement import Measurement, canonical
from analysis.results.summary import Line

COLUMNS = {
    "latency_ms": "measured: of a batch, median of the processes' medians",
    "latency_iqr": "measured: middle half of all samples, ms",
    "latency_ci": "measured: interval of the median, ms, with its level",
    "latency_n": "measured: processes x samples",
    "images_per_s": "measured: throughput", "peak_mib": "measured: parameters and a step, MiB",
}  # fmt: skip


def columns(
    jobs: Sequence[tuple[str, tuple[int, int]]], *, batch: int, processes: int, samples: int,
    plugins: Sequence[str] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Measures (name, (height, width) in pixels) jobs in float32, eager; a row each, in order.

    The jobs of one size run interleaved.  A failed row has a note.  Raises SpecError.
    """
    from transom.progress import Bar

    by_size: defaultdict[tuple[int, int], dict[str, Measurement]] = defaultdict(dict)
    for name, size in jobs:
        measurement = Measurement(kind="named", what=name, size=size, batch=batch, malloc="keep")
        by_size[size].setdefault(name, measurement)
    plan = session.Plan(
        groups=[list(by_name.values()) for by_name in by_size.values()], processes=processes,
        samples=samples, warm_seconds=5.0, plugins=plugins,
    )  # fmt: skip
    rows = session.run(
        plan, environment.header(), progress=lambda tasks: Bar(tasks, unit="process")
    )
    found = {canonical(line.measurement.to_dict()): line for line in summary.lines(rows)}
    return [_columns(found[canonical(by_size[size][name].to_dict())]) for name, size in jobs]


def _columns(line: Line) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    s = line.summary
    if line.usable and s is not None:
        row |= {
            "latency_ms": 1e3 * s.median, "latency_iqr": 1e3 * s.iqr,
            "latency_ci": f"{1e3 * s.low:.4g} - {1e3 * s.high:.4g} ({100 * s.level:.3g}%)",
            "latency_n": f"{s.processes} x {s.n // s.processes}",
            "images_per_s": line.batch / s.median,
        }  # fmt: skip
    if line.peak_bytes is not None:
        row["peak_mib"] = line.peak_bytes / 2**20
    notes = [] if line.usable else [f"{line.status}: {line.reason}"]
    if line.batch != line.measurement.batch:
        notes.append(f"batch {line.measurement.batch} -> {line.batch}")
    if line.unstable:
        notes.append(f"unstable in {line.unstable} of {len(line.times)}")
    return {**row, "measured_note": "; ".join(filter(None, [*notes, line.note])),
            "measured": line.usable}  # fmt: skip
