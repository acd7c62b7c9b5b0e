"""Labelled images with random access: in memory, or files that are decoded when asked for."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from transom.errors import SpecError, printable

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # PIL's EPS starts a program
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # modes that PIL cuts off at 255


class Images(ABC):
    """Labelled images with random access and no state of an iterator.

    Args:
        labels: (n,) int64, the class of every image.

    Example:
        >>> import torch
        >>> from training.data.images import ArrayImages, Images
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
        >>> from training.data.images import ArrayImages
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
        >>> from training.data.images import FolderImages
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
        >>> from training.data.images import read_picture
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
