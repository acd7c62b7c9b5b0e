"""Files that no loader may trust: every one runs `touch MARKER` if anything in it is run, or lies
about its own size."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import io
import json
import os
import pickle
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


class Payload:
    """Unpickled, it calls `function(*arguments)`."""

    def __init__(self, function: Callable, *arguments) -> None:
        self.made = function, arguments

    def __reduce__(self):
        return self.made


class State(Payload):
    """The same through __setstate__-like building: a list made by a call."""

    def __reduce__(self):
        return (list, ((Payload(*[self.made[0], *self.made[1]]),),))


def header(fields: dict, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with any header; length: what it claims instead."""
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str, shape: list[int], start: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def torch_zip(path: Path, data: bytes, *, packed: bool = False, storage: bytes = b"") -> None:
    """torch's zip layout around any pickle."""
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        if storage:
            archive.writestr("archive/data/0", storage)


def write_all(folder: Path, marker: Path, good: Path) -> list[Path]:
    """Every hostile file, each under a name that says what it is.  good: a .safetensors file
    without a manifest, to be cut and damaged."""
    command = f"touch {marker}"
    calls = {
        "os_system": Payload(os.system, command),
        "exec": Payload(exec, f"import os; os.system({command!r})"),
        "eval": Payload(eval, f"__import__('os').system({command!r})"),
        "popen": Payload(os.popen, command),
        "write": Payload(open, str(marker), "w"),
        "import": Payload(__import__, "antigravity"),
        "hub": Payload(torch.hub.load, str(folder), "touch"),
        "nested": {"model": {"a": [{"b": State(os.system, command)}]}},
        "beside_tensors": {"model": {"w": torch.zeros(2)}, "config": Payload(os.system, command)},
    }
    for name, call in calls.items():
        torch.save(call, folder / f"zip_{name}.pth")
    write_beside(folder, marker)
    evil = calls["os_system"]
    for protocol in range(6):
        (folder / f"pickle_{protocol}.pth").write_bytes(pickle.dumps(evil, protocol))
        torch_zip(folder / f"zip_pickle_{protocol}.pt", pickle.dumps(evil, protocol))
    torch.save(evil, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("pickle.safetensors", "pickle.bin", "pickle.npz"):
        (folder / name).write_bytes(pickle.dumps(evil))
    torch.save(evil, folder / "zip.safetensors")
    with tarfile.open(folder / "tar.pth", "w") as archive:
        data = pickle.dumps(evil)
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    array = np.array([evil], dtype=object)
    np.save(folder / "object.npy", array, allow_pickle=True)
    (folder / "npy.pth").write_bytes((folder / "object.npy").read_bytes())
    (folder / "tags.yaml").write_text(f"!!python/object/apply:os.system ['{command}']\n")

    torch_zip(folder / "bomb.pth", b"\0" * 2**25, packed=True)
    torch.save({"w": torch.zeros(1).expand(2**40)}, folder / "expanded.pth")
    torch_zip(folder / "hang.pth", endless())
    torch_zip(folder / "memory.pth", b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" +
              (3 * 2**30).to_bytes(6, "little") + b"\x85R.")  # fmt: skip
    million = torch.zeros(2**20)
    torch.save({f"w{i}": million[:] for i in range(3000)}, folder / "views.pth")
    with zipfile.ZipFile(folder / "entries.pth", "w") as archive:
        for i in range(70_000):
            archive.writestr(f"archive/{i}", b"")
    torch.save({"w": torch.eye(3).to_sparse()}, folder / "sparse.pth")
    torch.save([1, 2], folder / "list.pth")
    two = {"model": {"w": torch.zeros(1)}, "state_dict": {"w": torch.zeros(1)}}
    torch.save(two, folder / "two.pth")

    liars = {
        "claim_100mb": struct.pack("<Q", 10**8) + b"{}",
        "claim_2_63": struct.pack("<Q", 2**63) + b"{}",
        "long_header": header({f"t{i}": one("F32", [0], 0, 0) for i in range(200_000)}),
        "many": header({f"{i}": one("F32", [0], 0, 0) for i in range(70_000)}),
        "shape_2_63": header({"w": one("F32", [2**63, 2], 0, 8)}, bytes(8)),
        "shape_2_32": header({"w": one("F32", [2**32, 2**32], 0, 8)}, bytes(8)),
        "negative": header({"w": one("F32", [-2], 0, 8)}, bytes(8)),
        "overlap": header({"a": one("F32", [2], 0, 8), "b": one("F32", [2], 4, 12)}, bytes(12)),
        "hole": header({"a": one("F32", [1], 0, 4), "b": one("F32", [1], 8, 12)}, bytes(12)),
        "backwards": header({"a": one("F32", [2], 8, 0)}, bytes(8)),
        "beyond": header({"a": one("F32", [200], 0, 800)}, bytes(8)),
        "dtype": header({"a": one("PICKLE", [2], 0, 8)}, bytes(8)),
        "no_json": struct.pack("<Q", 8) + b"notjson!",
        "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "list": struct.pack("<Q", 2) + b"[]",
        "no_tensors": header({}),
        "not_utf8": struct.pack("<Q", 2) + b"\xff\xfe",
        "huge_spec": header({"__metadata__": {"transom.spec": json.dumps(huge())},
                             "stem.conv.weight": one("F32", [1], 0, 4)}, bytes(4)),
    }  # fmt: skip
    for name, data in liars.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "fifo.safetensors")
    os.mkfifo(folder / "fifo.pth")
    (folder / "dangling.safetensors").symlink_to(folder / "nowhere")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    for ending in ("safetensors", "pth"):  # regular by its mode, but no read of it succeeds
        (folder / f"unreadable.{ending}").symlink_to("/proc/self/mem")
    whole = good.read_bytes()
    for part in range(12):
        length = len(whole) * part // 12
        (folder / f"cut_{part:02}.safetensors").write_bytes(whole[:length])
    names = os.listdir(folder)
    return sorted(folder / name for name in names)


MODULE = "evil_module"  # which writes the marker when it is imported


def write_module(folder: Path, marker: Path) -> None:
    """The module of `foreign`, for whoever would import it."""
    (folder / f"{MODULE}.py").write_text(
        f"open({str(marker)!r}, 'w')\nclass Thing(dict):\n"
        f"    def __setstate__(self, state): open({str(marker)!r}, 'w')\n"
    )


class foreign:
    """Inside, an object of a class that no reader knows and pickle can write: a dict whose class
    stands in `MODULE`."""

    def __init__(self, **fields) -> None:
        self.fields = fields

    def __enter__(self):
        module = types.ModuleType(MODULE)
        module.Thing = type("Thing", (dict,), {"__module__": MODULE})
        sys.modules[MODULE] = module
        made = module.Thing(self.fields)
        made.note = "set by name"
        return made

    def __exit__(self, *error) -> None:
        del sys.modules[MODULE]


def write_beside(folder: Path, marker: Path) -> None:
    """Sound tensors, and beside them what acts or lies: where objects of foreign classes are let
    through as stand-ins that do nothing."""
    command = f"touch {marker}"
    state = {"w": torch.zeros(2)}
    acting = {
        "namespace": (os.system, command),
        "subprocess": (subprocess.call, ["touch", str(marker)]),
        "exec": (exec, f"open({str(marker)!r}, 'w')"),
        "compile": (compile, "1", "text", "eval"),
        "import_module": (importlib.import_module, "antigravity"),
        "run_path": (runpy.run_path, str(folder / "hubconf.py")),
        "rmtree": (shutil.rmtree, str(folder / "nothing")),
        "open": (open, str(marker), "w"),
        "loads": (pickle.loads, pickle.dumps(Payload(os.system, command))),
        "cdll": (ctypes.CDLL, "libc.so.6"),
        "socket": (socket.create_connection, ("127.0.0.1", 9)),
        "hub_load": (torch.hub.load, str(folder), "touch"),
    }
    for name, call in acting.items():
        inner = argparse.Namespace(lr=0.1, inner=[Payload(*call)])
        torch.save({"model": state, "args": inner}, folder / f"zip_beside_{name}.pth")
    with foreign(w=torch.zeros(2)) as thing:
        torch.save(thing, folder / "zip_foreign_whole.pth")
        torch.save({"model": {"stem.conv.weight": thing}}, folder / "zip_foreign_tensor.pth")
        torch.save({thing.__class__: torch.zeros(1)}, folder / "zip_foreign_key.pth")
    ring: dict = {"a": {}}
    ring["a"]["b"] = ring
    torch.save(ring, folder / "zip_ring.pth")


def endless() -> bytes:
    """A pickle of 200 bytes, without a single call: a table whose key is a tuple of a tuple of
    tuples, 40 deep and each twice, which takes 2^40 steps to hash."""
    pairs = b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))
    return b"\x80\x02})" + pairs + b"K\x01s."


def huge() -> dict:
    """A spec that would take terabytes."""
    stage = {"dim": 65536, "depth": 1024, "heads": 1, "mixers": ["full"]}
    return {"stages": [stage] * 5}
