"""A batch in parts: a few images at a time through a stage, some groups or rows at a time.

Parts give the numbers of the undivided batch; they save memory and, on a CPU, the way of every
map to the main memory and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from torch import Tensor

IMAGES = 6 << 20  # bytes of the maps that go through a stage together: they stay in the cache
TILES = 2 << 20  # bytes of tokens that are gathered for overlapping tiles together
WIDEST = 16 << 20  # bytes of tensors wider than a map: queries, keys and values, hidden layers

Maps = TypeVar("Maps", Tensor, tuple[Tensor, Tensor])  # a map, or a map and the tokens beside it

_bound: ContextVar[int | None] = ContextVar("bound", default=None)


@contextmanager
def bounded(mebibytes: float) -> Iterator[None]:
    """Context that bounds the memory of inference, on any device.

    Inside, a few images at a time go through a stage, and tensors wider than their maps (queries,
    keys and values inside groups, hidden layers) are computed in chunks that take at most
    `mebibytes`, or hold one group or one token.  Axial, cross, pale and full attention project
    an image in one piece.

    Args:
        mebibytes: the bound, in MiB; more than 0.

    Returns:
        A context manager.

    Raises:
        ValueError: for a bound of 0 or less, when the context is entered.

    Example:
        >>> import attention, torch
        >>> from attention.fast import bounded
        >>> mixer = attention.create("window:size=7", dim=32, heads=2).eval()
        >>> with torch.inference_mode(), bounded(1):
        ...     mixer(torch.zeros(1, 56, 56, 32)).shape
        torch.Size([1, 56, 56, 32])
    """
    if not mebibytes > 0:
        raise ValueError(f"bounded: {mebibytes} MiB; a chunk needs more than 0")
    token = _bound.set(max(int(mebibytes * 2**20), 1))
    try:
        yield
    finally:
        _bound.reset(token)


def bound() -> int | None:
    """The bound of the innermost `bounded` in bytes, None outside of it."""
    return _bound.get()


def exceeds(size: int) -> bool:
    """True if `size` bytes are more than one part may take."""
    return size > (_bound.get() or WIDEST)


def image_parts(images: int, image_bytes: int) -> list[slice]:
    """Slices of a batch, of almost equal length, whose maps fit the cache or the bound.

    image_bytes: bytes of the maps of one image.
    """
    most = max((_bound.get() or IMAGES) // max(image_bytes, 1), 1)
    n = max(-(-images // most), 1)
    return [slice(i * images // n, (i + 1) * images // n) for i in range(n)]


def row_parts(rows: int, row_bytes: int) -> list[slice]:
    """Slices of `rows`, at least one, whose widest intermediates fit the bound.

    row_bytes: bytes of the intermediates of one row.
    """
    step = max((_bound.get() or WIDEST) // max(row_bytes, 1), 1)
    return [slice(i, min(i + step, rows)) for i in range(0, max(rows, 1), step)]


def tile_parts(tiles: int, tile_bytes: int, *, wide: bool = False) -> list[slice]:
    """Slices of `tiles`, at least one, whose gathered tokens fit the cache or the bound.

    tile_bytes: bytes of the tokens of one tile in all images.  wide: they may take as much as the
    widest tensors of a stage, and several times more.
    """
    most = 16 * WIDEST if wide else TILES
    step = max(min(_bound.get() or most, most) // max(tile_bytes, 1), 1)
    return [slice(i, min(i + step, tiles)) for i in range(0, tiles, step)]


def group_parts(images: int, groups: int, group_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Pairs (images, groups) of slices: all groups of several images, or several of one image."""
    for image_part in row_parts(images, groups * group_bytes):
        single = image_part.stop - image_part.start == 1
        for group_part in row_parts(groups, group_bytes) if single else [slice(0, groups)]:
            yield image_part, group_part


def joined(parts: Iterable[slice], run: Callable[..., Maps], *maps: Tensor) -> Maps:
    """The results of `run` on every part of the maps along their first axis, joined along it.

    Args:
        parts: slices of the first axis.
        run: maps -> one map, or a tuple of maps.
        maps: of equal first axes.
    """
    length, out = maps[0].shape[0], list[Tensor]()
    for part in parts:
        result = run(*(t[part] for t in maps))
        pieces = (result,) if isinstance(result, Tensor) else result
        if pieces[0].shape[0] == length:
            return result
        # the first results have the shapes and types of all
        out = out or [t.new_empty(length, *t.shape[1:]) for t in pieces]
        for whole, piece in zip(out, pieces, strict=True):
            whole[part] = piece
    return out[0] if len(out) == 1 else tuple(out)  # type: ignore[return-value]
