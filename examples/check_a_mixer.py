"""Checks a token mixer of one's own: one that is right, and one that mixes up its axes."""

import torch
from torch import Tensor, nn

import transom


class Pool(nn.Module):
    """The mean over a row, added to every token of (b, h, w, c)."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * x.mean(self.axis, keepdim=True)


for axis in (2, 0):  # 0 is the batch: images would see each other
    table = transom.check(Pool(axis), dim=8, only=["any size", "batch", "gradients"])
    print([(row["property"], row["verdict"]) for row in table], table.extra)
