"""The made task `order`: which of two glyphs is on the left.

An image of 32x32 pixels shows a plus and a hollow square, each of 4x4 pixels on the grid of 4x4
tokens: one anywhere in the left half, the other anywhere in the right half, both in the same upper
or lower half.  The halves are the windows of 16 pixels, and the place of a glyph inside its window
has the same distribution on both sides.  So a network that is additive over windows cannot do
better than chance, nor can one that is equivariant to permutations of the rows or columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.data.batches import stream
from training.data.images import ArrayImages
from training.data.splits import Data, Size, assemble
from transom.fields import option, read_count, read_fields, read_number, write

SIDE, TOKEN, AMPLITUDE = 32, 4, 2.0  # pixels, pixels, and a glyph's value; the ground is 0
ACROSS = SIDE // TOKEN // 2  # tokens of a window's side
CLASSES = ("plus left", "square left")
GLYPHS = torch.tensor(
    [  # 12 pixels each: the sum of an image says nothing
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]],
        [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]],
    ]
)


def _read_noise(value: Any) -> float:
    number = read_number(value)
    if not 0 <= number <= 4:
        raise ValueError("a number from 0 to 4")
    return number


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """Options of the made task: immutable, hashable, validated on construction.

    Args:
        noise: standard deviation of the normal noise; a glyph's amplitude is 2.
        train: number of training images.
        test: number of test images.

    Raises:
        SpecError: for a value that an option does not take.

    Example:
        >>> from training.data.order import OrderConfig
        >>> str(OrderConfig(noise="0.2"))
        'order:noise=0.2'
    """

    noise: float = option(0.1, _read_noise, "standard deviation of the noise; a glyph is 2")
    train: int = option(4096, read_count, "training images")
    test: int = option(1000, read_count, "test images")

    def __post_init__(self) -> None:
        read_fields(self, "order")

    def __str__(self) -> str:
        values = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]
        changed = [f"{field.name}={write(v)}" for field, v in values if v != field.default]
        return "order" + (":" + ",".join(changed) if changed else "")


def layouts(n: int, generator: torch.Generator) -> Tensor:
    """Draws where the glyphs stand, every layout with its twin of the other label.

    Of a pair, the second is the first rolled by half the image, so labels are balanced, and what
    stands in the left windows and in the right windows has exactly one distribution.

    Args:
        n: number of images; of an odd one, the last has no twin.
        generator: draws the layouts and shuffles the images.

    Returns:
        (n, 6) int64: label, half (0 upper, 1 lower), row and column in tokens of the glyph in the
        left window, row and column of the glyph in the right window.

    Example:
        >>> from training.data.batches import stream
        >>> from training.data.order import layouts
        >>> layouts(4, stream(0, "example"))[:, 0].sum().item()
        2
    """
    pairs = (n + 1) // 2
    label = torch.randint(2, (pairs, 1), generator=generator)
    half = torch.randint(2, (pairs, 1), generator=generator)
    places = torch.randint(ACROSS, (pairs, 4), generator=generator)
    first = torch.cat([label, half, places], 1)
    twin = torch.cat([1 - label, half, places[:, [2, 3, 0, 1]]], 1)
    both = torch.stack([first, twin], 1).flatten(0, 1)[:n]
    return both[torch.randperm(n, generator=generator)]


def paint(layout: Tensor) -> Tensor:
    """Images of layouts, without noise.

    Args:
        layout: (n, 6) int64, as `layouts` draws it.

    Returns:
        (n, 1, 32, 32) float32: 0, and 2 where a glyph is.

    Example:
        >>> import torch
        >>> from training.data.order import paint
        >>> paint(torch.tensor([[0, 0, 1, 0, 2, 3]])).sum().item()  # two glyphs of 12 pixels
        48.0
    """
    images = torch.zeros(len(layout), 1, SIDE, SIDE)
    inside = torch.arange(TOKEN)
    label, half, *places = layout.unbind(1)
    which = torch.arange(len(layout))[:, None, None]
    for side, (row, column) in enumerate((places[:2], places[2:])):
        rows = TOKEN * (half * ACROSS + row)[:, None] + inside  # (n, 4)
        columns = TOKEN * (side * ACROSS + column)[:, None] + inside
        glyphs = AMPLITUDE * GLYPHS[(label + side) % 2].float()
        images[which, 0, rows[:, :, None], columns[:, None]] = glyphs
    return images


def to_bytes(images: Tensor, noise: float) -> Tensor:
    """Real images as bytes: an affine map, rounded and cut off at 0 and 255.

    With noise up to 0.2 a byte is 64 (value + 1): values from -1 to 2.98, in steps of 1/64, which
    adds 0.2% to the variance of noise 0.1.  With more noise the map covers five deviations below
    the ground and above a glyph.  An affine map vanishes where mean and deviation are normalised.

    Args:
        images: any shape, real.
        noise: standard deviation.

    Returns:
        uint8, the same shape.

    Example:
        >>> import torch
        >>> from training.data.order import to_bytes
        >>> to_bytes(torch.tensor([0.0, 2.0]), noise=0.1).tolist()
        [64, 192]
    """
    lowest = max(1.0, 5 * noise)
    levels = 64.0 if lowest == 1 else 255 / (AMPLITUDE + 2 * lowest)
    return ((images + lowest) * levels).round().clamp(0, 255).to(torch.uint8)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws from the standard normal distribution, equal on all machines to 15 digits.

    torch.randn is not: its digits depend on the instructions of the processor.

    Args:
        shape: of the draws.
        generator: draws them.

    Returns:
        float64 of this shape.

    Example:
        >>> from training.data.batches import stream
        >>> from training.data.order import normal
        >>> abs(normal((10_000,), stream(0, "example")).std().item() - 1) < 0.02
        True
    """
    uniform = torch.rand(tuple(shape), dtype=torch.float64, generator=generator)
    return torch.special.ndtri(uniform)


def make(config: OrderConfig, size: Size | None = None) -> Data:
    """The made task, the same on every machine.

    Args:
        config: its options.
        size: (height, width) of a run's images in pixels; 32x32 by default.

    Returns:
        The dataset: one channel, two classes.

    Example:
        >>> from training.data.order import OrderConfig, make
        >>> data = make(OrderConfig(train=8, test=4))
        >>> data.class_names, data.train.labels.sum().item()
        (('plus left', 'square left'), 4)
    """
    splits = []
    for split, n in (("train", config.train), ("test", config.test)):
        layout = layouts(n, stream(0, "order task", split, "layout"))
        images = paint(layout)
        draw = normal(images.shape, stream(0, "order task", split, "noise"))
        pixels = to_bytes(images + config.noise * draw, config.noise)
        splits.append(ArrayImages(pixels, layout[:, 0].clone()))
    return assemble(str(config), splits[0], splits[1], CLASSES, size)
