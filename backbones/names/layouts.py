"""Changes of the layout of a tensor between their repositories and ours."""

from __future__ import annotations

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


# Conv1d's (heads * l, l, 1) or (heads * l) <-> (heads, l, l) or (heads, l)
ROWS = Change(_to_heads, _to_rows)
# (1, tokens, c) <-> (1, c, h, w)
TOKENS = Change(
    lambda tensor, shape: tensor.transpose(1, 2).unflatten(2, shape[2:]),
    lambda tensor: tensor.flatten(2).transpose(1, 2),
)

# nn.Unfold's channels (c, rows, columns) <-> ours (columns, rows, c), of the last axis
UNFOLDED = Change(
    lambda tensor, shape: tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3),
    lambda tensor: tensor.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3),
)
