"""Files of weights: nothing in them is run, what is damaged is named, what is written survives."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import write_all
from tiny import create, notation, state_hash

import backbones
from backbones import convert, weights
from backbones.files import reading, sandbox, storage
from backbones.files.storage import WeightsError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model():
    return create("swin")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("hostile")
    good = folder.parent / "good.safetensors"
    weights.save(model, good)
    marker = folder.parent / "executed"
    (folder / "hubconf.py").write_text(f"open({str(marker)!r}, 'w')\ndef touch(): pass\n")
    paths = write_all(folder, marker, good)
    return marker, [path for path in paths if path.name != "hubconf.py"]


def _into_folder(path: Path) -> Path:
    """As the weights of a save_pretrained folder, whatever kind of thing it is."""
    folder = path.parent.parent / "pretrained"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(path)
    return folder


def entry_points(model, path: Path):
    """Every public way in, by name."""
    out = path.parent.parent / "o.safetensors"
    return {
        "read": lambda: weights.read(path),
        "metadata": lambda: (reading.metadata(path), weights.read(path)),
        "load": lambda: weights.load(model, path),
        "load_source": lambda: weights.load(model, path, "timm"),
        "load_text": lambda: weights.load(model, str(path)),
        "load_name": lambda: weights.load(notation("swin"), path),
        "load_none": lambda: weights.load(None, path),
        "create": lambda: backbones.create(notation("swin"), weights=path),
        "from_pretrained": lambda: weights.from_pretrained(_into_folder(path)),
        "convert": lambda: convert.main([str(path), "--to", str(out)]),
    }  # fmt: skip


ENOUGH = 20  # seconds: the 2 that a child may compute, and its imports on a busy machine


def computed() -> float:
    """CPU seconds of this process and of the children that it waited for."""
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


STARTED = {  # of those that look like torch's, and so cost a process: these always
    "bomb.pth", "list.pth", "sparse.pth", "two.pth", "zip_beside_tensors.pth",
    "zip_nested.pth", "zip_pickle_0.pt", "zip_pickle_5.pt", "zip_beside_run_path.pth",
    "zip_foreign_whole.pth",
}  # fmt: skip


def starts_process(path: Path) -> bool:
    if not path.is_file() or path.stem == "unreadable":
        return False
    with path.open("rb") as file:
        return file.read(4) == reading.ZIP


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about the formats of the payloads
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hostile_files(model, hostile, every):
    """D1, D9: over 90 files through ten entry points: none run, none loaded, the model as it was,
    the path and a cause in one line, and soon.  Ten of those that start a process take one
    entry point each, the slow test takes them all."""
    marker, paths = hostile
    slow = [path for path in paths if starts_process(path)]
    assert len(paths) - len(slow) >= 50 and len(slow) >= 40
    assert {path.name for path in slow} >= STARTED
    before, memory = state_hash(model), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    turn = itertools.count()
    for path in paths:
        ways = entry_points(model, path)
        if path in slow and not every:
            one = list(ways)[next(turn) % len(ways)]
            ways = {one: ways[one]} if path.name in STARTED else {}
        for name, enter in ways.items():
            if path.name.startswith("huge_spec") and name in ("read", "metadata"):
                continue  # its tensors are sound, its spec is what lies
            start, generator = computed(), torch.get_rng_state()
            with pytest.raises(WeightsError) as info:
                enter()
                pytest.fail(f"{name} took {path.name}")
            message = str(info.value)
            where = "pretrained" if name == "from_pretrained" else str(path)
            assert where in message and "\n" not in message, (name, path.name, message)
            assert len(message) > len(str(path)) + 10 and message.isprintable()
            assert computed() - start < ENOUGH, (name, path.name)
            assert not marker.exists(), (name, path.name)
            if name != "create":  # which draws a model before it reads
                assert torch.equal(torch.get_rng_state(), generator), (name, path.name)
    assert state_hash(model) == before
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 200 * 1024  # kB
    assert not (paths[0].parent.parent / "o.safetensors").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_payloads_through_timm(hostile):
    """checkpoint_path is timm's own reader, in this process: it runs nothing either."""
    timm = pytest.importorskip("timm")
    import backbones.timm_models  # noqa: F401  (registers the names)

    marker, paths = hostile
    calls = [path for path in paths if path.name.startswith(("zip_", "pickle", "legacy", "tar"))]
    assert len(calls) >= 20
    for path in calls:
        with pytest.raises(Exception):  # noqa: B017  (theirs, of many kinds)
            timm.create_model("transom", spec=notation("swin"), checkpoint_path=str(path))
        assert not marker.exists(), path.name


def test_the_payloads_are_live(hostile):
    """Negative control: an ordinary unpickler does run them."""
    import pickle

    marker, paths = hostile
    assert not marker.exists()
    for path in paths:
        if path.name.startswith("pickle_"):
            pickle.loads(path.read_bytes())
            assert marker.exists(), path.name
            marker.unlink()
        if path.name == "zip_os_system.pth":
            torch.load(path, weights_only=False)
            assert marker.exists()
            marker.unlink()


def test_good_pth_is_read(model, tmp_path):
    """What training scripts save, and a state dict asked for by name."""
    state, path = dict(model.state_dict()), tmp_path / "own.pth"
    torch.save({"model": state, "epoch": 3}, path)
    fresh = create("swin", seed=5)
    report = weights.load(fresh, path).report
    assert state_hash(fresh) == state_hash(model)
    assert [row["from"] for row in report if row["status"] == "left out"] == ["epoch"]
    assert [row["status"] for row in report].count("loaded") == len(state)
    torch.save({"model": state, "model_ema": state.copy()}, path)
    with pytest.raises(WeightsError, match=r"own\.pth: holds model, model_ema; .* --entry"):
        weights.load(model, path)
    fresh = create("swin", seed=5)
    weights.load(fresh, path, entry="model_ema")
    assert state_hash(fresh) == state_hash(model)


@pytest.mark.parametrize("version", ["2.9.1", "2.5.0+cu121", "1.13.1", "unknown"])
def test_old_torch_is_refused(model, tmp_path, monkeypatch, version):
    path = tmp_path / "own.pth"
    torch.save(model.state_dict(), path)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(WeightsError, match=r"older than 2\.10"):
        weights.load(model, path)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("hang", "more than 2 s of computing"),
        ("memory", "MemoryError"),
        ("views", "too large|of computing"),  # whichever limit it meets first
        ("entries", "70000 entries"),
        ("expanded", "more than are stored"),
        ("zip_os_system", "posix.system"),
        ("zip_eval", "builtins.eval"),
    ],
)
def test_limits_of_memory_and_time(hostile, name, cause):
    """D2: what the restricted reader would let through ends the child, and is named."""
    (path,) = (path for path in hostile[1] if path.stem == name)
    start = computed()
    with pytest.raises(WeightsError, match=cause) as info:
        weights.read(path)
    assert computed() - start < ENOUGH
    assert "weights_only=False" not in str(info.value)  # no advice to read it unsafely


@pytest.mark.parametrize("lacking", ["resource", "proc"])
def test_no_limits_no_pth(model, tmp_path, monkeypatch, lacking):
    """Without the means to limit it (Windows, macOS), a .pth file is refused by name and no
    process is started; safetensors are read."""
    path = tmp_path / "own.pth"
    torch.save(model.state_dict(), path)
    if lacking == "resource":
        monkeypatch.setitem(sys.modules, "resource", None)
    else:
        monkeypatch.setattr(sandbox, "STATUS", tmp_path / "nowhere")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("started"))
    with pytest.raises(WeightsError, match=r"own\.pth: not opened: .* give a \.safetensors file"):
        weights.load(model, path)
    weights.save(model, tmp_path / "own.safetensors")
    weights.load(model, tmp_path / "own.safetensors")


def test_the_reading_process_is_ours_wherever_it_starts(model, tmp_path, monkeypatch):
    """From a folder with a torch.py and without PYTHONPATH; a broken start is one line, too."""
    path = tmp_path / "own.pth"
    torch.save(model.state_dict(), path)
    marker = tmp_path / "imported"
    for name in ("torch", "safetensors", "backbones"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    loaded = weights.load(create("swin", seed=5), "own.pth").model
    assert state_hash(loaded) == state_hash(model) and not marker.exists()
    assert not list(tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))
    with pytest.raises(WeightsError, match=r"own\.pth: no process to read it in") as info:
        weights.read("own.pth")
    assert "\n" not in str(info.value)


def test_only_plain_zips_are_unpacked(model, tmp_path):
    """Sound tensors in a packed zip, or in the legacy format."""
    path, other = tmp_path / "own.pth", tmp_path / "other.pth"
    torch.save(dict(model.state_dict()), path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    with pytest.raises(WeightsError, match="packed"):
        weights.load(model, other)
    torch.save(dict(model.state_dict()), other, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="zip format"):
        weights.load(model, other)


# -- damage ------------------------------------------------------------------------------------


def damaged(whole: bytes, count: int):
    """Cut at `count` lengths, a bit flipped at as many places, pages zeroed."""
    generator = torch.Generator().manual_seed(1)
    places = torch.randint(len(whole), (count,), generator=generator).tolist()
    for place in places:
        yield f"cut {place}", whole[:place]
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        yield f"flip {place}", bytes(flipped)
        page = place // 4096 * 4096
        zeroed = whole[:page] + bytes(len(whole[page : page + 4096])) + whole[page + 4096 :]
        yield f"zero {page}", zeroed


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_manifest_names_all_damage(model, tmp_path, count):
    """D3: with a manifest every change is seen; the model stays."""
    path = tmp_path / "own.safetensors"
    weights.save(model, path)
    assert storage.manifest_of(path).read_text() == f"{storage.digest(path)}  own.safetensors\n"
    whole, before = path.read_bytes(), state_hash(model)
    for what, data in damaged(whole, count):
        path.write_bytes(data)
        with pytest.raises(WeightsError) as info:
            weights.load(model, path)
        assert str(path) in str(info.value) and "SHA-256" in str(info.value), what
    assert state_hash(model) == before
    path.write_bytes(whole)
    weights.load(model, path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.load(model, link)
    manifest = storage.manifest_of(path)
    manifest.write_bytes(b"\xff\n")
    with pytest.raises(WeightsError, match="sha256"):
        weights.load(model, path)
    manifest.unlink()
    os.mkfifo(manifest)  # which no reading of would ever end
    with pytest.raises(WeightsError, match="sha256"):
        weights.load(model, path)


@pytest.mark.parametrize("family", ["swin", "swinv2", "swinmlp", "cswin", "pale", "hybrid"])
def test_failure_at_any_tensor_changes_nothing(family):
    """D4: every tensor of six models in turn is wrong in one way; no bit moves."""
    model, other = create(family), create(family, seed=1).state_dict()
    before = state_hash(model)
    for number, key in enumerate(other):
        good = other[key]
        wrong = [good * float("nan"), good[None, None], good.bool(), None][number % 4]
        if wrong is None:
            state = {k: v for k, v in other.items() if k != key}
        else:
            state = {**other, key: wrong}
        with pytest.raises(WeightsError, match=key):
            weights.load(model, state, "transom")
    assert state_hash(model) == before
    weights.load(model, other)
    assert state_hash(model) != before


# -- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_while_saving(tmp_path, kills):
    """D8: whenever kill -9 strikes, the old or the new file loads, manifest and all; what it
    leaves is swept by the next save."""
    path = tmp_path / "own.safetensors"
    models = [create("swin", seed=seed) for seed in (1, 2)]
    either = {state_hash(model) for model in models}
    weights.save(models[0], path)
    fresh, generator = create("swin"), torch.Generator().manual_seed(0)
    left = 0
    for count in itertools.count():
        if count >= kills and left:  # some were struck while writing
            break
        assert count < 50 * kills, "no kill strikes while a file is written"
        if (child := os.fork()) == 0:
            try:
                while True:
                    for model in models:
                        weights.save(model, path)
            finally:
                os._exit(1)  # never back into pytest
        time.sleep(0.01 + float(torch.rand((), generator=generator)) * 0.05)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left += sum(file.name.endswith(".tmp") for file in tmp_path.iterdir())
        weights.load(fresh, path)
        assert state_hash(fresh) in either
    weights.save(models[0], path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]


def test_stale_temporaries_go(model, tmp_path):
    """Those of dead processes; a living writer's is left alone."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale, alive = (
        storage.temporary_of(tmp_path / "own.safetensors", process)
        for process in (dead.pid, os.getppid())
    )
    for path in (stale, alive):
        path.write_bytes(b"half")
    weights.save(model, tmp_path / "own.safetensors")
    assert not stale.exists() and alive.exists()


def test_links_and_modes_are_kept(model, tmp_path):
    target, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    old = os.umask(0o027)
    try:
        weights.save(model, target)
    finally:
        os.umask(old)
    assert target.stat().st_mode & 0o777 == 0o640
    target.chmod(0o604)
    link.symlink_to(target)
    other = create("swin", seed=7)
    weights.save(other, link)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o604
    assert state_hash(weights.load(model.__class__(model.spec), target).model) == state_hash(other)
    loaded = weights.load(None, link).model
    weights.save(loaded, link)  # over the file just loaded
    assert state_hash(weights.load(None, link).model) == state_hash(other)


def test_any_name_and_no_pipe(model, tmp_path):
    """The longest names that leave room for the manifest's; what is no file is not replaced."""
    path = tmp_path / ("\u4e00" * 78 + "x" + ".safetensors")
    assert len(os.fsencode(path.name)) == 255 - len(".sha256") - 1
    weights.save(model, path)
    assert state_hash(weights.load(None, path).model) == state_hash(model)
    with pytest.raises(WeightsError, match="File name too long"):
        weights.save(model, path.with_name("xx" + path.name))
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(WeightsError, match=r"pipe\.safetensors: .*not a regular file"):
        weights.save(model, pipe)
    assert pipe.is_fifo() and len(os.listdir(tmp_path)) == 3


def test_failed_writes_keep_the_old_file(model, tmp_path, monkeypatch):
    """A full disk at any step: the old file loads and nothing is left behind."""
    path = tmp_path / "own.safetensors"
    weights.save(model, path)
    for step in range(6):
        calls = iter(range(100))

        def full(file, calls=calls, step=step, right=storage._sync):
            if next(calls) == step:
                raise OSError(28, "No space left on device")
            right(file)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "_sync", full)
            if step < 4:
                with pytest.raises(WeightsError, match="No space left"):
                    weights.save(create("swin", seed=step), path)
        weights.load(create("swin"), path)
        assert [p.name for p in sorted(tmp_path.iterdir())] == [
            "own.safetensors", "own.safetensors.sha256",
        ]  # fmt: skip
    with pytest.raises(WeightsError, match=r"only \.safetensors"):
        weights.save(model, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match="cannot be written"):
        weights.save(model, tmp_path / "no" / "own.safetensors")


SAVE_LIMITED = """
import resource, sys
from pathlib import Path
import tiny
from backbones import weights
from backbones.files.storage import WeightsError

resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    weights.save(tiny.create("swin", "4.dim=512"), Path(sys.argv[1]))
except WeightsError as error:
    sys.exit(str(error))
"""


def limited(path: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-c", SAVE_LIMITED, str(path)], capture_output=True, text=True,
        env=environment,
    )  # fmt: skip


def test_save_beyond_the_file_size_limit(model, tmp_path):
    """D8: the kernel's own limit (RLIMIT_FSIZE, 1 MB) strikes in the middle of a write: the old
    file loads, the error names the path and the free space, nothing is left behind."""
    path = tmp_path / "own.safetensors"
    weights.save(model, path)
    assert path.stat().st_size < 2**20
    done = limited(path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{path}: cannot be written: File too large (" in done.stderr
    assert "MB are free there" in done.stderr
    assert state_hash(weights.load(create("swin", seed=5), path).model) == state_hash(model)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]


def test_save_on_a_full_disk(model, tmp_path):
    """D8: a tmpfs of 2 MB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        path = disk / "own.safetensors"
        weights.save(model, path)
        (disk / "other").write_bytes(bytes(2**21 - path.stat().st_size - 2**17))
        with pytest.raises(WeightsError, match=r"No space left.*0\.1 MB are free") as info:
            weights.save(create("swin", seed=5), path)
        assert str(path) in str(info.value)
        assert state_hash(weights.load(create("swin", seed=6), path).model) == state_hash(model)
        (disk / "other").unlink()
        weights.save(create("swin", seed=5), path)
        weights.load(model.__class__(model.spec), path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- the hub -----------------------------------------------------------------------------------


def test_hub_without_network_or_library(model, monkeypatch):
    """One line with the way out: offline, without huggingface_hub, and for a wrong id."""
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args, **kwargs):
        raise OSError("cannot reach\nthe host")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    for enter in (weights.from_pretrained, lambda name: weights.load(model, name)):
        with pytest.raises(WeightsError, match="offline, fetch it by hand") as info:
            enter("hf:owner/name@main")
        assert "\n" not in str(info.value) and "hf:owner/name" in str(info.value)
    with pytest.raises(WeightsError, match="hub id is written"):
        weights.load(model, "hf:name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="not installed"):
        weights.load(model, "hf:owner/name")


def test_hub_file_is_loaded(model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    weights.save_pretrained(model, tmp_path / "f")
    asked = []

    def download(repo, file, revision):
        asked.append((repo, file, revision))
        return str(tmp_path / "f" / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert state_hash(weights.from_pretrained("hf:a/b")) == state_hash(model)
    assert asked == [("a/b", "model.safetensors", None)]
