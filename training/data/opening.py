"""Datasets by name: the made one, two that need no hub, and whatever a path or a hub id holds."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from training.data import arrays, folders, hub, order, scan
from training.data.batches import stream
from training.data.images import ArrayImages, Images
from training.data.splits import Data, Size, assemble, stratified
from transom.errors import SpecError, nearest, one_line, printable
from transom.fields import read_size

NAMES = ("order", "digits", "fashion")
FASHION = "/usr/share/datasets/fashion-mnist"
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
PATHS = (
    "a path: a folder with train/ and test/ or val/ and in each a folder of images a class; a "
    "folder of four idx files; an .npz file"
)


def open_data(name: str, size: int | str | Sequence[int] | None = None) -> Data:
    """Opens a dataset; its labels and shapes are checked, its image files are not yet read.

    Args:
        name: ``order`` (made; options ``order:noise=0.2,train=4096,test=1000``), ``digits``
            (scikit-learn's 1,797), ``fashion`` (Debian's dataset-fashion-mnist), the path of a
            folder in ImageFolder layout, of a folder of idx files or of an .npz file, or
            ``hf:OWNER/NAME``.
        size: of a run's images in pixels: 224, "224x192" or (224, 192), height first; by default
            that of arrays, and 224 for pictures.

    Returns:
        The dataset.

    Raises:
        SpecError: for a name that stands for nothing, or a dataset that cannot be trained on.

    Example:
        >>> from training.data.opening import open_data
        >>> data = open_data("order:train=200,test=100", size=64)
        >>> len(data.train), len(data.test), data.size
        (200, 100, (64, 64))
    """
    try:
        wanted = None if size is None else read_size(size)
    except ValueError as error:
        raise SpecError(f"size={one_line(repr(size))}: expected {error}") from None
    word, colon, rest = name.partition(":")
    if word == "order":
        data = order.make(_order_config(rest if colon else None), wanted)
    elif name == "digits":
        data = _digits(wanted)
    elif name == "fashion":
        data = _fashion(wanted)
    elif word == "hf":
        train, test, class_names = hub.open_hub(name)
        data = assemble(name, train, test, class_names, wanted)
    else:
        data = _open_path(name, wanted)
    scan.check(data)
    _check_same_classes(data)
    return data


def _check_same_classes(data: Data) -> None:
    missing = set(range(data.classes)) - set(data.test.labels.tolist())
    if missing:
        name = printable(data.class_names[min(missing)])
        raise SpecError(
            f"{printable(data.name)}: test: class {name!r} has no image, but train has; add some, "
            "or leave the class out"
        )


def _order_config(text: str | None) -> order.OrderConfig:
    options: dict[str, str] = {}
    allowed = [field.name for field in dataclasses.fields(order.OrderConfig)]
    for item in text.split(",") if text is not None else ():
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise SpecError(f"order: {one_line(item)!r} is not option=value", item)
        if key not in allowed:
            hint = nearest(key, allowed)
            raise SpecError(f"order: it has no option {one_line(key)!r}{hint}", key)
        if key in options:
            raise SpecError(f"order: option {one_line(key)!r} is given twice", item)
        options[key] = value
    return order.OrderConfig(**options)  # type: ignore[arg-type]  # the fields read text


def _digits(size: Size | None) -> Data:
    """scikit-learn's digits: 8x8 pixels, values 0 to 16 as bytes 0 to 240; 360 of them to test."""
    try:
        sets = importlib.import_module("sklearn.datasets")
    except ImportError:
        advice = "pip install transom[data]"
        raise SpecError(f"digits: scikit-learn is not installed: {advice}") from None
    found = sets.load_digits()
    pixels = torch.from_numpy(found.images * 15).to(torch.uint8)[:, None]
    images = ArrayImages(pixels, torch.from_numpy(found.target).long())
    train, test = stratified(images.labels, 360, stream(0, "digits"))
    classes = tuple(map(str, range(10)))
    return assemble("digits", images.subset(train), images.subset(test), classes, size)


def _fashion(size: Size | None) -> Data:
    folder = Path(FASHION)
    files = arrays.idx_files(folder) if folder.is_dir() else {}
    if not files:
        raise SpecError(
            f"fashion: {FASHION} holds no Fashion-MNIST: apt install dataset-fashion-mnist, or "
            "give the path of a folder with its four idx files"
        )
    train, test, _ = arrays.open_idx(files)
    return assemble("fashion", train, test, FASHION_CLASSES, size)


def _open_path(name: str, size: Size | None) -> Data:
    path = Path(name).expanduser()
    splits: tuple[Images, Images, tuple[str, ...]]  # train, test, class names
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError:  # a name too long
        exists = is_folder = False
    if not exists or not name:
        if os.sep in name or name.endswith(".npz"):
            raise SpecError(f"{printable(name)}: no such file or folder; give {PATHS}", name)
        hint = nearest(name, [*NAMES, "hf:OWNER/NAME"])
        raise SpecError(f"no dataset is called {one_line(name)!r}{hint}, or {PATHS}", name)
    if is_folder:
        if folders.is_image_folder(path):
            splits = folders.open_folder(path)
        elif files := arrays.idx_files(path):
            splits = arrays.open_idx(files)
        else:
            raise SpecError(f"{printable(name)}: neither train/ nor idx files in it; give {PATHS}")
    elif path.suffix == ".npz":
        splits = arrays.open_npz(path)
    else:
        raise SpecError(f"{printable(name)}: not an .npz file; give {PATHS}")
    train, test, class_names = splits
    return assemble(name, train, test, class_names, size)
