"""Files of weights, read without running anything in them.

A .safetensors file is preferred.  A .pth file is read by torch's restricted unpickler alone, and
only in torch's zip format; there is no way around it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention.options import one_line
from backbones.storage import WeightsError, shown, verify

SAFE_TORCH = (2, 10)  # older ones have published holes in weights_only=True
LONGEST_HEADER = 8 * 2**20  # bytes; a backbone's names take 0.2 MB
MOST_ENTRIES = 65536
WRAPPERS = ("model", "state_dict", "state_dict_ema", "model_ema")
PICKLES = (".pth", ".pt", ".bin")
NEXT = "fetch it again, or give a .safetensors file"


def read(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file.  Nothing in it is ever run.

    entry: which of several state dicts a .pth file holds.  Raises WeightsError with the path,
    the cause and the way out.
    """
    path = Path(path)
    regular(path)
    verify(path)
    if path.suffix == ".safetensors":
        state = _safetensors(path)
    elif path.suffix in PICKLES:
        state = _pth(path, entry)
    else:
        known = ", ".join((".safetensors", *PICKLES))
        raise WeightsError(f"{shown(path)}: not a file of weights by its ending (one of: {known})")
    if not state:
        raise WeightsError(f"{shown(path)}: holds no tensors; {NEXT}")
    return state


def metadata(path: str | Path) -> dict[str, str]:
    """The texts in the header of a .safetensors file; {} for any other kind."""
    path = Path(path)
    regular(path)
    if path.suffix != ".safetensors":
        return {}
    header = _header(path).get("__metadata__", {})
    return header if isinstance(header, dict) else {}


def regular(path: Path) -> None:
    """Refuses what is no file before it is opened: a FIFO would never answer."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        expected = "expected a .safetensors or .pth file"
        raise WeightsError(f"{shown(path)}: cannot be read: {cause}; {expected}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise WeightsError(f"{shown(path)}: cannot be read: it is {kind}; give a file of weights")


# -- the two formats ---------------------------------------------------------------------------


def _header(path: Path) -> dict[str, Any]:
    """The JSON header, its length checked before it is read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > size - 8:
            claim = f"a header of {length} bytes is claimed, the file has {size}"
            raise WeightsError(f"{shown(path)}: cannot be read: cut short ({claim}); {NEXT}")
        if length > LONGEST_HEADER:
            found = f"its header has {length} bytes, the longest read {LONGEST_HEADER}"
            raise WeightsError(f"{shown(path)}: cannot be read: {found}; {NEXT}")
        text = file.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("not a table")
    except (ValueError, RecursionError) as error:
        cause = f"its header is no JSON: {one_line(str(error))}"
        raise WeightsError(f"{shown(path)}: cannot be read: {cause}; {NEXT}") from None
    return header


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = _header(path)
    if len(header) > MOST_ENTRIES:
        found = f"{len(header)} tensors, the most read are {MOST_ENTRIES}"
        raise WeightsError(f"{shown(path)}: cannot be read: {found}")
    try:
        return load_file(path)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError,
            OverflowError, MemoryError, AttributeError) as error:  # fmt: skip
        cause = one_line(str(error))
        raise WeightsError(f"{shown(path)}: cannot be read: {cause}; {NEXT}") from None


def _pth(path: Path, entry: str | None) -> dict[str, Tensor]:
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < SAFE_TORCH:
        needs = ".".join(map(str, SAFE_TORCH))
        raise WeightsError(
            f"{shown(path)}: not opened: torch {torch.__version__} is older than {needs}, below "
            "which weights_only=True can be escaped; update torch or give a .safetensors file"
        )
    _check_zip(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # whatever their bytes make the reader raise, it is their fault
        cause = one_line(" ".join(str(error).split()) or type(error).__name__)
        raise WeightsError(f"{shown(path)}: refused by torch's safe reader: {cause}") from None
    state = _unwrap(loaded, path, entry)
    for key, tensor in state.items():
        _check_tensor(tensor, f"{shown(path)}: {one_line(str(key))}")
    return state


def _check_zip(path: Path) -> None:
    """torch's own files are zips of stored entries: what is packed may grow without end."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        cause = f"no file of torch.save in its zip format ({one_line(str(error))})"
        raise WeightsError(f"{shown(path)}: cannot be read: {cause}; save it as safetensors"
        ) from None  # fmt: skip
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    whole = sum(entry.file_size for entry in entries)
    if packed or whole > path.stat().st_size or len(entries) > MOST_ENTRIES:
        cause = f"its {len(entries)} entries are packed, or larger ({whole} bytes) than the file"
        raise WeightsError(f"{shown(path)}: refused: {cause}; torch.save writes no such file")


def _unwrap(loaded: Any, path: Path, entry: str | None) -> dict[str, Tensor]:
    """The state dict itself, or the one under a name that training scripts use."""
    if not isinstance(loaded, Mapping):
        kind = type(loaded).__name__
        raise WeightsError(f"{shown(path)}: holds a {kind}, not a table of tensors")
    inner = [key for key in loaded if key in WRAPPERS and isinstance(loaded[key], Mapping)]
    if entry is not None:
        if not isinstance(loaded.get(entry), Mapping):
            known = ", ".join(inner) or "none"
            raise WeightsError(f"{shown(path)}: no state dict called {entry!r} (it has: {known})")
        return dict(loaded[entry])
    if len(inner) > 1:
        raise WeightsError(f"{shown(path)}: holds {', '.join(inner)}; say which one by --entry")
    return dict(loaded[inner[0]]) if inner else dict(loaded)


def _check_tensor(tensor: Any, place: str) -> None:
    """A tensor whose numbers are all there: an expanded one of 2^40 takes no room in a file."""
    if not isinstance(tensor, Tensor):
        raise WeightsError(f"{place} is a {type(tensor).__name__}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise WeightsError(f"{place} is sparse or quantized; only plain tensors are read")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{place} claims {tensor.numel()} numbers, more than are stored")

# -- the hub -----------------------------------------------------------------------------------


def fetch(name: str, file: str = "model.safetensors") -> Path:
    """The local copy of a file of ``hf:owner/name`` or ``hf:owner/name@revision``.

    huggingface_hub is imported here alone, and only safetensors are asked for.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if match is None:
        raise WeightsError(f"{one_line(name)!r}: a hub id is written hf:owner/name[@revision]")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise WeightsError(
            f"{name}: huggingface_hub is not installed; install it, or fetch {file} by hand and "
            "give its path"
        ) from None
    try:
        return Path(hf_hub_download(match[1], file, revision=match[2]))
    except Exception as error:  # offline, refused, absent: each version has its own classes
        cause = one_line(" ".join(str(error).split()) or type(error).__name__)
        raise WeightsError(
            f"{name}: {file} cannot be fetched ({type(error).__name__}: {cause}); offline, fetch "
            "it by hand and give its path"
        ) from None
