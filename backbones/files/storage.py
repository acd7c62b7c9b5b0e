"""Files of weights, written whole or not at all.

A SHA-256 manifest, ``FILE.sha256`` as sha256sum prints it, stands beside every written file, and
later readings compare the file with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from transom.errors import SpecError, one_line, printable


class WeightsError(SpecError):
    """An error about weights that do not fit or cannot be read; the model is unchanged.

    Args:
        message: one line with the file or tensor, the cause and the way out.
        token: the text that is wrong, where it is known.

    Example:
        >>> from backbones import weights
        >>> try:
        ...     weights.load("swin_t/stages=2", {})
        ... except weights.WeightsError as error:
        ...     print(error)
        holds no tensors under names
    """


@contextlib.contextmanager
def about(path: Path | None) -> Iterator[None]:
    """Context that puts the path before a SpecError that does not have it."""
    try:
        yield
    except SpecError as error:
        if path is None or str(path) in str(error):
            raise
        raise type(error)(f"{printable(path)}: {error}") from None


# -- the manifest ------------------------------------------------------------------------------


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def verify(path: Path) -> None:
    """Compares a file with the manifest beside it, or beside a link's target, if there is one.

    Raises WeightsError if they differ.
    """
    for manifest in {manifest_of(path), manifest_of(path.resolve())}:
        if not os.path.lexists(manifest):
            continue
        lines = read_text(manifest).splitlines()
        known = {line.split()[0] for line in lines if line.strip()}
        if (found := digest(path)) not in known:
            raise WeightsError(
                f"{printable(path)}: its SHA-256 {found[:16]}... is not that of {manifest.name}: "
                "changed or damaged since it was written; fetch it again"
            )


# -- writing -----------------------------------------------------------------------------------


def write(state: Mapping[str, Tensor], path: str | Path, texts: Mapping[str, str]) -> Path:
    """Writes a .safetensors file and its manifest; at every moment the old or the new file loads.

    A link's target is replaced and keeps its mode.  texts: the metadata of the header.
    Returns the file written, links resolved.  Raises WeightsError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{printable(path)}: only .safetensors files are written")
    target = path.resolve()
    if target.exists() and not target.is_file():
        cause = "it is not a regular file; give the name of a file"
        raise WeightsError(f"{printable(path)}: cannot be written: {cause}")
    tidy(target)
    temporary = temporary_of(target, os.getpid())
    try:
        old = digest(target) if target.is_file() else None
        mode = stat.S_IMODE(target.stat().st_mode) if old else None
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        # not save_file, whose temporary file a kill would leave behind under an unknown name
        temporary.write_bytes(save(tensors, metadata=dict(texts)))
        if mode is not None:
            temporary.chmod(mode)
        _sync(temporary)
        new = digest(temporary)
        # both digests are valid until the file is replaced, then only the new one
        _write_manifest(target, [new] if old is None else [new, old])
        temporary.replace(target)
        _sync(target.parent)
        _write_manifest(target, [new])
    except (OSError, SafetensorError) as error:
        cause = one_line(getattr(error, "strerror", None) or str(error))
        _drop(temporary)  # so that what it took counts as free
        free = _free(target.parent)
        raise WeightsError(f"{printable(path)}: cannot be written: {cause}{free}") from None
    finally:
        _drop(temporary)
    return target


def _free(folder: Path) -> str:
    """Free disk space as the end of an error; "" where the system does not tell it."""
    try:
        return f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB are free there)"
    except OSError:
        return ""


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def temporary_of(target: Path, process: int | str) -> Path:
    """The temporary file of one writer of `target`: its name is short, however long the target's;
    process "*" stands for every writer."""
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f".{name}.{process}.tmp")


def _write_manifest(target: Path, digests: list[str]) -> None:
    write_text(manifest_of(target), "\n".join(f"{d}  {target.name}" for d in digests))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tidy(target: Path) -> None:
    """Removes temporary files that writers of this file left when they were killed."""
    for written in (target, manifest_of(target)):
        for left in target.parent.glob(temporary_of(written, "*").name):
            owner = left.name.split(".")[-2]
            if owner.isdecimal() and not _alive(int(owner)):
                with contextlib.suppress(OSError):
                    left.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Writes a small text file by replacing it at once.  Raises WeightsError."""
    temporary = temporary_of(path, os.getpid())
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        _drop(temporary)
        cause = f"{error.strerror or error}{_free(path.parent)}"
        raise WeightsError(f"{printable(path)}: cannot be written: {cause}") from None
    finally:
        _drop(temporary)


def read_text(path: Path, longest: int = 2**20) -> str:
    """Content of a text file of at most `longest` bytes.  Raises WeightsError."""
    try:
        if not path.is_file() or path.stat().st_size > longest:
            raise OSError(f"no file, or none below {longest} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{printable(path)}: cannot be read: {error}") from None
