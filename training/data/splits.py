"""A dataset's two splits, images to train on and images to judge on, and ways to part one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.batches import stream
from training.data.images import ArrayImages, Images
from transom.errors import SpecError, printable

Size = tuple[int, int]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PICTURE_SIZE = (224, 224)  # of pictures of any sizes, where none is asked for


@dataclass(frozen=True)
class Data:
    """A dataset: immutable; its images are read by index.

    Args:
        name: as it was asked for.
        train: images to train on.
        test: images to judge on.
        classes: number of classes; labels are from 0 to classes - 1.
        channels: of an image.
        size: (height, width) in pixels that a run's images have, unless it asks for another.
        class_names: a name a class.
        digest: 16 hexadecimal digits of the content.  Arrays: of all pixels and labels.  Pictures:
            of the names and sizes in bytes of all files and their classes, no pixels.
        mean: a channel's mean over the training pixels, in [0, 1]; for pictures ImageNet's.
        std: a channel's standard deviation, likewise.

    Example:
        >>> from training.data.opening import open_data
        >>> data = open_data("order:train=8,test=4")
        >>> len(data.train), len(data.test), data.classes, data.channels, data.size
        (8, 4, 2, 1, (32, 32))
    """

    name: str
    train: Images
    test: Images
    classes: int
    channels: int
    size: Size
    class_names: tuple[str, ...]
    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def assemble(
    name: str, train: Images, test: Images, class_names: Sequence[str], size: Size | None = None
) -> Data:
    """A dataset with the numbers that follow from its images.

    Args:
        name: of the dataset.
        train: images to train on.
        test: images to judge on.
        class_names: a name a class.
        size: (height, width) of a run's images in pixels; by default that of the arrays, or
            224x224 for pictures.

    Returns:
        The dataset; `training.data.scan.check` says whether it can be trained on.

    Raises:
        SpecError: if a file is gone, no image is left to train on, or test images in memory have
            another shape than the training images.

    Example:
        >>> import torch
        >>> from training.data.images import ArrayImages
        >>> from training.data.splits import assemble
        >>> grey = ArrayImages(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8), torch.arange(2))
        >>> assemble("grey", grey, grey, ["a", "b"]).mean
        (0.2,)
    """
    channels, own = 3, PICTURE_SIZE
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    if not len(train) or not len(test):
        which = "test" if len(train) else "training"
        raise SpecError(f"{printable(name)}: it has no {which} images; give it some")
    if isinstance(train, ArrayImages):
        shape = tuple(train.array.shape[1:])
        if not isinstance(test, ArrayImages) or tuple(test.array.shape[1:]) != shape:
            found = tuple(test.array.shape[1:]) if isinstance(test, ArrayImages) else "any"
            raise SpecError(
                f"{printable(name)}: a training image has (channels, height, width) {shape}, a "
                f"test image {found}; expected one shape"
            )
        channels, own = shape[0], (shape[1], shape[2])
        mean, std = _moments(train.array)
    digest = hashlib.sha256(train.fingerprint() + test.fingerprint()).hexdigest()[:16]
    return Data(
        name, train, test, len(class_names), channels, size or own, tuple(class_names), digest,
        mean, std,
    )  # fmt: skip


def _moments(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel of (n, c, h, w) bytes, in [0, 1]: from exact sums."""
    means, deviations = [], []
    values = torch.arange(256)
    for channel in range(pixels.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64)
        for part in pixels[:, channel].split(4096):
            counts += torch.bincount(part.flatten(), minlength=256)
        n = int(counts.sum())
        first, second = int((counts * values).sum()), int((counts * values**2).sum())
        means.append(first / n / 255)
        deviations.append((n * second - first**2) ** 0.5 / n / 255)
    return tuple(means), tuple(deviations)


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Parts the images in two, with equal shares of the classes as far as whole images allow.

    A class keeps at least one image in the first part.  The images are drawn; which class gives
    one more than another is not: the largest remainder does, and of equal ones the first.

    Args:
        labels: (n,) int64.
        count: images of the second part.
        generator: draws the images of every class.

    Returns:
        Indices (n - count,) and (count,), each in ascending order.

    Raises:
        SpecError: if no image is drawn, or a class would be left without one.

    Example:
        >>> import torch
        >>> from training.data.batches import stream
        >>> from training.data.splits import stratified
        >>> labels = torch.tensor([0] * 8 + [1] * 4)
        >>> rest, drawn = stratified(labels, 3, stream(0, "example"))
        >>> labels[drawn].tolist(), len(rest)
        ([0, 0, 1], 9)
    """
    groups = [torch.nonzero(labels == label)[:, 0] for label in labels.unique().tolist()]
    if not 1 <= count <= len(labels) - len(groups):
        raise SpecError(
            f"{count} of {len(labels)} images of {len(groups)} classes cannot be set apart: "
            "expected at least one, and one left of every class; give more images"
        )
    quotas = [len(group) * count / len(labels) for group in groups]
    shares = [min(int(quota), len(group) - 1) for quota, group in zip(quotas, groups, strict=True)]
    while sum(shares) < count:
        spare = [i for i, group in enumerate(groups) if shares[i] < len(group) - 1]
        shares[max(spare, key=lambda i: quotas[i] - shares[i])] += 1
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for group, share in zip(groups, shares, strict=True):
        drawn[group[torch.randperm(len(group), generator=generator)[:share]]] = True
    return torch.nonzero(~drawn)[:, 0], torch.nonzero(drawn)[:, 0]


def holdout(data: Data, seed: int) -> Data:
    """A dataset for tuning: both splits are parts of the training images, so none is judged on.

    Args:
        data: the dataset; its test images are left out.
        seed: says which images are held out.

    Returns:
        The dataset whose training images are nine tenths of the training images, and whose test
        images are the rest, by class as far as whole images allow.

    Raises:
        SpecError: if there are too few images for one of every class to train on.

    Example:
        >>> from training.data.opening import open_data
        >>> from training.data.splits import holdout
        >>> tuning = holdout(open_data("order:train=40,test=4"), seed=0)
        >>> len(tuning.train), len(tuning.test), tuning.test.labels.sum().item()
        (36, 4, 2)
    """
    n = len(data.train)
    try:
        rest, held = stratified(data.train.labels, max(1, n // 10), stream(seed, "holdout"))
    except SpecError as error:
        raise SpecError(f"{printable(data.name)}: {error}") from None
    name = f"{data.name}/holdout={int(seed)}"
    train, test = data.train.subset(rest), data.train.subset(held)
    return assemble(name, train, test, data.class_names, data.size)
