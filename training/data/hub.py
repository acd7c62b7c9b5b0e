"""Datasets of the Hugging Face hub, read by the optional library `datasets`."""

from __future__ import annotations

import hashlib
import importlib
import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.images import ArrayImages, Images, PictureImages, read_picture
from transom.errors import SpecError, cause_of, nearest, one_line, printable

TESTS = ("test", "validation", "valid", "val")  # the first one whose labels are public counts
SMALL = 64  # pixels; images of one size up to this one are held in memory
OPTIONS = ("config", "image", "label", "revision")


class TableImages(PictureImages):
    """Pictures of a column of a `datasets.Dataset`, read as RGB when asked for.

    Args:
        table: the dataset, whose images are not decoded.
        column: name of the images.
        labels: (n,) int64.
        rows: (n,) int64, the images' rows; all in their order by default.
        name: in errors.
    """

    def __init__(
        self, table: Any, column: str, labels: Tensor, rows: Tensor | None = None, name: str = ""
    ) -> None:
        super().__init__(labels)
        self.table, self.column, self.name = table, column, name
        self.rows = torch.arange(len(labels)) if rows is None else rows

    def picture(self, index: int) -> Image.Image:
        row = int(self.rows[index])
        cell = self.table[row][self.column] or {}
        place = f"{self.name}, row {row}"
        if cell.get("bytes") is None and not cell.get("path"):
            raise SpecError(f"{place}: it has no image; leave the row out")
        return read_picture(cell["bytes"] or cell["path"], name=place)

    def subset(self, indices: Tensor) -> TableImages:
        rows, labels = self.rows[indices], self.labels[indices]
        return TableImages(self.table, self.column, labels, rows, self.name)

    def fingerprint(self) -> bytes:
        """SHA-256 of the sizes of all pictures in bytes and their classes, in order; no pixels."""
        compute = importlib.import_module("pyarrow.compute")
        files = compute.struct_field(self.table.data.column(self.column), "bytes")
        sizes = compute.fill_null(compute.binary_length(files), 0).to_numpy().astype(np.int64)
        digest = hashlib.sha256(sizes[self.rows.numpy()].tobytes())
        digest.update(self.labels.contiguous().numpy().data)
        return digest.digest()


def open_hub(name: str) -> tuple[Images, Images, tuple[str, ...]]:
    """The splits of ``hf:OWNER/NAME``, whose image and label columns are found by their types.

    Args:
        name: the id, and after a colon, where needed, ``config=``, ``image=``, ``label=`` (names
            of columns) and ``revision=``, parted by commas.

    Returns:
        Training images, test images, and the names of the classes.  Images of one size of at most
        64 pixels a side are held in memory, with one channel if all are grey.

    Raises:
        SpecError: if the library or the dataset cannot be had, or it has no such columns.

    Example:
        >>> from training.data.hub import open_hub
        >>> try:
        ...     open_hub("hf:mnist")
        ... except ValueError as error:
        ...     print(error)
        'hf:mnist': a dataset of the hub is written hf:OWNER/NAME or hf:OWNER/NAME:label=COLUMN
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::(.+))?", name)
    if match is None:
        raise SpecError(
            f"{one_line(name)!r}: a dataset of the hub is written hf:OWNER/NAME or "
            "hf:OWNER/NAME:label=COLUMN"
        )
    options = dict(item.partition("=")[::2] for item in match[2].split(",")) if match[2] else {}
    for key, value in options.items():
        if key not in OPTIONS or not value:
            raise SpecError(f"hf: {one_line(key)!r} is no option=value{nearest(key, OPTIONS)}", key)
    datasets = _library(name)
    try:
        tables = datasets.load_dataset(
            match[1], options.get("config"), revision=options.get("revision")
        )
    except Exception as error:  # offline, refused, absent: each version has its own classes
        cause = one_line(cause_of(error))
        raise SpecError(
            f"{name}: it cannot be loaded ({type(error).__name__}: {cause}); offline, give the "
            "path of a folder of images"
        ) from None
    return _splits(name, tables, options, datasets)


def _library(name: str) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise SpecError(
            f"{printable(name)}: the library datasets is not installed: pip install datasets"
        ) from None
    if int(datasets.__version__.partition(".")[0]) < 4:  # earlier ones run a dataset's script
        raise SpecError(
            f"{printable(name)}: datasets {datasets.__version__} runs code of the dataset: "
            "pip install 'datasets>=4'"
        )
    return datasets


def _splits(
    name: str, tables: Any, options: dict[str, str], datasets: Any
) -> tuple[Images, Images, tuple[str, ...]]:
    found = list(tables)
    tests = [split for split in TESTS if split in found]
    if "train" not in found or not tests:
        raise SpecError(
            f"{name}: splits {printable(', '.join(found))}; expected train and one of "
            f"{', '.join(TESTS)}"
        )
    features = tables["train"].features
    image = _column(name, "image", options, features, datasets.Image)
    label = _column(name, "label", options, features, datasets.ClassLabel)
    labels = {split: _labels(name, tables[split], label) for split in ("train", *tests)}
    test = next((split for split in tests if (labels[split] >= 0).all()), tests[0])
    train, judged = (
        TableImages(
            tables[split].cast_column(image, datasets.Image(decode=False)), image, labels[split],
            name=f"{name}, {split}",
        )
        for split in ("train", test)
    )  # fmt: skip
    class_names = tuple(features[label].names)
    in_memory = _in_memory(train, judged) if len(train) and len(judged) else None
    return (*in_memory, class_names) if in_memory else (train, judged, class_names)


def _column(name: str, role: str, options: dict[str, str], features: Any, kind: type) -> str:
    """The column of a type: the one that the options name, or the only one."""
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if role in options:
        if options[role] not in found:
            hint = printable(nearest(options[role], found))
            raise SpecError(f"{name}: no {role} column {one_line(options[role])!r}{hint}")
        return options[role]
    if len(found) != 1:
        columns = printable(", ".join(found)) or f"none (of {printable(', '.join(features))})"
        raise SpecError(
            f"{name}: columns of type {kind.__name__}: {columns}; name one by {name}:{role}=COLUMN"
        )
    return str(found[0])


def _labels(name: str, table: Any, column: str) -> Tensor:
    values = list(table[column])
    return torch.tensor([-1 if value is None else int(value) for value in values]).long()


def _in_memory(*splits: TableImages) -> tuple[ArrayImages, ArrayImages] | None:
    """The splits as arrays, if their images are small and of one size."""
    first = splits[0].picture(0).size
    if max(first) > SMALL:
        return None
    arrays = []
    for images in splits:
        pixels = torch.empty(len(images), 3, first[1], first[0], dtype=torch.uint8)
        for index in range(len(images)):
            picture = images.picture(index)
            if picture.size != first:
                return None
            pixels[index] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        arrays.append(pixels)
    if all(torch.equal(p[:, 0], p[:, i]) for p in arrays for i in (1, 2)):
        arrays = [pixels[:, :1] for pixels in arrays]
    train, test = (ArrayImages(p, s.labels) for p, s in zip(arrays, splits, strict=True))
    return train, test
