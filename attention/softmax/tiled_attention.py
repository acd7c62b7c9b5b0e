"""Attention of tiles of queries to keys that overlap: gathering, masks and positions."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.configs.neighbours import HaloConfig, NeighbourhoodConfig
from attention.execution import chunks
from attention.execution.cache import cached
from attention.geometry.symbolic import copied, known
from attention.geometry.tiles import Tiles
from attention.softmax.position import LogCPB, RelativeBias
from attention.softmax.scores import Scores


class Plan(NamedTuple):
    """The tiles of a map, kind by kind, with the positions of their tokens in the flat map.

    Args:
        queries: (n, l).
        keys: (n, keys), in the padded map.
        kinds: how many tiles share each mask; one number where every tile has its own.
        rows, cols: (rows, th, kh) and (columns, tw, kw), the steps from keys to queries along each
            axis, of the tiles whose pairs have the masks.
        hidden: (masks, 1, l, keys) bool, the pairs that are masked; None for none.
        tile, place: (h w,), for every token of the map the number of its tile, and its place in it.
    """

    queries: Tensor
    keys: Tensor
    kinds: list[int]
    rows: Tensor
    cols: Tensor
    hidden: Tensor | None
    tile: Tensor
    place: Tensor


class RelativeRowsAndColumns(nn.Module):
    """Learned vectors of relative rows and columns that queries are multiplied with (HaloNet).

    Args:
        dim: channels of a head.
        window: keys of a block along each axis.
    """

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.rows, self.cols = (nn.Linear(dim, 2 * window - 1, bias=False) for _ in range(2))
        for table in (self.rows, self.cols):
            nn.init.normal_(table.weight, std=dim**-0.5)

    def forward(self, q: Tensor, tile: tuple[int, int]) -> Tensor:
        """The term of every pair.

        Args:
            q: (b, n, l, m, d), the queries of n blocks of `tile`.

        Returns:
            (b, n, m, l, keys).
        """
        (th, tw), window = tile, self.window
        by_row, by_col = (
            table(q).unflatten(2, tile)  # (b, n, th, tw, m, 2 window - 1)
            for table in (self.rows, self.cols)
        )
        step = torch.arange(window, device=q.device) + window - 1  # of key minus query, both from 0
        row = step - torch.arange(th, device=q.device)[:, None]  # (th, window)
        col = step - torch.arange(tw, device=q.device)[:, None]
        by_row = self._taken(by_row, row[:, None, None])  # (b, n, th, tw, m, window)
        by_col = self._taken(by_col, col[None, :, None])
        both = by_row[..., :, None] + by_col[..., None, :]  # (b, n, th, tw, m, rows, columns)
        return both.flatten(5).flatten(2, 3).transpose(2, 3)

    @staticmethod
    def _taken(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(-1, index.expand(*values.shape[:-1], -1))


class TiledAttention(Scores):
    """softmax(q k^T * scale + position + mask) v of the queries of tiles, map to map.

    Args:
        config: the mixer's configuration.
        dim, heads: channels and heads.
        window: keys whose steps to the query the position tells, along each axis.
    """

    config: NeighbourhoodConfig | HaloConfig

    def __init__(
        self, config: NeighbourhoodConfig | HaloConfig, *, dim: int, heads: int, window: int
    ) -> None:  # fmt: skip
        super().__init__(config, dim=dim, heads=heads)
        self.window = window
        self.bias: RelativeBias | LogCPB | None = None
        self.relative: RelativeRowsAndColumns | None = None
        if config.position == "bias":
            self.bias = RelativeBias(heads, (window, window))
        elif config.position == "log_cpb":
            self.bias = LogCPB(heads, config.pretrained_window)
        elif config.position == "relative":
            self.relative = RelativeRowsAndColumns(dim // heads, window)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, *, split: bool
    ) -> Tensor:  # fmt: skip
        """
        Args:
            q, k, v: maps (b, h, w, dim), of any strides.
            tiles: those of the map.
            split: whether tiles of one kind share a mask, which needs sizes that are numbers; else
                each tile has its own.

        Returns:
            (b, h, w, dim).
        """
        (b, h, w), device = q.shape[:3], q.device
        hides = self.config.mask_padding or not known(tiles.keys == tiles.seen)
        key = "tiles", tiles, hides, split, device
        plan = cached(key, lambda: _plan(tiles, device, hides=hides, split=split))
        mask = self._mask(plan, q)
        masks = [mask] if mask is None or len(plan.kinds) == 1 else mask.split(1)
        shares = mask is None or known(mask.shape[0] == 1)
        q, k, v = copied(q), _padded(k, tiles), _padded(v, tiles)
        out, parts = [], [slice(0, None)]
        observed = tiles.single and not split  # then the keys of every query would be there at once
        if (observed or (split and device.type == "cpu")) and not torch.is_grad_enabled():
            tile_bytes = 2 * b * (tiles.length + tiles.keys) * self.dim * q.element_size()
            parts = chunks.tile_parts(plan.queries.shape[0], tile_bytes, wide=observed)
        for part in parts:
            queries, keys = plan.queries[part], plan.keys[part]
            own_q, own_k, own_v = _taken(q, queries), _taken(k, keys), _taken(v, keys)
            # (n, b, ., c) each
            if len(masks) == 1:
                own = mask if mask is None or shares else mask[part]
                out.append(self._attend(own_q, own_k, own_v, own, tiles))
                continue
            sizes = _inside(part, plan.kinds)
            by_kind = (t.split(sizes) for t in (own_q, own_k, own_v))
            for some_q, some_k, some_v, own in zip(*by_kind, masks, strict=True):
                if some_q.shape[0]:
                    out.append(self._attend(some_q, some_k, some_v, own, tiles))
        y = out[0] if len(out) == 1 else torch.cat(out)  # (n, b, l, c)
        image = torch.arange(b, device=device)[:, None]
        home = (plan.tile * b + image) * tiles.length + plan.place  # (b, h w)
        return y.flatten(0, 2).index_select(0, home.flatten()).unflatten(0, (b, h, w))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, tiles: Tiles
    ) -> Tensor:  # fmt: skip
        """(n, b, l, c) and twice (n, b, keys, c) -> (n, b, l, c), for n tiles of b images."""
        n, b = q.shape[:2]
        if self.relative is not None:
            tile = tiles.rows.tile, tiles.cols.tile
            term = self.relative(q.unflatten(-1, (self.heads, -1)), tile)  # (n, b, m, l, keys)
            mask = (term if mask is None else term + mask[:, None]).flatten(0, 1)
        elif mask is not None and not known(mask.shape[0] == 1):
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
            y = self.attend(q, k, v, mask)  # (b, n, l, c)
            return copied(y.transpose(0, 1))
        q, k, v = (t.flatten(0, 1)[None] for t in (q, k, v))  # as one image of n * b tiles
        return self.attend(q, k, v, mask)[0].unflatten(0, (n, b))

    def position_cost(self, queries: int) -> int:
        """MACs of the position term of `queries` queries."""
        if self.relative is not None:
            return 2 * queries * (2 * self.window - 1) * self.dim
        return 0 if self.bias is None else self.bias.table_cost((self.window, self.window))

    # -- the mask ----------------------------------------------------------------------------

    def _mask(self, plan: Plan, like: Tensor) -> Tensor | None:
        """The terms added to the scores, but for a relative one.

        Returns:
            (masks, m or 1, l, keys), 1 where heads share it; None for no term.
        """
        if self.bias is None and plan.hidden is None:
            return None
        mask = like.new_zeros(1, 1, 1, 1) if self.bias is None else self._biases(plan, like)
        return mask if plan.hidden is None else mask.masked_fill(plan.hidden, -math.inf)

    def _biases(self, plan: Plan, like: Tensor) -> Tensor:
        """(masks, m, l, keys).  Rows are taken first, then columns, so that few numbers are added
        up in backward."""
        assert self.bias is not None
        far = self.window - 1
        rows, cols = (steps.clamp(-far, far) + far for steps in (plan.rows, plan.cols))
        table = self.bias.steps((self.window, self.window)).to(like.dtype)
        table = table.T.unflatten(1, (2 * far + 1, 2 * far + 1))  # (m, steps, steps)
        taken = table.index_select(1, rows.flatten()).index_select(2, cols.flatten())
        taken = taken.unflatten(2, cols.shape).unflatten(1, rows.shape)
        taken = taken.permute(1, 4, 0, 2, 5, 3, 6)  # (rows, columns, m, th, tw, kh, kw)
        return taken.flatten(5).flatten(3, 4).flatten(0, 1)


def _plan(tiles: Tiles, device: torch.device, *, hides: bool, split: bool) -> Plan:
    """
    Args:
        tiles: those of the map.
        device: of the tensors.
        hides: whether queries may not see all keys of their tile.
        split: whether tiles of one kind share a mask; else every tile has its own.
    """
    (row, row_place), (col, col_place) = (axis.home(device) for axis in tiles)
    place = row_place[:, None] * tiles.cols.tile + col_place  # (h, w), in the tile
    number = row[:, None] * tiles.cols.n + col  # (h, w), of the tile
    rows, cols = (torch.arange(axis.n, device=device) for axis in tiles)
    if not split and tiles.single:  # the tiles that have a token, in the order of the map
        rows, cols, number = row, col, torch.arange(number.numel(), device=device)
    kinds = [rows.shape[0] * cols.shape[0]]
    row, col = rows[:, None] + 0 * cols, cols + 0 * rows[:, None]  # expanded, for graphs
    row, col = row.flatten(), col.flatten()  # (n,), of every tile
    if not (hides or tiles.inward):  # one mask for all tiles
        rows, cols = rows[:1], cols[:1]
    elif split:
        pairs = [[(r, c) for r in rows for c in cols] for rows, cols in tiles.kinds()]
        kinds = list(map(len, pairs))
        row, col = torch.tensor([pair for kind in pairs for pair in kind], device=device).unbind(1)
        number = (row * tiles.cols.n + col).argsort()[number]
        rows, cols = (
            torch.tensor([kind[0] for kind in axis.kinds()], device=device) for axis in tiles
        )
    by_row, by_col = (axis.layout(device) for axis in tiles)
    width, ((top, _), (left, right)) = tiles.cols.length, tiles.pads()
    return Plan(
        _flat(by_row.queries[row], by_col.queries[col], width),
        _flat(by_row.keys[row] + top, by_col.keys[col] + left, left + width + right),
        kinds, by_row.steps[rows], by_col.steps[cols],
        _hidden(by_row.visible[rows], by_col.visible[cols]) if hides else None,
        number.flatten(), place.flatten(),
    )  # fmt: skip


def _inside(part: slice, sizes: list[int]) -> list[int]:
    """How many of consecutive groups of `sizes` members are in the slice."""
    ends = list(accumulate(sizes))
    stop = ends[-1] if part.stop is None else part.stop
    return [
        max(min(stop, end) - max(part.start, end - size), 0)
        for size, end in zip(sizes, ends, strict=True)
    ]


def _hidden(rows: Tensor, cols: Tensor) -> Tensor:
    """(rows, th, kh), (columns, tw, kw) of pairs seen -> (n, 1, l, keys) of those that are not."""
    seen = rows[:, None, :, None, :, None] & cols[None, :, None, :, None, :]
    return ~seen.flatten(4).flatten(2, 3).flatten(0, 1)[:, None]


def _flat(rows: Tensor, cols: Tensor, width: int) -> Tensor:
    """(n, th), (n, tw) -> (n, th * tw): positions in a flat map."""
    return (rows[:, :, None] * width + cols[:, None, :]).flatten(1)


def _padded(x: Tensor, tiles: Tiles) -> Tensor:
    """(b, h, w, c) -> the same with zeros where the keys are outside the map."""
    if tiles.inward:
        return copied(x)
    rows, cols = tiles.pads()
    return F.pad(x, (0, 0, *cols, *rows))


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """(b, h, w, c) -> (n, b, l, c): in every image the tokens with the numbers `index` (n, l)."""
    b, h, w, _ = x.shape
    image = torch.arange(b, device=x.device)[:, None]
    index = index[:, None] + image * (h * w)  # (n, b, l)
    return x.flatten(0, 2).index_select(0, index.flatten()).unflatten(0, index.shape)
