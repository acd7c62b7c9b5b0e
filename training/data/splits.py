"""Images with random access, and a dataset's two splits: images to train on, images to judge on."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from training.data.batches import stream
from transom.errors import SpecError, printable

Size = tuple[int, int]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PICTURE_SIZE = (224, 224)  # of pictures of any sizes, where none is asked for
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # PIL's EPS starts a program
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # modes that PIL cuts off at 255


class Images(ABC):
    """Labelled images with random access and no state of an iterator.

    Args:
        labels: (n,) int64, the class of every image.

    Example:
        >>> import torch
        >>> from training.data.splits import ArrayImages, Images
        >>> images = ArrayImages(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3))
        >>> isinstance(images, Images), len(images)
        (True, 3)
    """

    def __init__(self, labels: Tensor) -> None:
        if labels.ndim != 1 or labels.dtype != torch.int64:
            found = f"{tuple(labels.shape)} {labels.dtype}"
            raise SpecError(f"labels {found}: expected one whole number (int64) an image")
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def pixels(self, indices: Tensor) -> Tensor:
        """Pixels (b, c, h, w) uint8 of images that all have one size.  Raises SpecError if not."""

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """One image, decoded.  Raises SpecError, with the image's name, if it cannot be read."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Images:
        """The images with these indices (m,) int64, in this order."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """SHA-256 of what stands for the content."""

    def check(self, index: int) -> None:
        """Reads one image as training will.  Raises SpecError if it cannot be read."""
        self.picture(index)


class ArrayImages(Images):
    """Images of one size, held in memory as bytes.

    Args:
        pixels: (n, c, h, w) uint8.
        labels: (n,) int64.

    Raises:
        SpecError: for other shapes or types.

    Example:
        >>> import torch
        >>> from training.data.splits import ArrayImages
        >>> images = ArrayImages(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3))
        >>> images.pixels(torch.tensor([2, 0])).shape, images.picture(0).mode
        (torch.Size([2, 1, 8, 8]), 'L')
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        super().__init__(labels)
        if pixels.ndim != 4 or pixels.dtype != torch.uint8 or not pixels.shape[1:].numel():
            found = f"{tuple(pixels.shape)} {pixels.dtype}"
            raise SpecError(f"images {found}: expected (n, channels, height, width) of bytes")
        if len(pixels) != len(labels):
            raise SpecError(f"{len(pixels)} images have {len(labels)} labels: expected one each")
        self.array = pixels.contiguous()

    def pixels(self, indices: Tensor) -> Tensor:
        return self.array[indices]

    def picture(self, index: int) -> Image.Image:
        channels = self.array.shape[1]
        if channels not in (1, 3):
            raise SpecError(f"an image of {channels} channels is no picture: expected 1 or 3")
        array = self.array[index].permute(1, 2, 0).numpy()
        return Image.fromarray(array[:, :, 0] if channels == 1 else array)

    def subset(self, indices: Tensor) -> ArrayImages:
        return ArrayImages(self.array[indices], self.labels[indices])

    def fingerprint(self) -> bytes:
        digest = hashlib.sha256(repr(tuple(self.array.shape)).encode())
        digest.update(self.array.numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.digest()


class PictureImages(Images):
    """Images of any sizes, decoded one by one."""

    def pixels(self, indices: Tensor) -> Tensor:
        raise SpecError("the images have sizes of their own: ask for one picture after another")


class FolderImages(PictureImages):
    """Image files of any sizes, read as RGB when asked for.

    Args:
        root: the folder.
        names: of the files, relative to the folder.
        labels: (n,) int64.

    Raises:
        SpecError: if the numbers of names and labels differ.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> from training.data.splits import FolderImages
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("L", (5, 4)).save(root + "/a.png")
        ...     picture = FolderImages(root, ["a.png"], torch.tensor([0])).picture(0)
        >>> picture.mode, picture.size
        ('RGB', (5, 4))
    """

    def __init__(self, root: str | Path, names: Sequence[str], labels: Tensor) -> None:
        super().__init__(labels)
        if len(names) != len(labels):
            raise SpecError(f"{len(names)} files have {len(labels)} labels: expected one each")
        self.root, self.names = str(root), tuple(names)

    def picture(self, index: int) -> Image.Image:
        return read_picture(os.path.join(self.root, self.names[index]))

    def check(self, index: int) -> None:
        path = os.path.join(self.root, self.names[index])
        read_picture(path, verify=True)
        read_picture(path)

    def subset(self, indices: Tensor) -> FolderImages:
        names = [self.names[index] for index in indices.tolist()]
        return FolderImages(self.root, names, self.labels[indices])

    def fingerprint(self) -> bytes:
        """SHA-256 of names, sizes in bytes and classes, sorted by name; no time, no pixels."""
        lines = []
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            path = os.path.join(self.root, name)
            try:
                n_bytes = os.stat(path).st_size
            except OSError as error:
                raise SpecError(f"{printable(path)}: {error.strerror}; restore the file") from None
            lines.append(os.fsencode(name) + f"\0{n_bytes}\0{label}".encode())
        return hashlib.sha256(b"\n".join(sorted(lines))).digest()


def read_picture(file: str | bytes, name: str = "", verify: bool = False) -> Image.Image:
    """A picture as RGB, or as it is where only checksums are verified.

    Args:
        file: path, or the bytes of a file.
        name: of the picture in an error; the path by default.
        verify: checks what the format can check without decoding it.

    Returns:
        The decoded picture.

    Raises:
        SpecError: if it cannot be read, or has more than 8 bits a channel.

    Example:
        >>> from training.data.splits import read_picture
        >>> try:
        ...     read_picture(b"GIF89a", name="cat.gif")
        ... except ValueError as error:
        ...     print(str(error).partition(" (")[0])
        cat.gif: it cannot be read
    """
    place = printable(name or os.fsdecode(file))
    source: Any = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.mode in DEEP:
                raise SpecError(f"{place}: mode {image.mode}; convert it to 8 bits a channel")
            if verify:
                image.verify()
                return image
            return image.convert("RGB")
    except SpecError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        cause = getattr(error, "strerror", None) or str(error).replace(repr(file), "it")
        cause = " ".join(cause.split()) or type(error).__name__
        raise SpecError(f"{place}: it cannot be read ({printable(cause[:160])})") from None


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
        >>> from training.data.splits import ArrayImages, assemble
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
