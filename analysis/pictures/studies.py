"""Studies of footprints and masks: each returns arrays, a figure and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import backbones
from analysis.models import footprint as geometry
from analysis.models import maps
from analysis.pictures import draw_maps
from analysis.pictures.draw_maps import Panel
from attention.configs.notation import parse
from backbones.specs.stage import read_pattern
from transom.errors import SpecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Grid = tuple[int, int]


class Study(NamedTuple):
    """Result of a study.

    arrays: by the name of their mixer, backbone or head.  summary: one line in words.
    """

    arrays: dict[str, Tensor]
    figure: Figure
    summary: str


def shape(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


# -- geometry --------------------------------------------------------------------------------


def footprints(
    mixers: Sequence[str], grid: Grid = (28, 28), query: Grid | None = None,
    blocks: Sequence[int] = (1, 2, 4),
) -> Study:  # fmt: skip
    """Footprints of mixers on one map: (h, w) int, the first of `blocks` by which `query` sees a
    token, 0 if none.

    mixers: each may be a pattern, ``window+axial``.  grid: (height, width) in tokens.  query: (row,
    column) from 0.
    """
    after = sorted(set(blocks))
    query = query or (grid[0] // 5, grid[1] // 3)
    panels = []
    for text in mixers:
        try:
            steps = geometry.pattern_steps(read_pattern(text), after[-1], grid)
        except SpecError:
            raise
        except ValueError as error:
            raise SpecError(f"--mixers {text!r}: expected {error}") from None
        seen = geometry.first_seen(steps, query, after)
        panels.append(Panel(text, seen, _shares(seen, after, " -> "), query))
    steps_in_words = " -> ".join(map(str, after)) + f" block{'s' * (after[-1] > 1)}"
    heading = f"What one token can see on a {shape(grid)} map; below: share after {steps_in_words}"
    figure = draw_maps.draw_footprint(panels, after, heading)
    words = "; ".join(f"{p.title} {p.text}" for p in panels)
    return Study({p.title: p.values for p in panels}, figure, f"seen by {query}: {words}")


def _shares(seen: Tensor, after: Sequence[int], between: str) -> str:
    """Shares of the map seen after so many blocks, as ``6% -> 25% -> 100%``."""
    parts = [float(((seen > 0) & (seen <= n)).float().mean()) for n in after]
    return between.join(f"{100 * part:.0f}%" for part in parts)


def backbone_footprints(
    names: Sequence[str], img_size: Grid | None = None, query: Grid | None = None,
    blocks: Sequence[int] = (1, 2, 4),
) -> Study:  # fmt: skip
    """Footprints through the stages: for a token of each stage's map, the patches that it sees.

    (h, w) int per stage over the first stage's map: the number of this stage's blocks, of
    `blocks` and its depth, by which a patch is seen.  query: on the last map; None, the centre.
    """
    panels, deepest = [], 0
    for name in names:
        spec = backbones.parse(name)
        size = img_size or spec.img_size
        grids, steps = spec.grids(size), geometry.backbone_steps(spec, size)[1:]
        for number, stage in enumerate(spec.stages, start=1):
            ends = [i + 1 for i, s in enumerate(steps) if s.stage == number and s.block]
            after = sorted({n for n in blocks if n < stage.depth} | {stage.depth})
            deepest = max(deepest, *after)
            last, grid = grids[-1], grids[number - 1]
            target = query or (last[0] // 2, last[1] // 2)
            row, col = ((2 * target[i] + 1) * grid[i] // (2 * last[i]) for i in (0, 1))
            position = (row, col)  # the target's position on a finer map
            steps_by = {n: ends[n - 1] for n in after}
            found = geometry.first_seen(steps, position, list(steps_by.values()))
            seen = torch.zeros_like(found)
            for n, end in steps_by.items():
                seen[found == end] = n
            text = f"{_shares(seen, [stage.depth], '')} of the patches"
            scale = grids[0][0] / grid[0]
            mark = int((position[0] + 0.5) * scale), int((position[1] + 0.5) * scale)
            panels.append(Panel(f"{name}\nstage {number}, {shape(grid)}", seen, text, mark))
    used = sorted({int(n) for p in panels for n in p.values.unique()} - {0})
    words = [f"seen after {n} block{'s' * (n > 1)} of its stage" for n in used]
    heading = "Which patches of the image a token of each stage can see"
    figure = draw_maps.draw_footprint(panels, used, heading, words)
    summary = "; ".join(f"{p.title}: {p.text}".replace("\n", " ") for p in panels)
    return Study({p.title.replace("\n", " "): p.values for p in panels}, figure, summary)


def masks(mixer: str, grid: Grid = (14, 14), *, index: int = 1, branch: int = 1) -> Study:
    """Masks of one branch; the arrays are the fields of `maps.Masks`."""
    found = maps.masks(parse(mixer), grid, index)
    if branch > len(found):
        raise SpecError(f"--branch {branch}: {mixer} has {len(found)}")
    chosen = found[branch - 1]
    rows, cols = chosen.groups.rows, chosen.groups.cols
    n_sets, masked = len(chosen.ids[~chosen.pad].unique()), float(chosen.masked.float().mean())
    shift = f"shifted by {rows.shift} and {cols.shift}" if rows.shift or cols.shift else "no shift"
    words = (
        f"{mixer} on {shape(grid)}, {'odd' if index else 'even'} block: "
        f"{chosen.groups.n} groups of "
        f"{shape(chosen.groups.extent)}, {shift}; {n_sets} sets of tokens attend among themselves; "
        f"{100 * masked:.0f}% of the pairs are masked"
    )
    arrays = {name: getattr(chosen, name) for name in ("ids", "wrapped_from", "masked", "pad")}
    return Study(arrays, draw_maps.draw_masks(chosen, words.replace("; ", "\n", 1)), words)
