"""Files of weights, read without running anything in them.

The first bytes of a file tell its format, not its ending.  A file of torch.save is read by torch's
restricted unpickler alone, only in torch's zip format, and in a process with limits; there is no
way around it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.files import sandbox, standins
from backbones.files.locate import Located, locate
from backbones.files.storage import WeightsError, verify
from transom.errors import cause_of, one_line, printable

SAFE_TORCH = (2, 10)  # older ones have published holes in weights_only=True
LONGEST_HEADER = 8 * 2**20  # bytes; a backbone's names take 0.2 MB
MOST_ENTRIES = 65536
ZIP = b"PK\x03\x04"
FOUND = "transom.found"  # where the child's header keeps what lies beside the tensors, as JSON
MOST_BESIDE = 1000  # things named in a report
NEXT = "fetch it again, or give a .safetensors file"


def read(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """Reads the tensors of a .safetensors file or of a file of torch.save, running nothing in it.

    Args:
        path: the file; its first bytes tell its kind, not its ending.
        entry: names on the way to one of several state dicts, ``ema.module``.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        WeightsError: the file cannot be read; one line has the path, the cause and the way out.

    Example:
        >>> import backbones, tempfile
        >>> from backbones import weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = weights.save(backbones.create("swin_t/stages=2"), folder + "/a.safetensors")
        ...     weights.read(file)["stem.conv.weight"].shape
        torch.Size([96, 3, 4, 4])
    """
    return located(path, entry).state


def located(path: str | Path, entry: str | None = None) -> Located:
    """The tensors of a file as `read` gives them, and what lies beside them."""
    path = Path(path)
    regular(path)
    with _disk_errors(path):
        verify(path)
        if is_zip(path):
            found = _zip(path, entry)
        elif entry is not None:
            raise WeightsError(f"{printable(path)}: --entry {entry}: its tensors are in no entries")
        else:
            found = Located(_safetensors(path), {}, {})
    if not found.state:
        raise WeightsError(f"{printable(path)}: holds no tensors; {NEXT}")
    return found


def is_zip(path: Path) -> bool:
    """True for a zip, as torch.save writes it; False for a .safetensors file.

    Raises WeightsError for any other content.
    """
    with path.open("rb") as file:
        first = file.read(9)
    if first.startswith(ZIP):
        return True
    if first[8:] != b"{" and path.suffix != ".safetensors":
        cause = "neither a .safetensors file nor one of torch.save in its zip format"
        raise WeightsError(f"{printable(path)}: cannot be read: {cause}; save it as safetensors")
    return False


def metadata(path: str | Path) -> dict[str, str]:
    """The texts in the header of a .safetensors file; {} for a zip."""
    path = Path(path)
    regular(path)
    with _disk_errors(path):
        if is_zip(path):
            return {}
        header = _header(path).get("__metadata__", {})
    return header if isinstance(header, dict) else {}


def regular(path: Path) -> None:
    """Refuses folders and devices before they are opened: reading a FIFO would never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        expected = "expected a .safetensors or .pth file"
        raise WeightsError(f"{printable(path)}: cannot be read: {cause}; {expected}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        advice = "give a file of weights"
        raise WeightsError(f"{printable(path)}: cannot be read: it is {kind}; {advice}")


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a WeightsError with the path."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise WeightsError(f"{printable(path)}: cannot be read: {cause}") from None


# -- the two formats ---------------------------------------------------------------------------


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of a .safetensors file, whose length is checked before it is read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > size - 8:
            claim = f"a header of {length} bytes is claimed, the file has {size}"
            raise WeightsError(f"{printable(path)}: cannot be read: cut short ({claim}); {NEXT}")
        if length > LONGEST_HEADER:
            found = f"its header has {length} bytes, the longest read {LONGEST_HEADER}"
            raise WeightsError(f"{printable(path)}: cannot be read: {found}; {NEXT}")
        text = file.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("not a table")
    except (ValueError, RecursionError) as error:
        cause = f"its header is no JSON: {one_line(str(error))}"
        raise WeightsError(f"{printable(path)}: cannot be read: {cause}; {NEXT}") from None
    return header


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = _header(path)
    if len(header) > MOST_ENTRIES:
        found = f"{len(header)} tensors, the most read are {MOST_ENTRIES}"
        raise WeightsError(f"{printable(path)}: cannot be read: {found}")
    try:
        return load_file(path)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError,
            OverflowError, MemoryError, AttributeError) as error:  # fmt: skip
        cause = one_line(str(error))
        raise WeightsError(f"{printable(path)}: cannot be read: {cause}; {NEXT}") from None


def _zip(path: Path, entry: str | None) -> Located:
    """Reads a zip of torch.save in a limited process, which writes its tensors as safetensors."""
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < SAFE_TORCH:
        needs = ".".join(map(str, SAFE_TORCH))
        raise WeightsError(
            f"{printable(path)}: not opened: torch {torch.__version__} is older than {needs}, "
            "below which weights_only=True can be escaped; update torch or give a .safetensors file"
        )
    if not sandbox.supported():
        raise WeightsError(
            f"{printable(path)}: not opened: .pth files are read under limits of memory and time, "
            "which this system does not set (Linux does); give a .safetensors file"
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "read.safetensors"
        arguments = [os.path.abspath(path), str(out), *([] if entry is None else [entry])]
        try:
            sandbox.run("backbones.files.reading", arguments, path.stat().st_size)
            more = json.loads(_header(out)["__metadata__"][FOUND])
            return Located(_safetensors(out), more["beside"], more["stated"])
        except sandbox.Stopped as error:
            raise WeightsError(f"{printable(path)}: {printable(error)}") from None
        except WeightsError as error:
            cause = str(error).removeprefix(str(out) + ": ")
            raise WeightsError(f"{printable(path)}: as read: {cause}") from None


def _read_in_sandbox(path: Path, out: Path, entry: str | None) -> None:
    """Reads a zip in the limited process and writes its tensors to a .safetensors file.

    Raises WeightsError, whose message does not have the path.
    """
    from safetensors.torch import save_file

    sandbox.limit(path.stat().st_size)
    _check_zip(path)
    try:
        loaded = standins.load(path)
    except WeightsError:
        raise
    except Exception as error:  # hostile bytes can make the reader raise anything
        # the cause, without torch's advice to read the file unsafely
        inner = error.__context__ or error
        cause = one_line(cause_of(inner).split(". ")[0])
        raise WeightsError(f"refused by torch's safe reader: {cause}") from None
    found = locate(loaded, entry)
    for key, tensor in found.state.items():
        _check_tensor(key, tensor)
    beside = {one_line(k): v for k, v in itertools.islice(found.beside.items(), MOST_BESIDE)}
    more = {FOUND: json.dumps({"beside": beside, "stated": found.stated})}
    try:
        state = {key: t.detach().clone().contiguous() for key, t in found.state.items()}
        save_file(state, out, more)
    except Exception as error:  # no room, or kinds of numbers that safetensors has not
        cause = one_line(cause_of(error))
        raise WeightsError(f"what it holds is too large or of unknown kinds: {cause}") from None


def main(argv: list[str]) -> int:
    """``python -m backbones.files.reading FILE OUT [ENTRY]``, which only `sandbox.run` calls."""
    try:
        _read_in_sandbox(Path(argv[0]), Path(argv[1]), argv[2] if len(argv) > 2 else None)
    except WeightsError as error:
        print(printable(error))
        return sandbox.REFUSED
    return 0


def _check_zip(path: Path) -> None:
    """Refuses zips with packed entries: they may unpack to any size, and torch stores entries."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        cause = f"no file of torch.save in its zip format ({one_line(str(error))})"
        raise WeightsError(f"cannot be read: {cause}; save it as safetensors") from None
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    unpacked_size = sum(entry.file_size for entry in entries)
    if packed or unpacked_size > path.stat().st_size or len(entries) > MOST_ENTRIES:
        cause = f"its {len(entries)} entries are packed, or larger "
        cause += f"({unpacked_size} bytes) than the file"
        raise WeightsError(f"refused: {cause}; torch.save writes no such file")


def _check_tensor(key: str, tensor: Tensor) -> None:
    """Refuses tensors with fewer stored numbers than elements.

    An expanded tensor of 2^40 elements takes no room in a file.
    """
    name = one_line(key)
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise WeightsError(f"{name} is sparse or quantized; only plain tensors are read")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{name} claims {tensor.numel()} numbers, more than are stored")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
