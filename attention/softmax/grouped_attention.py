"""Softmax attention inside groups: the formula, written once.

Letters as in `attention.geometry.groups`: b batch, n groups, l tokens of a group, m heads, d
channels of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from attention.geometry.symbolic import copied, known


class GroupedAttention(nn.Module):
    """softmax(q k^T * scale + mask) v in every group, by torch's kernels.

    The formula is a module without parameters, so that a hook can read the queries, keys, values
    and mask of a branch.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """
        Args:
            q: (b, n, l, m, d), of any strides.
            k, v: (b, n, keys, m, d).
            mask: (n or 1, m or 1, l, keys), added to the scores; -inf for a masked pair.
            scale: factor of the products q k.

        Returns:
            (b, n, l, m * d).
        """
        b, n, _, m, _ = q.shape
        if mask is None or known(mask.shape[0] == 1) or known(b == 1):
            q, k, v = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))  # (b * n, m, l, d)
            mask = mask if mask is None else mask.expand(q.shape[0], -1, -1, -1)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            return y.transpose(1, 2).flatten(2).unflatten(0, (b, n))  # (b, n, l, m * d)
        # Groups join the axis of heads, so that the mask is never repeated over the batch.  With
        # more than four axes torch takes a path that stores the scores.
        q, k, v = (copied(t.transpose(2, 3)).flatten(1, 2) for t in (q, k, v))  # (b, n * m, l, d)
        mask = copied(mask.expand(n, m, -1, -1)).flatten(0, 1).expand(b, -1, -1, -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return y.unflatten(1, (n, m)).transpose(2, 3).flatten(3)  # (b, n, l, m * d)
