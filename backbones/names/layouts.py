"""Changes of the layout of a tensor between their repositories and ours."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from backbones.names.template import Change

if TYPE_CHECKING:
    from torch import Size, Tensor


def _to_heads(tensor: Tensor, shape: Size) -> Tensor:
    tensor = tensor.unflatten(0, shape[:2])
    return tensor.squeeze(-1) if len(shape) == 3 else tensor


def _to_rows(tensor: Tensor) -> Tensor:
    rows = tensor.flatten(0, 1)
    return rows.unsqueeze(-1) if tensor.ndim == 3 else rows


def _to_cells(tensor: Tensor) -> Tensor:
    side = isqrt(tensor.shape[1] // len(tensor))  # as many inputs as outputs
    return tensor.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)


# Conv1d's (heads * l, l, 1) or (heads * l) <-> (heads, l, l) or (heads, l)
ROWS = Change(_to_heads, _to_rows)
# (l, l') of a single head <-> (1, l, l'), and its bias
ONE_HEAD = Change(lambda tensor, shape: tensor[None], lambda tensor: tensor[0])
# (1, tokens, c) <-> (1, c, h, w)
TOKENS = Change(
    lambda tensor, shape: tensor.transpose(1, 2).unflatten(2, shape[2:]),
    lambda tensor: tensor.flatten(2).transpose(1, 2),
)

# (outputs, c, side, side) of a convolution whose cells do not overlap <-> (outputs, side side c)
CELLS = Change(lambda tensor, shape: tensor.permute(0, 2, 3, 1).flatten(1), _to_cells)

# nn.Unfold's channels (c, rows, columns) <-> ours (columns, rows, c), of the last axis
UNFOLDED = Change(
    lambda tensor, shape: tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3),
    lambda tensor: tensor.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3),
)

# a 1x1 convolution's (outputs, inputs, 1, 1) <-> a linear layer's (outputs, inputs)
POINTWISE = Change(
    lambda tensor, shape: tensor.squeeze(3).squeeze(2),
    lambda tensor: tensor[:, :, None, None],
)

# (1, tokens, 1, c) <-> (1, tokens, c)
SINGLES = Change(lambda tensor, shape: tensor.squeeze(2), lambda tensor: tensor.unsqueeze(2))

# (heads, 2, 1, 1) <-> (heads, 2)
PAIRS = Change(lambda tensor, shape: tensor[..., 0, 0], lambda tensor: tensor[..., None, None])

# the rows of a bias table (heads, 2 gh - 1, 2 gw - 1) by key - query, heads first, <-> ours by
# query - key (rows, heads); written for square windows
KEY_FIRST = Change(
    lambda tensor, shape: tensor.flip(1, 2).flatten(1).T,
    lambda tensor: tensor.T.unflatten(1, (isqrt(len(tensor)), -1)).flip(1, 2),
)
