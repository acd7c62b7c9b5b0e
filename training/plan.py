"""Plan of a comparison: which runs it needs, and which of them a store already has.

A list of learning rates is tried first, on a seed and on images that are not judged; the judged
runs then have the best rate of their backbone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.settings.config import RunConfig
from training.settings.identity import identity, refuse_changes
from transom.errors import SpecError

Row = dict[str, Any]
TUNING_SEED = 1_000_003  # of no judged run


@dataclass(frozen=True)
class Plan:
    """Runs of a comparison.

    Args:
        base: what all runs share; its backbone, seed and rate are replaced.
        backbones: names.
        seeds: number of judged seeds, from 0 up.
        rates: learning rates to choose from; one is taken as it is, none means the recipe's.
    """

    base: RunConfig
    backbones: tuple[str, ...]
    seeds: int
    rates: tuple[float, ...] = ()

    def tuning(self) -> list[RunConfig]:
        """Runs that choose a learning rate; none where there is nothing to choose."""
        if len(self.rates) < 2:
            return []
        return [
            replace(self.base, backbone=name, seed=TUNING_SEED, lr=rate, tuning=True)
            for rate in self.rates
            for name in self.backbones
        ]

    def judged(self, rates: Mapping[str, float | None]) -> list[RunConfig]:
        """Runs that are compared, seed by seed, so that every part of them is a comparison."""
        return [
            replace(self.base, backbone=name, seed=seed, lr=rates[name])
            for seed in range(self.seeds)
            for name in self.backbones
        ]

    def best_rates(self, rows: Sequence[Row]) -> dict[str, float | None]:
        """Learning rate of every backbone, the best of its tuning runs."""
        if len(self.rates) < 2:
            return dict.fromkeys(self.backbones, self.rates[0] if self.rates else None)
        tuned = {(row["backbone"], row["lr"]): row for row in rows if row["tuning"]}
        return {
            name: max(self.rates, key=lambda rate: _worth(tuned[name, rate]))
            for name in self.backbones
        }


def _worth(row: Row) -> tuple[bool, float]:
    return row["status"] == "ok", row["accuracy"]


def missing(
    configs: Sequence[RunConfig], rows: Iterable[Row], digest: str, place: Path
) -> list[RunConfig]:
    """Runs that have no row yet.

    Args:
        configs: the runs that are wanted.
        rows: of the store.
        digest: of the data.
        place: path of the store, for an error.

    Raises:
        SpecError: a row of the same name was made from other data, recipe, versions or threads.
    """
    stored = {row["slot"]: row for row in rows if row.get("kind") == "run"}
    for config in configs:
        if config.slot in stored:
            refuse_changes(
                config.slot, stored[config.slot]["identity"], identity(config, digest), place
            )
    return [config for config in configs if config.slot not in stored]


def of_plan(configs: Sequence[RunConfig], rows: Iterable[Row]) -> list[Row]:
    """The rows of these runs, in their order."""
    stored = {row["slot"]: row for row in rows if row.get("kind") == "run"}
    return [stored[config.slot] for config in configs if config.slot in stored]


def folder_of(store: Path, slot: str) -> Path:
    """Folder of a run's checkpoints, beside the store; its name holds no character of a path."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", slot)[:60].strip("-")
    digest = hashlib.sha256(slot.encode()).hexdigest()[:10]
    return Path(f"{store}.d") / f"{readable}-{digest}"


def check_distinct(names: Sequence[str]) -> None:
    """Raises SpecError for a backbone that is named twice."""
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"--backbone {name}: is given twice")
