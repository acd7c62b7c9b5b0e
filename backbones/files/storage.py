"""Files of weights, written whole or not at all.

Beside what is written stands a SHA-256 manifest, ``FILE.sha256`` as sha256sum prints it, which
every later reading must agree with.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from transom.errors import SpecError, one_line


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


def shown(path: str | Path) -> str:
    """A path in an error: whole (the user has to find it), and one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path)[:4096])


@contextlib.contextmanager
def about(path: Path | None) -> Iterator[None]:
    """Puts the path before an error about what a file holds, unless it is there."""
    try:
        yield
    except SpecError as error:
        if path is None or str(path) in str(error):
            raise
        raise type(error)(f"{shown(path)}: {error}") from None


# -- the manifest ------------------------------------------------------------------------------


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def verify(path: Path) -> None:
    """Compares a file with its manifest, if one stands beside it (or beside a link's target)."""
    for manifest in {manifest_of(path), manifest_of(path.resolve())}:
        if not os.path.lexists(manifest):
            continue
        lines = read_text(manifest).splitlines()
        known = {line.split()[0] for line in lines if line.strip()}
        if (found := digest(path)) not in known:
            raise WeightsError(
                f"{shown(path)}: its SHA-256 {found[:16]}... is not that of {manifest.name}: "
                "changed or damaged since it was written; fetch it again"
            )


# -- writing -----------------------------------------------------------------------------------


def write(state: Mapping[str, Tensor], path: str | Path, texts: Mapping[str, str]) -> Path:
    """Writes a .safetensors file and its manifest; at every moment the old or the new file loads.

    A link's target is replaced and keeps its mode.  texts: the metadata of the header.
    Raises WeightsError.  Returns the file written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{shown(path)}: only .safetensors files are written")
    target = path.resolve()
    tidy(target)
    temporary = _temporary(target)
    try:
        old = digest(target) if target.is_file() else None
        mode = stat.S_IMODE(target.stat().st_mode) if old else None
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        # the bytes, not save_file: that has a temporary file of its own, left behind by a kill
        temporary.write_bytes(save(whole, metadata=dict(texts)))
        if mode is not None:
            temporary.chmod(mode)
        _sync(temporary)
        new = digest(temporary)
        # both digests while either file may stand there, then the one that does
        _write_manifest(target, [new] if old is None else [new, old])
        temporary.replace(target)
        _sync(target.parent)
        _write_manifest(target, [new])
    except (OSError, SafetensorError) as error:
        cause = one_line(getattr(error, "strerror", None) or str(error))
        _drop(temporary)  # so that what it took counts as free
        free = _free(target.parent)
        raise WeightsError(f"{shown(path)}: cannot be written: {cause}{free}") from None
    finally:
        _drop(temporary)
    return target


def _free(folder: Path) -> str:
    """The room that is left, as the end of an error; nothing where it cannot be told."""
    try:
        return f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB are free there)"
    except OSError:
        return ""


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


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
    for name in (target.name, manifest_of(target).name):
        for left in target.parent.glob(f".{glob.escape(name)}.*.tmp"):
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
    """A small text file, whole or as it was.  Raises WeightsError."""
    temporary = _temporary(path)
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        _drop(temporary)
        cause = f"{error.strerror or error}{_free(path.parent)}"
        raise WeightsError(f"{shown(path)}: cannot be written: {cause}") from None
    finally:
        _drop(temporary)


def read_text(path: Path, longest: int = 2**20) -> str:
    """A small text file.  Raises WeightsError."""
    try:
        if not path.is_file() or path.stat().st_size > longest:
            raise OSError(f"no file, or none below {longest} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{shown(path)}: cannot be read: {error}") from None
