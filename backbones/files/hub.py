"""Files of the Hugging Face hub, by name."""

from __future__ import annotations

import re
from pathlib import Path

from backbones.files.storage import WeightsError
from transom.errors import cause_of, one_line


def fetch(name: str, file: str = "model.safetensors") -> Path:
    """The local copy of a file of ``hf:owner/name`` or ``hf:owner/name@revision``.

    Only here huggingface_hub is imported.  Raises WeightsError where the file cannot be fetched.
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
        cause = one_line(cause_of(error))
        raise WeightsError(
            f"{name}: {file} cannot be fetched ({type(error).__name__}: {cause}); offline, fetch "
            "it by hand and give its path"
        ) from None
