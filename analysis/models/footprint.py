"""Receptive fields by integer arithmetic: regions composed over blocks and stages.

A backbone is a chain of steps; each states which tokens of its input map one token of its output
map reads, and what passes through the tokens beside the maps.  Nothing is trained, run or sampled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.models.beside import Beside, Grid, Node, begun, handed_on, kept, mixed
from attention.configs.beside import MessengerConfig
from attention.configs.config import MixerConfig
from attention.factory import build
from backbones.model.backbone import HierarchicalBackbone
from backbones.model.block import Block
from backbones.model.stage import Stage
from backbones.parts.mbconv import MBConv, stands_between
from backbones.parts.resample import Strided, Window, Windows
from backbones.specs.construct import edit
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec
from transom.errors import SpecError


class Step(NamedTuple):
    """One layer of a chain.

    before, after: (h, w) of its input and output.  stage: from 1; 0 is the stem.  reads(query):
    (h, w) bool of the input, what one token of the output reads.  beside: the tokens beside both
    maps.  The nodes of a map are its tokens row by row, and then those beside it.
    """

    stage: int
    block: int | None  # from 1, if the step ends a block
    before: Grid
    after: Grid
    reads: Callable[[Grid], Tensor]
    beside: Beside = Beside()

    @property
    def nodes(self) -> list[Node]:
        """Those of the output."""
        h, w = self.after
        return [*itertools.product(range(h), range(w)), *range(self.beside.after)]

    def read(self, node: Node) -> Tensor:
        """(nodes of the input,) bool: what a node of the output reads."""
        if isinstance(node, tuple):
            places = self.reads(node)
        elif self.beside.places is None:
            places = torch.zeros(self.before, dtype=torch.bool)
        else:
            places = self.beside.places(node)
        return torch.cat([places.flatten(), self.beside.tokens(node)])


# -- steps -----------------------------------------------------------------------------------


def mixer_step(
    mixer: Any, grid: Grid, *, stage: int = 1, block: int | None = 1, cpe: bool = False,
    tokens: int = 0,
) -> Step:  # fmt: skip
    """A block's step up to its mixer: the region, the residual, and the 3x3 kernel of a cpe.

    tokens: beside the map.
    """

    def reads(query: Grid) -> Tensor:
        try:
            seen = mixer.region(*grid, query).clone()
        except NotImplementedError:
            raise SpecError(f"{mixer.config}: this mixer states no region") from None
        seen[query] = True
        if cpe:
            seen = _around(seen)
        return seen

    if not tokens:
        return Step(stage, block, grid, grid, reads)
    beside = mixed(mixer, grid, tokens)
    if cpe and (places := beside.places) is not None:
        beside = beside._replace(places=lambda i: _around(places(i)))
    return Step(stage, block, grid, grid, reads, beside)


def _around(seen: Tensor) -> Tensor:
    """(h, w) bool: what a 3x3 kernel reads for the tokens of (h, w)."""
    return F.max_pool2d(seen[None].float(), 3, stride=1, padding=1)[0] > 0


def conv_step(layer: nn.Module, before: Grid, after: Grid, stage: int) -> Step:
    """The step of a stem or downsampling: the window of its kernel on the input, or all of it."""
    if isinstance(layer, MBConv):
        return whole_step(before, after, stage)
    return window_step(cast("Strided", layer).windows(before), before, after, stage)


def whole_step(before: Grid, after: Grid, stage: int) -> Step:
    """A step that reads the entire map, as the gates of an inverted bottleneck do."""
    return Step(stage, None, before, after, lambda query: torch.ones(before, dtype=torch.bool))


def window_step(
    windows: Windows, before: Grid, after: Grid, stage: int, block: int | None = None
) -> Step:
    """The step of a convolution, or of several that read this window; windows: of both axes."""
    kernel, stride = windows[0][:2]

    def reads(query: Grid) -> Tensor:
        seen = torch.zeros(before, dtype=torch.bool)
        top, left = (stride * i - axis.padding for i, axis in zip(query, windows, strict=True))
        seen[max(top, 0) : top + kernel, max(left, 0) : left + kernel] = True
        return seen

    return Step(stage, block, before, after, reads)


def block_steps(
    mixer: Any, spec: BackboneSpec, grid: Grid, *, stage: int = 1, block: int = 1,
    tokens: int = 0,
) -> list[Step]:  # fmt: skip
    """The steps of a block of a spec: its mixer, and the convolutions that it has beside it.

    tokens: beside the map, which convolutions leave as they are.
    """
    after = spec.position == "cpe_once" and block == 1
    sides = [spec.local, 3 * ("conv" in spec.mlp), 3 * after]
    sides = [side for side in sides if side]
    first = [whole_step(grid, grid, stage)] if stands_between(spec, block - 1) else []
    cpe = spec.position == "cpe"
    mixes = mixer_step(mixer, grid, stage=stage, block=None, cpe=cpe, tokens=tokens)
    windows = [(Window(side, 1, side // 2),) * 2 for side in sides]
    last = [window_step(window, grid, grid, stage) for window in windows]
    first, last = ([s._replace(beside=kept(tokens)) for s in part] for part in (first, last))
    steps = [*first, mixes, *last]
    return [*steps[:-1], steps[-1]._replace(block=block)]  # it ends with the last


def pattern_steps(mixers: Sequence[MixerConfig], blocks: int, grid: Grid) -> list[Step]:
    """Steps of `blocks` blocks that follow a pattern of mixers on one map, at any width."""
    parts = [config.region**2 for config in mixers if isinstance(config, MessengerConfig)]
    dim = math.lcm(8, *parts)  # of which messengers exchange parts
    stage = StageSpec(dim=dim, depth=blocks, heads=2, mixers=tuple(mixers))
    with torch.device("meta"):
        built = [build(config, dim=dim, heads=2, index=index) for config, index in stage.blocks()]
    tokens = stage.tokens_beside(*grid)
    return [
        mixer_step(mixer, grid, block=i, tokens=tokens) for i, mixer in enumerate(built, start=1)
    ]


def backbone_steps(spec: BackboneSpec, img_size: Grid | None = None) -> list[Step]:
    """Every step of a backbone from the pixels on; img_size: (height, width) in pixels."""
    size = img_size or spec.img_size
    with torch.device("meta"):
        model = HierarchicalBackbone(edit(spec, spec.name, img_size=size))
    grids = spec.grids(size)
    before = spec.stem_grid(size)
    steps = [conv_step(model.stem, size, before, 0)]
    for number, stage in enumerate(cast("list[Stage]", model.stages), start=1):
        grid = grids[number - 1]
        if not isinstance(stage.downsample, nn.Identity):
            steps.append(conv_step(stage.downsample, before, grid, number))
        steps[-1] = steps[-1]._replace(beside=_enters(model.spec, number, stage, before, grid))
        before, tokens = grid, stage.spec.tokens_beside(*grid)
        for i, block in enumerate(cast("list[Block]", stage.blocks), start=1):
            steps += block_steps(block.mixer, spec, grid, stage=number, block=i, tokens=tokens)
    return steps


def _enters(spec: BackboneSpec, number: int, stage: Stage, before: Grid, grid: Grid) -> Beside:
    """The tokens beside the map where a stage, from 1, begins: learned ones, or messengers that
    its downsampling reads as their map."""
    if number == 1:
        return begun(0, stage.spec.tokens_beside(*grid))
    last = spec.stages[number - 2]
    if last.messenger is None or stage.spec.messenger is None:
        return begun(last.tokens_beside(*before), stage.spec.tokens_beside(*grid))
    windows = last.messenger.windows(*before), stage.spec.messenger.windows(*grid)
    return handed_on(conv_step(stage.downsample, *windows, number).reads, *windows)


def head_step(spec: BackboneSpec, img_size: Grid | None = None) -> Step:
    """The step after those of `backbone_steps`: the head, an output of one token, reads the last
    map, or with pool=token the class token or all messengers."""
    last, grid = spec.stages[-1], spec.grids(img_size or spec.img_size)[-1]
    count, from_map = last.tokens_beside(*grid), spec.pool == "mean"
    tokens = torch.zeros(count, dtype=torch.bool)
    if not from_map:
        tokens[: count if last.messenger else 1] = True
    beside = Beside(count, 0, lambda node: tokens)
    return Step(
        len(spec.stages) + 1, None, grid, (1, 1), lambda query: torch.full(grid, from_map), beside
    )


# -- one query -------------------------------------------------------------------------------


def footprint(steps: Sequence[Step], query: Grid) -> Tensor:
    """(h, w) bool of the first step's input: tokens that may influence the output at `query`."""
    h, w = steps[-1].after
    if not (0 <= query[0] < h and 0 <= query[1] < w):
        raise SpecError(f"query {query[0]},{query[1]}: outside the {h}x{w} map, counted from 0,0")
    seen = torch.zeros(h * w + steps[-1].beside.after, dtype=torch.bool)
    seen[query[0] * w + query[1]] = True
    for step in reversed(steps):
        h, w = step.before
        read, nodes = torch.zeros(h * w + step.beside.before, dtype=torch.bool), step.nodes
        for (i,) in seen.nonzero().tolist():
            read |= step.read(nodes[i])
            if read.all():
                break
        seen = read
    return seen[: h * w].view(h, w)


def first_seen(steps: Sequence[Step], query: Grid, after: Sequence[int]) -> Tensor:
    """(h, w) int: the first of `after` (numbers of steps) by which a token is seen, 0 if none.

    A block always reads the query's token, so the set of seen tokens only grows.
    """
    first = torch.zeros(steps[0].before, dtype=torch.int)
    for n in sorted(after, reverse=True):
        first[footprint(steps[:n], query)] = n
    return first
