"""Footprints and masks as functions: each returns arrays, a figure and a sentence."""

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
from attention.registry import parse
from backbones.specs.spec import read_pattern
from transom.errors import SpecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Grid = tuple[int, int]


class Study(NamedTuple):
    """arrays: by the name of their mixer, backbone or head.  summary: one line in words."""

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
    """Each mixer alone on one map: (h, w) int, the first of `blocks` by which `query` sees a
    token, 0 if none.  A mixer may be a pattern, ``window+axial``."""
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
    """``6% -> 25% -> 100%``"""
    parts = [float(((seen > 0) & (seen <= n)).float().mean()) for n in after]
    return between.join(f"{100 * part:.0f}%" for part in parts)


def backbone_footprints(
    names: Sequence[str], img_size: Grid | None = None, query: Grid | None = None,
    blocks: Sequence[int] = (1, 2, 4),
) -> Study:  # fmt: skip
    """Through the stages: for a token of each stage's map, the patches of the image it sees.

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
            at = query or (last[0] // 2, last[1] // 2)
            row, col = ((2 * at[i] + 1) * grid[i] // (2 * last[i]) for i in (0, 1))
            here = (row, col)  # the same place on a finer map
            steps_by = {n: ends[n - 1] for n in after}
            found = geometry.first_seen(steps, here, list(steps_by.values()))
            seen = torch.zeros_like(found)
            for n, end in steps_by.items():
                seen[found == end] = n
            text = f"{_shares(seen, [stage.depth], '')} of the patches"
            scale = grids[0][0] / grid[0]
            mark = int((here[0] + 0.5) * scale), int((here[1] + 0.5) * scale)
            panels.append(Panel(f"{name}\nstage {number}, {shape(grid)}", seen, text, mark))
    used = sorted({int(n) for p in panels for n in p.values.unique()} - {0})
    words = [f"seen after {n} block{'s' * (n > 1)} of its stage" for n in used]
    heading = "Which patches of the image a token of each stage can see"
    figure = draw_maps.draw_footprint(panels, used, heading, words)
    summary = "; ".join(f"{p.title}: {p.text}".replace("\n", " ") for p in panels)
    return Study({p.title.replace("\n", " "): p.values for p in panels}, figure, summary)


def masks(mixer: str, grid: Grid = (14, 14), *, index: int = 1, branch: int = 1) -> Study:
    """ids, came and hidden as in `maps.Masks`."""
    found = maps.masks(parse(mixer), grid, index)
    if branch > len(found):
        raise SpecError(f"--branch {branch}: {mixer} has {len(found)}")
    one = found[branch - 1]
    rows, cols = one.groups.rows, one.groups.cols
    pieces, hidden = len(one.ids[~one.pad].unique()), float(one.hidden.float().mean())
    shift = f"shifted by {rows.shift} and {cols.shift}" if rows.shift or cols.shift else "no shift"
    words = (
        f"{mixer} on {shape(grid)}, {'odd' if index else 'even'} block: {one.groups.n} groups of "
        f"{shape(one.groups.extent)}, {shift}; {pieces} sets of tokens attend among themselves; "
        f"{100 * hidden:.0f}% of the pairs are masked"
    )
    arrays = {"ids": one.ids, "came": one.came, "hidden": one.hidden, "pad": one.pad}
    return Study(arrays, draw_maps.draw_masks(one, words.replace("; ", "\n", 1)), words)
