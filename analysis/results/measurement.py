"""Configuration of one measurement, as plain data that is sent to a worker process.

Plain Python without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transom.errors import SpecError, nearest

KINDS = ("backbone", "peer", "named", "mixer", "matmul")
MODES = ("infer", "train")
DTYPES = ("float32", "bfloat16", "float16", "float64")
BACKENDS = ("auto", "reference", "cpu", "kernel", "folded")  # folded: only in old rows
_PATHS = {"fast": "auto", "plain": "reference", "folded": "folded"}  # names in old rows
LAYOUTS = ("contiguous", "channels_last")
DEVICES = ("cpu", "cuda")
MALLOCS = ("keep", "default")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Configuration of one measurement: immutable, hashable, validated on construction.

    kind: backbone (ours, `what` in our notation), peer (the counterpart of the backbone `what` in
    `library`, with its weights), named (`what` as analysis.models.lookup finds it), mixer (`what`
    alone, with dim, heads and index) or matmul (`what` = "MxKxN").
    size: (h, w) of the image in pixels, or of a mixer's map in tokens.
    name: label of the table's row.  compile: torch.compile.  threads: 0 for torch's default.
    backend: of ours, as `attention.backend` takes it.
    without: the piece of the engine that is switched off (analysis.timing.pieces), "" for none.
    malloc: keep, so that freed memory stays with the process and no call waits for the kernel to
    clear pages, or default, the C library's behaviour.
    """

    kind: str
    what: str
    library: str = ""
    name: str = ""
    mode: str = "infer"
    dtype: str = "float32"
    compile: bool = False
    backend: str = "auto"
    layout: str = "contiguous"
    device: str = "cpu"
    threads: int = 0
    malloc: str = "default"
    batch: int = 1
    size: tuple[int, int] = (224, 224)
    dim: int = 0
    heads: int = 0
    index: int = 0
    without: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise SpecError(f"{name}={value!r}: not known{nearest(str(value), allowed)}")
        if self.batch < 1:
            raise SpecError(f"batch={self.batch}: expected a whole number from 1")

    @property
    def label(self) -> str:
        """The short name of a table's row: library, backend and missing piece."""
        if self.name or self.kind == "peer":
            return self.name or self.library
        text = "transom" if self.kind == "backbone" else self.what
        text = text if self.backend == "auto" else f"{text} {self.backend}"
        return f"{text} without {self.without}" if self.without else text

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "size": list(self.size)}


_ALLOWED = {
    "kind": KINDS, "backend": BACKENDS, "mode": MODES, "dtype": DTYPES, "layout": LAYOUTS,
    "device": DEVICES, "malloc": MALLOCS,
}  # fmt: skip


def from_dict(config: Mapping[str, Any]) -> Measurement:
    """The measurement of a row's config.  Raises SpecError for an unknown field."""
    config = dict(config)
    if "path" in config:
        config["backend"] = _PATHS.get(path := config.pop("path"), path)
    names = [field.name for field in dataclasses.fields(Measurement)]
    for key in config:
        if key not in names:
            raise SpecError(f"a measurement has no field {key!r}{nearest(key, names)}")
    return Measurement(**config)


def canonical(content: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, ASCII."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def key_of(content: Any) -> str:
    """A digest of a JSON value that does not depend on the order of keys or on the process."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:32]
