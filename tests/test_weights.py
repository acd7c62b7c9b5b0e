"""Files of weights: nothing in them is run, what is damaged is named, what is written survives."""

from __future__ import annotations

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
from backbones import convert, reading, storage, weights
from backbones.storage import WeightsError

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


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about the formats of the payloads
def test_hostile_files(model, hostile):
    """D1, D9: over 60 files through ten entry points: none run, none loaded, the model as it was,
    the path and a cause in one line, and soon."""
    marker, paths = hostile
    assert len(paths) >= 60
    before, memory = state_hash(model), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in paths:
        for name, enter in entry_points(model, path).items():
            if path.name.startswith("huge_spec") and name in ("read", "metadata"):
                continue  # its tensors are sound, its spec is what lies
            start, generator = time.perf_counter(), torch.get_rng_state()
            with pytest.raises(WeightsError) as info:
                enter()
                pytest.fail(f"{name} took {path.name}")
            message = str(info.value)
            where = "pretrained" if name == "from_pretrained" else str(path)
            assert where in message and "\n" not in message, (name, path.name, message)
            assert len(message) > len(str(path)) + 10 and message.isprintable()
            assert time.perf_counter() - start < 5, (name, path.name)
            assert not marker.exists(), (name, path.name)
            if name != "create":  # which draws a model before it reads
                assert torch.equal(torch.get_rng_state(), generator), (name, path.name)
    assert state_hash(model) == before
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 200 * 1024  # kB
    assert not (paths[0].parent.parent / "o.safetensors").exists()


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
    """The formats that training scripts save, unwrapped by name, or asked for."""
    state, path = dict(model.state_dict()), tmp_path / "own.pth"
    for wrapped in (state, {"model": state, "epoch": 3}, {"state_dict": state}):
        torch.save(wrapped, path)
        fresh = create("swin", seed=5)
        report = weights.load(fresh, path).report
        assert state_hash(fresh) == state_hash(model)
        assert {row["status"] for row in report} == {"loaded"} and len(report) == len(state)
    torch.save({"model": state, "model_ema": state}, path)
    with pytest.raises(WeightsError, match="--entry"):
        weights.load(model, path)
    weights.load(model, path, entry="model_ema")
    with pytest.raises(WeightsError, match="no state dict called 'ema'"):
        weights.load(model, path, entry="ema")


@pytest.mark.parametrize("version", ["2.9.1", "2.5.0+cu121", "1.13.1", "unknown"])
def test_old_torch_is_refused(model, tmp_path, monkeypatch, version):
    path = tmp_path / "own.pth"
    torch.save(model.state_dict(), path)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(WeightsError, match=r"older than 2\.10"):
        weights.load(model, path)


def test_only_plain_zips_are_unpacked(model, tmp_path):
    """Sound tensors in a packed zip, in the legacy format, or expanded beyond what is stored."""
    path, other = tmp_path / "own.pth", tmp_path / "other.pth"
    torch.save(dict(model.state_dict()), path)
    weights.load(model, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    with pytest.raises(WeightsError, match="packed"):
        weights.load(model, other)
    torch.save(dict(model.state_dict()), other, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="zip format"):
        weights.load(model, other)
    torch.save({"w": torch.zeros(1).expand(2**40)}, other)
    with pytest.raises(WeightsError, match="more than are stored"):
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
    storage.manifest_of(path).write_bytes(b"\xff\n")
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
    for _ in range(kills):
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
    assert left > 0  # some were struck while writing
    weights.save(models[0], path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]


def test_stale_temporaries_go(model, tmp_path):
    """Those of dead processes; a living writer's is left alone."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".own.safetensors.{dead.pid}.tmp"
    alive = tmp_path / f".own.safetensors.{os.getppid()}.tmp"
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
