"""Files of arrays: the MNIST family's idx files and numpy's .npz; nothing in them is run."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from training.data.images import ArrayImages
from transom.errors import SpecError, nearest, one_line, printable

Splits = tuple[ArrayImages, ArrayImages, tuple[str, ...]]  # train, test, class names
LARGEST, CHUNK = 2**32, 2**24  # bytes of an array: more is damage; bytes read at a time
IDX = re.compile(r"(.*?)-?(train|t10k|test)-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")
LAYOUTS = (  # names of images and labels in an .npz: medmnist's and keras's
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)  # fmt: skip


def labelled(place: str, pixels: Tensor, labels: Tensor) -> ArrayImages:
    """Images with labels; an error names the file.

    Args:
        place: path of the file.
        pixels: (n, c, h, w) uint8.
        labels: (n,) int64.

    Returns:
        The images.

    Raises:
        SpecError: if shapes or types do not fit.

    Example:
        >>> import torch
        >>> from training.data.arrays import labelled
        >>> len(labelled("a.npz", torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2)))
        2
    """
    try:
        return ArrayImages(pixels, labels)
    except SpecError as error:
        raise SpecError(f"{printable(place)}: {error}") from None


def numbered(place: str, labels: Tensor) -> tuple[str, ...]:
    """Names of classes that have only numbers.

    Args:
        place: path of the file.
        labels: (n,) int64 of the training images.

    Returns:
        "0", "1", ... for every class.

    Raises:
        SpecError: unless the labels are all numbers from 0 to the largest one.

    Example:
        >>> import torch
        >>> from training.data.arrays import numbered
        >>> numbered("a.npz", torch.tensor([1, 0, 1]))
        ('0', '1')
    """
    found = labels.unique().tolist()
    for expected, label in enumerate(found):
        if label != expected:
            wrong = label if label < 0 else expected
            what = "is out of range" if label < 0 else "has no training image"
            raise SpecError(
                f"{printable(place)}: label {wrong} {what}; number the {len(found)} classes from "
                f"0 to {len(found) - 1}"
            )
    return tuple(map(str, found))


# -- idx -------------------------------------------------------------------------------------


def idx_files(folder: Path) -> dict[str, Path]:
    """The files of the MNIST family in a folder.

    Args:
        folder: the folder.

    Returns:
        Paths by "train images", "train labels", "test images" and "test labels"; empty if there is
        no such file.

    Raises:
        SpecError: if some are missing, or there are those of several datasets.

    Example:
        >>> from pathlib import Path
        >>> from training.data.arrays import idx_files
        >>> idx_files(Path("transom"))
        {}
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # x.gz before x, which replaces it
        if match := IDX.fullmatch(path.name):
            part = f"{'train' if match[2] == 'train' else 'test'} {match[3][:6]}"
            found.setdefault(match[1], {})[part] = path
    if len(found) > 1:
        names = ", ".join(sorted(map(one_line, found)))
        raise SpecError(f"{printable(folder)}: idx files of {names}; keep one dataset a folder")
    files = next(iter(found.values()), {})
    parts = [f"{split} {what}" for split in ("train", "test") for what in ("images", "labels")]
    missing = [part for part in parts if files and part not in files]
    if missing:
        names = "train-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz"
        raise SpecError(
            f"{printable(folder)}: no idx file of the {' and '.join(missing)} (four files are "
            f"named like {names})"
        )
    return files


def read_idx(path: Path, dims: int) -> Tensor:
    """An array of bytes from an .idx or .idx.gz file.

    Args:
        path: of the file.
        dims: number of dimensions: 3 for images, 1 for labels.

    Returns:
        uint8 of this many dimensions.

    Raises:
        SpecError: if the file is cut short, longer than it says, or something else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from training.data.arrays import read_idx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "t10k-labels-idx1-ubyte")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
        ...     read_idx(path, dims=1).tolist()
        [7, 9]
    """
    place = printable(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(4 + 4 * dims)
            shape = [int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4)]
            count, data = min(math.prod(shape), LARGEST), bytearray()
            while len(data) <= count and (chunk := file.read(min(CHUNK, count + 1 - len(data)))):
                data += chunk
    except (OSError, EOFError, zlib.error) as error:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SpecError(f"{place}: it cannot be read ({one_line(cause)}); fetch it again") from None
    if head[:4] != bytes([0, 0, 8, dims]):
        found = head[:4].hex() or "nothing"
        raise SpecError(
            f"{place}: it begins with {found}, not with the 000008{dims:02x} of an idx file of "
            f"bytes in {dims} dimension{'s' if dims > 1 else ''}; fetch it again"
        )
    if len(shape) < dims or len(data) != count:
        wrong = "it is longer than" if len(data) > count else "it is cut short of what"
        raise SpecError(f"{place}: {wrong} its first bytes promise; fetch it again")
    return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape))


def open_idx(files: dict[str, Path]) -> Splits:
    """The splits of four idx files.

    Args:
        files: as `idx_files` finds them.

    Returns:
        Training images, test images, and the names of the classes.

    Raises:
        SpecError: naming the file that is damaged or does not fit.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from training.data.arrays import open_idx
        >>> images = [0, 0, 8, 3, *[0, 0, 0, 2] * 3, *range(8)]
        >>> labels = [0, 0, 8, 1, 0, 0, 0, 2, 0, 1]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = {}
        ...     for part, content in {"images": images, "labels": labels}.items():
        ...         for split in ("train", "test"):
        ...             files[f"{split} {part}"] = path = Path(folder, f"{split}-{part}")
        ...             _ = path.write_bytes(bytes(content))
        ...     open_idx(files)[0].array[1].tolist()
        [[[4, 5], [6, 7]]]
    """
    splits = []
    for split in ("train", "test"):
        path = files[f"{split} images"]
        pixels = read_idx(path, 3)[:, None]
        labels = read_idx(files[f"{split} labels"], 1).long()
        splits.append(labelled(str(path), pixels, labels))
    return splits[0], splits[1], numbered(str(files["train labels"]), splits[0].labels)


# -- npz -------------------------------------------------------------------------------------


def open_npz(path: Path) -> Splits:
    """The splits of an .npz file, in medmnist's or keras's layout.

    Args:
        path: of the file.

    Returns:
        Training images, test images, and the names of the classes.

    Raises:
        SpecError: naming the key that is missing or does not fit.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from training.data.arrays import open_npz
        >>> images = np.zeros((2, 28, 28), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mine.npz")
        ...     np.savez(path, x_train=images, y_train=[0, 1], x_test=images, y_test=[0, 1])
        ...     open_npz(path)[2]
        ('0', '1')
    """
    place = printable(path)
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise SpecError(f"{place}: one array, not an .npz of four; save it by numpy.savez")
        with opened as archive:
            keys = next((k for k in LAYOUTS if set(k) <= set(archive.files)), None)
            if keys is None:
                raise SpecError(_without_keys(place, archive.files))
            arrays = [archive[key] for key in keys]
    except SpecError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, BadZipFile, zlib.error) as error:
        cause = one_line(getattr(error, "strerror", None) or str(error))
        raise SpecError(f"{place}: it cannot be read ({cause}); fetch or save it again") from None
    splits = []
    for i in (0, 2):
        pixels = _pixels(f"{place}: {keys[i]}", arrays[i])
        labels = _labels(f"{place}: {keys[i + 1]}", arrays[i + 1])
        splits.append(labelled(f"{path}: {keys[i]}", pixels, labels))
    return splits[0], splits[1], numbered(f"{path}: {keys[1]}", splits[0].labels)


def _without_keys(place: str, found: list[str]) -> str:
    best = max(LAYOUTS, key=lambda layout: len(set(layout) & set(found)))
    missing = [key for key in best if key not in found]
    near = printable(nearest(missing[0], found[:20])) if found else "; (it is empty)"
    return f"{place}: no array is called {missing[0]!r}{near}, expected {', '.join(best)}"


def _pixels(place: str, array: np.ndarray[Any, Any]) -> Tensor:
    """(n, c, h, w) from images (n, h, w) or (n, h, w, c)."""
    planes = array[..., None] if array.ndim == 3 else array
    if planes.dtype != np.uint8 or planes.ndim != 4 or planes.shape[-1] > 4:
        found = f"{array.shape} {array.dtype}"
        raise SpecError(f"{place} {found}: expected uint8 (n, h, w) or (n, h, w, channels)")
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 3, 1, 2)))


def _labels(place: str, array: np.ndarray[Any, Any]) -> Tensor:
    """(n,) from labels (n,) or (n, 1)."""
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        found = f"{array.shape} {array.dtype}"
        raise SpecError(f"{place} {found}: expected whole numbers (n,) or (n, 1), one an image")
    return torch.from_numpy(flat.astype(np.int64))
