"""Checks of a dataset before step 1: labels and shapes at once, and every image file read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from training.data.images import ArrayImages, Images
from training.data.splits import Data
from transom.errors import SpecError, printable
from transom.progress import Bar

SHOWN, CHUNK = 3, 64  # files named in an error; images of one task of a thread


def check(data: Data) -> None:
    """Checks shapes, labels and classes; no file is read.

    Args:
        data: the dataset.

    Raises:
        SpecError: for one class only, a label out of range, a class without a training image, or
            a channel that is constant.

    Example:
        >>> from training.data.opening import open_data
        >>> from training.data.scan import check
        >>> check(open_data("order:train=8,test=4"))
    """
    name = printable(data.name)
    if data.classes < 2:
        only = ", ".join(data.class_names) or "none"
        raise SpecError(f"{name}: one class only ({printable(only)}); give at least two")
    for split, images in (("train", data.train), ("test", data.test)):
        wrong = ((images.labels < 0) | (images.labels >= data.classes)).nonzero()[:, 0]
        if len(wrong):
            where = int(wrong[0])
            raise SpecError(
                f"{name}: {split}: label {int(images.labels[where])} of image {where} is out of "
                f"range; expected 0 to {data.classes - 1}"
            )
        if isinstance(images, ArrayImages) and images.array.shape[1] != data.channels:
            found = images.array.shape[1]
            raise SpecError(f"{name}: {split}: {found} channels; expected {data.channels}")
    counts = data.train.labels.bincount(minlength=data.classes)
    if not counts.all():
        missing = data.class_names[int((counts == 0).nonzero()[0, 0])]
        raise SpecError(f"{name}: train: class {printable(missing)!r} has no image; add some")
    if 0.0 in data.std:
        channel = data.std.index(0.0)
        raise SpecError(f"{name}: train: channel {channel} is constant; give images that differ")


def scan(data: Data, workers: int = 4) -> None:
    """Reads every image once, as training will, so that no run fails at a file later.

    Args:
        data: the dataset.
        workers: number of threads that decode files.

    Raises:
        SpecError: with what `check` finds, or the first three images that cannot be read and the
            number of the others.

    Example:
        >>> from training.data.opening import open_data
        >>> from training.data.scan import scan
        >>> scan(open_data("order:train=8,test=4"))
    """
    check(data)
    pictures = [part for part in (data.train, data.test) if not isinstance(part, ArrayImages)]
    total = sum(map(len, pictures))
    if not total:
        return
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            found = itertools.chain.from_iterable(_faults(pool, part) for part in pictures)
            faults = [fault for fault in Bar(found, unit="image", total=total) if fault]
        finally:
            pool.shutdown(cancel_futures=True)
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise SpecError(
            f"{printable(data.name)}: {len(faults)} of {total} images cannot be read: "
            f"{'; '.join(faults[:SHOWN])}{more}; repair or remove them"
        )


def _faults(pool: ThreadPoolExecutor, images: Images) -> Iterator[str]:
    """For every image what is wrong with it, or ""."""

    def read(start: int) -> list[str]:
        return [_fault(images, i) for i in range(start, min(start + CHUNK, len(images)))]

    return itertools.chain.from_iterable(pool.map(read, range(0, len(images), CHUNK)))


def _fault(images: Images, index: int) -> str:
    try:
        images.check(index)
    except SpecError as error:
        return str(error)
    return ""
