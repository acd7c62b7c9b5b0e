"""Runs that start from weights, trained models at other image sizes, data loaders, compiling."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import os
from contextlib import closing

import numpy as np
import pytest
import small_run
import torch
from small_run import ALONE, DATA

import backbones
from backbones import weights
from backbones.weights import resize
from training import compare, report
from training.data import bits
from training.data.images import FolderImages
from training.data.opening import open_data
from training.loop import loader, subject
from training.loop.run import Run, Stopped
from training.settings import presets
from training.settings.config import RunConfig
from training.settings.identity import identity, refuse_changes
from transom.errors import SpecError

BODY = "swin_t/stages=2/1.dim=8/1.heads=2/2.dim=16/2.heads=2/1.depth=2/2.depth=1"
SWIN = f"{BODY}/1=window:size=4/2=window:size=2"


config = functools.partial(small_run.config, backbone=SWIN, budget="3steps", evaluations=1)


@pytest.fixture(scope="module")
def data():
    return open_data(DATA)


def model_of(name: str = SWIN, size: int = 32, classes: int = 2, channels: int = 1):
    torch.manual_seed(1)
    spec = backbones.parse(name)
    fields = {"img_size": (size, size), "in_channels": channels, "num_classes": classes}
    return backbones.create(dataclasses.replace(spec, **fields))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of weights, by number of classes."""
    folder = tmp_path_factory.mktemp("weights")
    return {n: weights.save(model_of(classes=n), folder / f"{n}.safetensors") for n in (2, 5)}


def started(data, file, folder, **fields) -> Run:
    return Run(
        config(weights=str(file), weights_digest=subject.digest_of(str(file)), **fields), data,
        folder, ALONE,
    )  # fmt: skip


# -- the start -------------------------------------------------------------------------------------


def test_a_run_starts_from_weights(data, saved, tmp_path):
    """Every tensor; and a head of another number of classes is the drawn one."""
    drawn = Run(config(), data, tmp_path, ALONE).learner.model.state_dict()
    for classes, file in saved.items():
        run = started(data, file, tmp_path)
        want = model_of(classes=classes).state_dict()
        for name, tensor in run.learner.model.state_dict().items():
            fresh = classes == 5 and name.startswith("head.")
            assert torch.equal(tensor, (drawn if fresh else want)[name]), name
        fresh = 2 if classes == 5 else 0
        head = {"fresh": 2, "left out": 2} if fresh else {}
        assert run.learner.start == {"loaded": len(want) - fresh} | head
    row = run.run()
    assert row["start"]["fresh"] == 2 and row["identity"]["weights_digest"] == subject.digest_of(
        str(saved[5])
    )
    lines = report.notes([row], None, None)
    assert any("starts from weights" in line and "2 fresh" in line for line in lines)


def test_only_what_is_replaced_is_drawn(data, saved, tmp_path):
    hybrid = f"{BODY}/1=window:size=4/2=full"
    drawn = Run(config(backbone=hybrid), data, tmp_path, ALONE).learner.model.state_dict()
    run = started(data, saved[2], tmp_path, backbone=hybrid, partial="replaced")
    theirs, found = model_of().state_dict(), run.learner.model.state_dict()
    mixer = "stages.1.blocks.0.mixer."
    assert all(
        torch.equal(tensor, (drawn if name.startswith(mixer) else theirs)[name])
        for name, tensor in found.items()
    )
    start = run.learner.start
    assert start is not None and start["fresh"] == sum(n.startswith(mixer) for n in found)


def test_windows_of_another_size_are_resized(data, saved, tmp_path):
    run = started(data, saved[2], tmp_path, backbone=f"{BODY}/1=window:size=8/2=window:size=2")
    names = [key for key in run.learner.model.state_dict() if key.endswith("bias.table")]
    assert run.learner.start == {"loaded": len(run.learner.model.state_dict()) - 2, "resized": 2}
    name = names[0]
    want = resize.table(model_of().state_dict()[name], (4, 4), (8, 8))
    assert torch.equal(run.learner.model.state_dict()[name], want)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--backbone", f"{SWIN}/1.mlp_ratio=2"], "tensors do not fit"),
        (["--backbone", SWIN, f"{BODY}/1=window:size=4/2=full"], "2=full: --weights"),
        (["--backbone", SWIN, "timm:resnet18"], "timm:resnet18: --weights is for backbones of"),
        (["--backbone", SWIN, "--weights", "/no.pth"], "--weights /no.pth: cannot be read: No "),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_before_any_run(argv, said, saved, monkeypatch):
    monkeypatch.setattr(compare, "_make", lambda *args: pytest.fail("a run was made"))
    with pytest.raises(SpecError, match=said) as error:
        compare.main(["--weights", str(saved[2]), *argv, "--data", DATA, "--seeds", "1"])
    assert "\n" not in str(error.value)


def test_partial_without_weights_is_refused():
    with pytest.raises(SpecError, match="--partial fitting: says how --weights are taken"):
        compare.main(["--backbone", SWIN, "--partial", "fitting"])


def test_other_weights_are_another_run(saved, tmp_path):
    """By the content of the file, not by its name; a run without weights is as it always was."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(saved[2].read_bytes())
    digests = [subject.digest_of(str(path)) for path in (saved[2], copy, saved[5])]
    runs = [
        identity(config(weights=str(path), weights_digest=digest), "d")
        for path, digest in zip((saved[2], copy, saved[5]), digests, strict=True)
    ]
    refuse_changes("run", runs[0], runs[1], "store")
    with pytest.raises(SpecError, match="weights_digest was"):
        refuse_changes("run", runs[0], runs[2], "store")
    plain = identity(config(), "d")
    new = ("weights_digest", "partial", "eval_sizes", "compile")
    older = {key: value for key, value in plain.items() if key not in new}
    assert len(older) == len(plain) - len(new)
    refuse_changes("run", older, plain, "store")


def test_a_file_that_changed_is_refused(data, saved, tmp_path):
    with pytest.raises(SpecError, match="changed since the start"):
        Run(config(weights=str(saved[2]), weights_digest="0" * 64), data, tmp_path, ALONE)


# -- other image sizes -----------------------------------------------------------------------------


def test_a_config_survives_its_json():
    made = config(eval_sizes=((48, 48), (40, 32)), size=(32, 32))
    assert RunConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("mixer", ["window:size=4", "cosine:size=4", "shuffle:size=4"])
def test_scaled_windows_compute_what_resized_weights_do(mixer):
    """Against `weights.load` into the spec with larger windows."""
    model = model_of(f"{BODY}/1={mixer}/2={mixer.replace('4', '2')}").eval()
    found = subject.with_scaled_windows(model, (48, 48))
    cpb = ",pretrained_window={}" if "cosine" in mixer else ""
    larger = [mixer.replace("4", "6") + cpb.format(4), mixer.replace("4", "3") + cpb.format(2)]
    wanted = model_of(f"{BODY}/1={larger[0]}/2={larger[1]}").eval()
    how = weights.Adapt(resize="bicubic")
    wanted = weights.load(wanted, model.state_dict(), "transom", how=how).model
    images = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(found(images), wanted(images))
        assert (found(images) - model(images)).abs().max() > 1e-5  # windows matter


def test_windows_that_are_not_square_scale_along_their_axes():
    model = model_of(f"{BODY}/1=window:size=2x4/2=token_mlp:size=2")
    found = subject.with_scaled_windows(model, (32, 64))
    assert found.spec.stages[0].mixers[0].size == (2, 8)
    assert found.spec.stages[1] == model.spec.stages[1]  # its matrix has no other size
    for body in ("token_mlp:size=4", "full"):
        assert subject.with_scaled_windows(model_of(f"{BODY}/1={body}/2={body}"), (64, 64)) is None


def test_the_trained_model_is_evaluated_at_other_sizes(data, tmp_path):
    averaged = config(eval_sizes=((32, 32), (48, 48)), recipe=presets.read("micro:ema=0.5"))
    run = Run(averaged, data, tmp_path, ALONE)
    row = run.run()
    assert [(at["size"], at["windows"]) for at in row["at"]] == [
        ([32, 32], "kept"), ([48, 48], "kept"), ([48, 48], "scaled"),
    ]  # fmt: skip
    assert row["at"][0]["correct"] == row["correct"]  # at its own size
    model = run.learner.average.module.eval()
    images = data.test.pixels(torch.arange(40)).float()
    larger = torch.nn.functional.interpolate(
        images, (48, 48), mode="bilinear", antialias=True
    ).clamp(0, 255)
    x = (larger / 255 - data.mean[0]) / data.std[0]
    for at, judged in zip(
        row["at"][1:], (model, subject.with_scaled_windows(model, (48, 48))), strict=True
    ):
        with torch.no_grad():
            right = judged.eval()(x).argmax(-1) == data.test.labels
        assert (bits.unpacked(at["correct"], 40) == right.numpy()).mean() > 0.95
        assert at["accuracy"] == pytest.approx(right.float().mean().item(), abs=0.05)
    assert run.identity["eval_sizes"] == [[32, 32], [48, 48]]
    run.at = []
    with torch.no_grad():  # so that the average says "1" whatever it is shown
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0]))
    run._evaluate_at_sizes()
    ones = data.test.labels == 1
    assert all((bits.unpacked(at["correct"], 40) == ones.numpy()).all() for at in run.at)


def test_the_table_has_a_column_a_size():
    def at(size, windows, count):
        bits = np.packbits(np.arange(40) < count).tobytes()
        return {"size": size, "windows": windows, "accuracy": count / 40,
                "correct": base64.b64encode(bits).decode()}  # fmt: skip

    def row(name, seed, *found, status="ok"):
        return {"kind": "run", "backbone": name, "seed": seed, "tuning": False, "status": status,
                "reason": "", "accuracy": 0.5, "correct": "", "test_images": 40, "classes": 2,
                "curve": [], "at": list(found),
                "identity": {"data": "d", "budget": "b", "batch": 1, "recipe.name": "r"},
                }  # fmt: skip

    rows = []
    for seed in range(7):
        rows.append(row("a", seed, at([48, 48], "kept", 20), at([48, 48], "scaled", 30)))
        rows.append(row("b", seed, at([48, 48], "kept", 36 - seed % 2)))
    rows.append(row("c", 0, status="diverged"))
    found = report.table_rows(rows, None, None)
    assert [each["at 48, %"] for each in found] == ["50.0 / 75.0", "88.9", ""]
    assert "at 48, windows as they are" not in "".join(report.notes(rows, None, None))
    lines = "\n".join(report.notes(rows[:-1], "a", None))
    assert "at 48, windows as they are: b better" in lines
    assert "at 48, windows in proportion: b better" in lines  # b's windows stay


def test_a_foreign_model_of_one_size_is_refused_at_another(monkeypatch):
    monkeypatch.setattr(compare, "_make", lambda *args: pytest.fail("a run was made"))
    argv = ["--backbone", "timm:vit_tiny_patch16_224", "--data", DATA, "--img-size", "32",
            "--eval-size", "48"]  # fmt: skip
    with pytest.raises(SpecError, match="--eval-size 48x48: timm:vit_tiny"):
        compare.main(argv)


# -- loaders and compiling -------------------------------------------------------------------------


def losses(row) -> list[float]:
    return [point["loss"] for point in row["curve"]]


def test_workers_change_nothing(data, tmp_path):
    """Weights to the bit, of a whole run and of one that stops in between, whatever is drawn."""
    busy = config(
        recipe=presets.read("micro:crop=pad,hflip=0.5,mixup=0.4,reprob=0.5,drop_path=0.5"),
        budget="6steps", evaluations=6,
    )  # fmt: skip
    rows = [Run(busy, data, tmp_path / "none", ALONE).run()]
    two = dataclasses.replace(busy, workers=2)
    assert identity(two, "d") == identity(busy, "d")
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        Run(two, data, folder, ALONE, stopping=Countdown(3)).run()
    resumed = Run(two, data, folder, ALONE)
    assert resumed.step == 3
    rows.append(resumed.run())
    assert rows[0]["weights"] == rows[1]["weights"] and losses(rows[0]) == losses(rows[1])


class Countdown:
    """True when it is asked for the n-th time."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@dataclasses.dataclass
class Batches:
    """Numbers in the place of batches, with a step that cannot be read."""

    broken: int
    pids: bool = False

    def __len__(self):
        return 6

    def __getitem__(self, step):
        if step == self.broken:
            raise SpecError(f"image {step}: it cannot be read")
        return torch.tensor(os.getpid() if self.pids else step), torch.tensor(step)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_and_an_error_is_one_line(workers):
    cpu = torch.device("cpu")
    with closing(loader.batches_from(Batches(9), 2, workers, cpu)) as found:
        assert [int(step) for _, step in found] == [2, 3, 4, 5]
    with closing(loader.batches_from(Batches(3), 0, workers, cpu)) as found:
        assert [int(next(found)[1]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(SpecError, match=r"^image 3: it cannot be read$"):
            next(found)


def test_workers_end_with_their_run():
    with closing(loader.batches_from(Batches(9, pids=True), 0, 2, torch.device("cpu"))) as found:
        pids = {int(next(found)[0]) for _ in range(2)}
        assert len(pids) == 2 and os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_arrays_need_no_workers_and_pictures_share_the_cores(data, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert loader.default_workers(data, 1) == 0
    pictures = dataclasses.replace(data, train=FolderImages("/", [], data.train.labels[:0]))
    assert [loader.default_workers(pictures, jobs) for jobs in (1, 4, 99)] == [8, 3, 1]


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_an_eager_one(data, tmp_path):
    rows = [
        Run(config(budget="5steps", evaluations=5, compile=compiled,
                   recipe=presets.read("micro:drop_path=0.3")), data, tmp_path, ALONE).run()
        for compiled in (False, True)
    ]  # fmt: skip
    assert losses(rows[1]) == pytest.approx(losses(rows[0]), abs=1e-4)
    assert rows[1]["identity"]["compile"] and not rows[0]["identity"]["compile"]


def test_compiling_is_torchs(data, tmp_path, monkeypatch):
    """The trained module goes through torch.compile; names of weights stay as they are."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model: asked.append(model) or model)
    eager, compiled = (Run(config(compile=c), data, tmp_path, ALONE) for c in (False, True))
    assert asked == [compiled.learner.model] and compiled.learner.model.state_dict().keys() == (
        eager.learner.model.state_dict().keys()
    )
    with pytest.raises(SpecError, match="compile was None and is True"):
        refuse_changes("run", eager.identity, compiled.identity, "store")
