"""One bit per test image, as text: which of them a model classifies correctly."""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt


def packed(correct: npt.NDArray[np.bool_]) -> str:
    """Text of (images,) bools.

    Example:
        >>> import numpy as np
        >>> from training.data.bits import packed, unpacked
        >>> unpacked(packed(np.array([True, False, True])), 3).tolist()
        [True, False, True]
    """
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpacked(text: str, count: int) -> npt.NDArray[np.bool_]:
    """(count,) bools of a text; none is set where it is empty, as of a run that diverged."""
    bits = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool) if bits.size else np.zeros(count, bool)
