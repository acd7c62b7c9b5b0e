"""Stand-ins for objects of foreign classes in a .pth file, which do nothing.

Training scripts put their arguments, configurations and counters beside the tensors.  Their
classes are never imported and nothing is called: torch's restricted unpickler gets a class of ours
for every such name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attention.execution.torch_private import fillable
from backbones.files.storage import WeightsError
from transom.errors import one_line

# Modules of functions that act (run, read, write, connect): a file that names one is not weights.
ACTS = (
    "_io", "_posixsubprocess", "_socket", "asyncio", "code", "commands", "ctypes", "distutils",
    "ftplib", "http", "imp", "importlib", "io", "marshal", "multiprocessing", "nt", "os", "pdb",
    "pickle", "pip", "posix", "pty", "pydoc", "requests", "runpy", "shutil", "smtplib", "socket",
    "subprocess", "sys", "tempfile", "timeit", "torch.hub", "torch.utils.cpp_extension", "urllib",
    "venv", "webbrowser", "xmlrpc", "zipimport",
)  # fmt: skip
DATA = {  # the data types of builtins, and getattr, by which pickles name methods
    "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list",
    "object", "range", "set", "slice", "str", "tuple",
}  # fmt: skip


class StandIn:
    """An object that accepts all that an unpickler does, and stores the values set by name."""

    content: dict[str, Any]

    def __new__(cls, *args: Any, **fields: Any) -> StandIn:
        stand_in = object.__new__(cls)
        stand_in.content = {}
        return stand_in

    def __init__(self, *args: Any, **fields: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str):
            self.content[key] = value

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            for key, value in state.items():
                self[key] = value

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


def load(path: Path) -> Any:
    """The content of a file of torch.save; to be called in a process that `sandbox.limit` limits.

    Raises WeightsError for names of functions that act, and whatever torch raises.
    """
    with path.open("rb") as file:  # torch would go by the ending of a path
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        if acting := sorted(name for name in names if acts(name)):
            raise WeightsError(f"refused: it would call {one_line(', '.join(acting))}")
        stand_ins = [(type("StandIn", (StandIn,), {"of": name}), name) for name in names]
        file.seek(0)
        with torch.serialization.safe_globals(stand_ins), fillable(StandIn):  # type: ignore[arg-type]
            return torch.load(file, map_location="cpu", weights_only=True)


def acts(name: str) -> bool:
    """True if a function or class may act, by the module in its name."""
    module, _, last = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return last not in DATA
    return any(module == known or module.startswith(known + ".") for known in ACTS)


def kind(value: Any) -> str:
    """Name of the type of a value beside the tensors, for a report."""
    if isinstance(value, StandIn):
        return f"{one_line(type(value).of)} (not read)"  # type: ignore[attr-defined]
    return type(value).__name__
