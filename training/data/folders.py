"""Folders of image files: a folder a split, in it a folder a class (torchvision's ImageFolder)."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from training.data.images import FolderImages
from transom.errors import SpecError, nearest, printable

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
TRAIN, TESTS = "train", ("test", "val", "validation")  # the first test folder with classes counts


def is_image_folder(folder: Path) -> bool:
    """Whether a folder has the folder train/.

    Args:
        folder: the folder.

    Returns:
        True if it has.

    Example:
        >>> from pathlib import Path
        >>> from training.data.folders import is_image_folder
        >>> is_image_folder(Path("transom"))
        False
    """
    return (folder / TRAIN).is_dir()


def open_folder(folder: Path) -> tuple[FolderImages, FolderImages, tuple[str, ...]]:
    """The splits of a folder with train/ and one of test/, val/ and validation/.

    Args:
        folder: the folder; its classes are the names of the folders in train/, sorted.  Files and
            folders whose name begins with a dot, and files that are no images by their ending, are
            left out.

    Returns:
        Training images, test images, and the names of the classes.

    Raises:
        SpecError: if a split or a class has no images, or the splits have different classes.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from training.data.folders import open_folder
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        ...         Path(root, name).mkdir(parents=True)
        ...         Image.new("RGB", (9, 9)).save(Path(root, name, "0.png"))
        ...     open_folder(Path(root))[2]
        ('cat', 'dog')
    """
    present = [name for name in TESTS if (folder / name).is_dir()]
    if not present:
        expected = ", ".join(f"{name}/" for name in TESTS)
        raise SpecError(f"{printable(folder)}: train/ has no folder beside it of {expected}")
    test = next((name for name in present if _classes(folder / name)), present[0])
    classes = _classes(folder / TRAIN)
    if not classes:
        raise SpecError(f"{printable(folder / TRAIN)}: it is empty; put a folder a class there")
    others = _classes(folder / test)
    if classes != others:
        split, name = _missing(test, classes, others)
        near = nearest(name, (others if split == test else classes)[:20])
        raise SpecError(
            f"{printable(folder / split)}: it has no folder {printable(name)!r}{printable(near)}; "
            "both splits have the same classes"
        )
    train, judged = (_images(folder / split, classes) for split in (TRAIN, test))
    return train, judged, tuple(classes)


def _missing(test: str, classes: list[str], others: list[str]) -> tuple[str, str]:
    """The first class that one split lacks, and the split."""
    lacking = [(test, name) for name in classes if name not in others]
    return (lacking + [(TRAIN, name) for name in others if name not in classes])[0]


def _classes(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise SpecError(f"{printable(folder)}: {error.strerror}") from None


def _images(folder: Path, classes: list[str]) -> FolderImages:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_files(folder, name))
        if not found:
            endings = " ".join(ENDINGS)
            raise SpecError(
                f"{printable(folder / name)}: no image is in it (files that end in {endings}); "
                "add some, or remove the class from both splits"
            )
        names += found
        labels += [label] * len(found)
    return FolderImages(folder, names, torch.tensor(labels))


def _files(folder: Path, name: str) -> list[str]:
    """Relative names of the images of a class, in folders of any depth."""
    found = []
    for here, folders, files in os.walk(folder / name, followlinks=True):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        relative = os.path.relpath(here, folder)
        found += [
            f"{relative}/{file}" for file in files
            if file.lower().endswith(ENDINGS) and not file.startswith(".")
        ]  # fmt: skip
    return found
