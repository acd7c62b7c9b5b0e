"""An image with patches in other places, and what a network says of all of them.

    images = Images(shape, patch, seed)      # noise; methods add altered copies, known by number
    outputs(model, images.found)             # logits, or maps averaged over their tokens

Patches stand on a grid of their own side, from the upper left corner.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attention.execution import backends
from transom.errors import SpecError

CHUNK = 2**20  # elements of the images of one forward


class Images:
    """Images (c, h, w) that are run together; each is known by its number."""

    def __init__(self, shape: tuple[int, int, int], patch: int, seed: int) -> None:
        self.shape, self.patch = shape, patch
        self.generator = torch.Generator().manual_seed(seed)
        self.found: list[Tensor] = []
        self.blank = self.add(self.noise(shape))  # f() of the relations, and the image itself
        self.other = self.add(self.noise(shape))

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def add(self, image: Tensor) -> int:
        self.found.append(image)
        return len(self.found) - 1

    def cut(self, row: int | None, column: int | None) -> tuple[slice, slice, slice]:
        """Pixels of a patch of the grid, or of a whole row or column of it."""
        first, p = slice(None), self.patch
        return (
            first,
            first if row is None else slice(row * p, row * p + p),
            first if column is None else slice(column * p, column * p + p),
        )

    def with_patches(self, *patches: tuple[tuple[int, int], Tensor]) -> int:
        """The number of the blank with patches (c, patch, patch) at (row, column) of the grid."""
        image = self.found[self.blank].clone()
        for (row, column), value in patches:
            image[self.cut(row, column)] = value
        return self.add(image)

    def exchanged(self, one: tuple[slice, ...], two: tuple[slice, ...]) -> int:
        """The number of the blank with two cuts of one shape exchanged."""
        blank = self.found[self.blank]
        image = blank.clone()
        image[one], image[two] = blank[two], blank[one]
        return self.add(image)

    def rolled(self, axis: int) -> int:
        """The number of the blank with its halves along an axis exchanged; a middle line stays."""
        n = self.shape[axis]
        half, line = n // 2, torch.arange(n)
        order = torch.cat([line[n - half :], line[half : n - half], line[:half]])
        return self.add(self.found[self.blank].index_select(axis, order))


def nearest(n: int) -> tuple[int, int]:
    """Indices of n in the first and the last half that are nearest to each other."""
    return n // 2 - 1, n - n // 2


def drawn(n: int, rng: random.Random) -> tuple[int, int]:
    """Random indices of n, one in the first and one in the last half."""
    return rng.randrange(n // 2), n - 1 - rng.randrange(n // 2)


@torch.no_grad()
def outputs(model: nn.Module, images: list[Tensor]) -> list[Tensor]:
    """Every output (n, c) of the images, averaged over its tokens; by one backend, on parts."""
    size = max(1, CHUNK // images[0].numel())
    parts = []
    with backends.backend("reference"):
        for start in range(0, len(images), size):
            batch = torch.stack(images[start : start + size])
            leaves = [leaf for leaf in tree_leaves(model(batch)) if isinstance(leaf, Tensor)]
            parts.append([pooled(leaf, batch) for leaf in leaves if leaf.is_floating_point()])
    if not parts[0] or len({len(part) for part in parts}) > 1:
        raise SpecError("its output holds no logits (b, classes) and no maps")
    return [torch.cat(leaf) for leaf in zip(*parts, strict=True)]


def pooled(y: Tensor, images: Tensor) -> Tensor:
    """(b, c) in float64 from logits (b,) or (b, c), tokens (b, n, c), or maps of either layout."""
    if y.ndim not in (1, 2, 3, 4) or y.shape[0] != images.shape[0] or not y.numel():
        raise SpecError(f"an output {tuple(y.shape)} is neither logits nor a map")
    y = y.double()
    if y.ndim < 3:
        return y.reshape(len(y), -1)
    if y.ndim == 3:
        return y.mean(1)
    h, w = images.shape[2:]

    def fits(rows: int, columns: int) -> bool:  # the sides of the image, divided and rounded
        return abs(rows * w - columns * h) <= max(h, w)

    last = fits(*y.shape[1:3]) and not fits(*y.shape[2:4])
    return y.mean((1, 2) if last else (2, 3))
