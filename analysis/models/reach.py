"""What every token of a map has seen after each block and stage, from the steps of a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from analysis.models.beside import Grid
from analysis.models.footprint import Step, backbone_steps, block_steps
from attention.configs.config import MixerConfig
from attention.factory import build
from backbones.specs.construct import edit
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec
from transom.errors import SpecError

BITS = np.array([n.bit_count() for n in range(256)], dtype=np.uint8)
MOST_TOKENS = 2**14  # of the finest map; a pair takes a bit, 2**28 bits are 32 MB


def identity_sets(grid: Grid, tokens: int = 0) -> np.ndarray:
    """(nodes, bytes): the set {token} for each token of a map, as a row of bits, and then that of
    each of `tokens` beside it, which has seen none."""
    return np.packbits(np.eye(grid[0] * grid[1] + tokens, grid[0] * grid[1], dtype=bool), axis=1)


def propagated(step: Step, seen: np.ndarray) -> np.ndarray:
    """(nodes of the output, bytes): seen sets after a step, from those of its input."""
    unions: dict[bytes, np.ndarray] = {}  # the tokens of a window read equal sets
    rows = []
    for node in step.nodes:
        read = step.read(node).numpy()
        key = read.tobytes()
        if key not in unions:
            unions[key] = np.bitwise_or.reduce(seen[read], axis=0)
        rows.append(unions[key])
    return np.stack(rows)


def seen_shares(seen: np.ndarray, grid: Grid, tokens: int) -> np.ndarray:
    """(h w,) shares of `tokens` that each token of a map has seen."""
    return BITS[seen[: grid[0] * grid[1]]].sum(axis=1) / tokens


def blocks_to_see_all(stage: StageSpec, grid: Grid, spec: BackboneSpec | None = None) -> int | None:
    """Blocks until every token of a map has seen all of it, with the stage's pattern repeated
    beyond its depth; None if two rounds of even and odd blocks add nothing.

    spec: of the backbone, whose blocks may have convolutions beside their mixers.
    """
    spec = spec or BackboneSpec(stages=(stage, stage))
    tokens, unchanged = stage.tokens_beside(*grid), 0
    seen = identity_sets(grid, tokens)
    for n, (config, index) in enumerate(_endless(stage), start=1):
        with torch.device("meta"):
            mixer = build(config, dim=stage.dim, heads=stage.heads, index=index)
        seen_next = seen
        for step in block_steps(mixer, spec, grid, block=n, tokens=tokens):
            seen_next = propagated(step, seen_next)
        if seen_shares(seen_next, grid, grid[0] * grid[1]).min() == 1:
            return n
        unchanged = unchanged + 1 if np.array_equal(seen_next, seen) else 0
        if unchanged >= 4 * len(stage.mixers):
            return None
        seen = seen_next
    raise AssertionError


def _endless(stage: StageSpec) -> Iterator[tuple[MixerConfig, int]]:
    """The blocks of `StageSpec.blocks`, repeated without end."""
    count: dict[MixerConfig, int] = {}
    while True:
        for config in stage.mixers:
            yield config, count.get(config, 0)
            count[config] = count.get(config, 0) + 1


def reach(spec: BackboneSpec, img_size: Grid | None = None) -> list[dict[str, Any]]:
    """A row per stage: blocks that its mixers need to see their map, and the share of the image's
    patches (tokens of the first stage) that a token has seen when the stage ends.

    image_seen_after: blocks, counted through all stages, until every token has seen the image.
    """
    size = img_size or spec.img_size
    spec = edit(spec, spec.name, img_size=size).resolve()
    grids = spec.grids(size)
    h, w = grids[0]
    if h * w > MOST_TOKENS:
        raise SpecError(
            f"{h}x{w} patches are too many pairs; at most {MOST_TOKENS:,} patches: "
            "choose a smaller --img-size"
        )
    steps = backbone_steps(spec, size)  # patches on: the stem only says how large they are
    steps = steps[2 if spec.first_downsample else 1 :]
    seen, done, image_seen_after = identity_sets((h, w), steps[0].beside.before), 0, None
    rows = []
    for number, (stage, grid) in enumerate(zip(spec.stages, grids, strict=True), start=1):
        for step in (step for step in steps if step.stage == number):
            seen = propagated(step, seen)
            done += step.block is not None
            if image_seen_after is None and seen_shares(seen, step.after, h * w).min() == 1:
                image_seen_after = done
        image = 100 * seen_shares(seen, grid, h * w)
        needs = blocks_to_see_all(stage, grid, spec)
        rows.append({
            "stage": number, "grid": f"{grid[0]}x{grid[1]}", "mixers": stage.pattern(),
            "blocks": stage.depth, "blocks_to_see_its_map": needs,
            "within_stage": needs is not None and needs <= stage.depth,
            "image_seen_least_%": float(image.min()), "image_seen_mean_%": float(image.mean()),
            "image_seen_after": image_seen_after,
        })  # fmt: skip
    return rows
