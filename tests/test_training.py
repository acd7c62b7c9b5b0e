"""A run of training: exact budgets, equal starts, pure batches, resumes to the bit, failures that
are rows."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
import small_run
import timm
import torch
from small_run import ALONE, BODY, DATA
from timm.scheduler import CosineLRScheduler
from torch import nn

import analysis
import backbones
from analysis.results.store import Store
from training.data.opening import open_data
from training.loop import augment, checkpoint, drop_path, initial, subject
from training.loop.run import Run, Stopped
from training.settings import presets
from training.settings.budget import Budget
from training.worker import work
from transom.errors import SpecError

# all that is random at once: windows, mirror images, mixing, stochastic depth
BUSY = presets.read("micro:crop=pad,hflip=0.5,mixup=0.4,cutmix=1,drop_path=0.5,ema=0.9")


config = functools.partial(small_run.config, recipe=BUSY, evaluations=12)


@pytest.fixture(scope="module")
def data():
    return open_data(DATA)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The row of the uninterrupted run."""
    return Run(config(), data, tmp_path_factory.mktemp("whole"), ALONE).run()


def losses(row) -> list[float]:
    return [point["loss"] for point in row["curve"]]


# -- the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount", "unit", "back"),
    [
        ("2e15macs", 2e15, "macs", "2e+15macs"), ("500steps", 500, "steps", "500steps"),
        ("1.5epochs", 1.5, "epochs", "1.5epochs"), ("0.5h", 1800, "seconds", "1800s"),
        ("2min", 120, "seconds", "120s"), ("90s", 90, "seconds", "90s"),
    ],
)  # fmt: skip
def test_a_budget_is_read(text, amount, unit, back):
    found = Budget.parse(text)
    assert (found.amount, found.unit, str(found)) == (amount, unit, back)
    assert Budget.parse(str(found).replace("+", "")) == found


@pytest.mark.parametrize("text", ["", "5", "steps", "1.5steps", "0h", "-1steps", "1e99macs",
                                  "nanmacs", "5 parsecs", "1e3.5macs", "1.2.3epochs"])  # fmt: skip
def test_no_budget(text):
    with pytest.raises(SpecError, match="expected an amount such as"):
        Budget.parse(text)


def test_a_budget_of_macs_gives_the_cheaper_backbone_more_steps(data, tmp_path):
    """MACs: the count of analysis x 3 x images, nearest to the budget from either side."""
    for mixer in ("window:size=4", "full"):
        run = Run(config(backbone=f"{BODY}/1={mixer}", budget="3e8macs"), data, tmp_path, ALONE)
        spec = subject.spec_of(run.config.backbone, data, (32, 32), None)
        one = analysis.count(backbones.create(spec), 32, trace=False).macs
        assert run.learner.macs == one and run.spent_macs() == 0
        exact = 3e8 / (3 * one * 8)
        assert abs(run.steps - exact) <= 0.5 and run.steps > 1
    assert Budget.parse("1macs").steps(macs=10**9, images=10, batch=2) == 1
    assert Budget.parse("3epochs").steps(macs=1, images=100, batch=8) == 38  # of 37.5
    assert Budget.parse("9s").steps(macs=1, images=100, batch=8) is None


def test_a_run_spends_its_budget(whole):
    assert whole["steps"] == 12 and whole["images"] == 96 and whole["epochs"] == 1.5
    assert whole["macs"] == 3 * 96 * whole["macs_per_image"]
    assert [point["steps"] for point in whole["curve"]] == list(range(1, 13))
    assert whole["curve"][5]["macs"] == whole["macs"] / 2


def test_a_budget_of_time_ends(data, tmp_path):
    row = Run(config(budget="1s", evaluations=2), data, tmp_path, ALONE).run()
    assert row["status"] == "ok" and row["seconds"] >= 1 and len(row["curve"]) == 2
    assert row["seconds"] - row["curve"][-1]["seconds"] < 1e-3


# -- the recipe --------------------------------------------------------------------------------


def test_swin_is_the_authors_recipe():
    """config.py, build.py and optimizer.py of microsoft/Swin-Transformer, value by value."""
    swin = presets.read("swin")
    authors = {  # BASE_LR, WARMUP_LR and MIN_LR are multiplied by batch * processes / 512
        "opt": "adamw", "lr": 5e-4, "lr_batch": 512, "beta2": 0.999, "weight_decay": 0.05,
        "clip_grad": 5.0, "warmup": 20 / 300, "warmup_prefix": False, "warmup_lr": 5e-7 / 5e-4,
        "min_lr": 5e-6 / 5e-4,
        "loss": "ce", "smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "mixup_switch": 0.5,
        "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "reprob": 0.25,
        "hflip": 0.5, "crop": "resized", "scale": 0.08, "crop_pct": 224 / 256,
        "interpolation": "bicubic", "drop_path": None, "ema": 0.0, "init": "paper", "repeats": 1,
        "bce_threshold": 0.0, "name": "swin", "objective": "classify",
        "mask_patch": 32, "mask_ratio": 0.6, "probe_images": 10_000,  # of simmim alone
    }  # fmt: skip
    assert swin.to_dict() == pytest.approx(authors)
    assert swin.rate(1024) == pytest.approx(1e-3)
    data = open_data(DATA)  # DROP_PATH_RATE of the variants' yaml files
    rates = {"swin_t": 0.2, "swin_s": 0.3, "swin_b": 0.5}
    assert {n: subject.spec_of(n, data, (32, 32), None).drop_path for n in rates} == rates
    assert subject.spec_of("swin_s/drop_path=0.1", data, (32, 32), None).drop_path == 0.1
    assert subject.spec_of("swin_s", data, (32, 32), 0.0).drop_path == 0.0


@pytest.mark.parametrize("prefix", [True, False])
def test_the_schedule_is_timms(prefix):
    swin = dataclasses.replace(presets.read("swin"), warmup_prefix=prefix)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = CosineLRScheduler(
        optimizer, t_initial=280 if prefix else 300, lr_min=1e-5, warmup_t=20,
        warmup_lr_init=1e-6, warmup_prefix=prefix,
    )  # fmt: skip
    for epoch in range(301):
        want = theirs._get_lr(min(epoch, 299.999999))[0]
        assert 1e-3 * swin.schedule(epoch / 300) == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("swim", "did you mean 'swin'"), ("swin:lr", "FIELD=VALUE"),
        ("swin:lrr=1", "did you mean 'lr'"), ("micro:lr=-1", "above 0"),
        ("micro:lr=1e-3,lr=2e-3", "distinct"), ("no.toml", "cannot be read"),
        ("micro:init=he", "one of paper, xavier"), ("micro:mixup=x", "finite number"),
    ],
)  # fmt: skip
def test_no_recipe(text, said):
    with pytest.raises(SpecError, match=said):
        presets.read(text)


def test_a_recipe_in_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "swin"\nmixup = 0\nlr = 0.001\n')
    found = presets.read(str(path))
    assert found == dataclasses.replace(presets.read("swin"), name="mine", mixup=0.0, lr=1e-3)


# -- the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["paper", "xavier"])
def test_parameters_of_one_name_and_shape_start_equal(init, data):
    pairs = 0
    names = ["micro_window", "micro_pale", "micro_token_mlp", "pale_t/stages=2"]
    models = [subject.build(name, data, (32, 32), None, seed=i) for i, name in enumerate(names)]
    for model in models:
        initial.draw(model, 3, init)
    first = dict(models[0].named_parameters())
    for model in models[1:]:
        for name, parameter in model.named_parameters():
            if name in first and first[name].shape == parameter.shape:
                assert torch.equal(first[name], parameter), name
                pairs += 1
    assert pairs > 60
    other = subject.build(names[0], data, (32, 32), None, seed=0)
    initial.draw(other, 4, init)
    assert not torch.equal(other.head.weight, models[0].head.weight)


@pytest.mark.parametrize("name", ["swin_t", "swinv2_t_w8", "cswin_t", "pale_t", "swin_mlp_t_c24"])
def test_the_papers_start_is_what_the_constructor_draws(name):
    """Same constants, and of everything random the same mean and spread within sampling error."""
    model = backbones.create(f"{name}/stages=2/1.depth=1/2.depth=1", num_classes=50)
    drawn = copy.deepcopy(model)
    initial.draw(drawn, 0, "paper")
    changed = 0
    for (key, old), new in zip(model.named_parameters(), drawn.parameters(), strict=True):
        if bool((old == old.flatten()[0]).all()):
            assert torch.equal(old, new), key
            continue
        assert not torch.equal(old, new), key
        changed += 1
        limit = 6 * float(old.detach().std()) / math.sqrt(old.numel())
        assert abs(float((new.mean() - old.mean()).detach())) < 1.5 * limit, key
        assert abs(float((new.std() - old.std()).detach())) < limit, key
    assert changed >= 8


def test_layers_of_one_shape_start_different(data):
    model = subject.build("micro_window", data, (32, 32), None, seed=0)
    for init in ("paper", "xavier"):
        initial.draw(model, 0, init)
        weights = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
        pairs = [(a, b) for a in weights for b in weights if a is not b and a.shape == b.shape]
        assert len(pairs) > 6 and not any(torch.equal(a, b) for a, b in pairs)


def test_xavier_follows_the_width(data):
    model = subject.build("micro_window", data, (32, 32), None, seed=0)
    initial.draw(model, 0, "xavier")
    for part in model.modules():
        if isinstance(part, nn.Linear):
            bound = (6 / (part.in_features + part.out_features)) ** 0.5
            assert 0.9 * bound < float(part.weight.detach().abs().max()) <= bound
    foreign = timm.create_model("resnet18", num_classes=2)
    before = copy.deepcopy(foreign.state_dict())
    initial.draw(foreign, 0, "paper")
    assert all(torch.equal(before[k], v) for k, v in foreign.state_dict().items())
    initial.draw(foreign, 0, "xavier")
    differ = [k for k, v in foreign.state_dict().items() if not torch.equal(before[k], v)]
    assert differ == ["fc.weight"]


# -- batches and stochastic depth ------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "micro:crop=pad,hflip=0.5,mixup=0.4,cutmix=1,smoothing=0.1", "swin:crop=pad", "swin",
    "micro:repeats=2,hflip=0.5",
])  # fmt: skip
def test_a_batch_is_a_function_of_seed_and_step(text, data):
    """Any slice of the global batch, in any order of steps, with any use of global generators."""
    made = presets.read(text)

    def batches(first, count):
        return augment.TrainBatches(data, made, (32, 32), 5, 8, first, count, 10)

    parts = [batches(0, 8), batches(0, 4), batches(4, 4)]
    whole = {step: parts[0][step] for step in (0, 7, 3)}
    torch.manual_seed(99)
    np.random.seed(99)
    for step in (3, 0, 7):
        for i, content in enumerate(whole[step]):
            again = torch.cat([part[step][i] for part in parts[1:]])
            assert torch.equal(content, again)
    assert not torch.equal(whole[0][0], whole[3][0])
    if "mixup" in text or "swin" in text:
        assert torch.allclose(whole[0][1].sum(-1), torch.ones(8)) and whole[0][1].shape == (8, 2)
    if "repeats" in text:
        order = whole[0][1]
        assert torch.equal(order[::2], order[1::2])


def test_an_image_is_mixed_with_the_mirrored_place(data):
    """As timm flips a batch: the two of a pair keep their sum, and are both others."""
    mixing = presets.read("micro:mixup=0.8")
    mixed, targets = augment.TrainBatches(data, mixing, (32, 32), 0, 8, 0, 8, 4)[0]
    plain, labels = augment.TrainBatches(data, presets.read("micro"), (32, 32), 0, 8, 0, 8, 4)[0]
    for i in range(8):
        torch.testing.assert_close(mixed[i] + mixed[7 - i], plain[i] + plain[7 - i])
        assert not torch.allclose(mixed[i], plain[i])
    ones = nn.functional.one_hot(labels, 2).float()
    torch.testing.assert_close(targets + targets.flip(0), ones + ones.flip(0))


def test_pictures_of_a_batch_have_draws_of_their_own(data):
    """Eight copies of one picture become different ones."""
    made = presets.read("micro:repeats=8,crop=resized,hflip=0.5")
    images, _ = augment.TrainBatches(data, made, (32, 32), 0, 8, 0, 8, 4)[0]
    assert len({image.numpy().tobytes() for image in images}) > 5


def test_windows_and_mirror_images_are_of_the_padded_image(data):
    """Against a loop in plain indices."""
    made = presets.read("micro:crop=pad,hflip=0.5")
    images, _ = augment.TrainBatches(data, made, (32, 32), 0, 16, 0, 16, 4)[0]
    plain, _ = augment.TrainBatches(data, presets.read("micro"), (32, 32), 0, 16, 0, 16, 4)[0]
    moved = 0
    for image, original in zip(images[:, 0], plain[:, 0], strict=True):
        padded = torch.zeros(40, 40)
        padded[4:36, 4:36] = original
        windows = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        equal = [torch.equal(image, w) for w in windows + [w.flip(-1) for w in windows]]
        assert sum(equal) == 1
        moved += not torch.equal(image, original)
    assert moved > 8


def test_seeded_restores_every_generator():
    import random

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    want = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with augment.seeded(3, "x"):
        first = torch.rand(1), np.random.rand(), random.random()
    assert (torch.rand(1), np.random.rand(), random.random()) == want
    with augment.seeded(3, "x"):
        assert (torch.rand(1), np.random.rand(), random.random()) == first
    with augment.seeded(3, "y"):
        assert torch.rand(1) != first[0]


@pytest.mark.parametrize("name", [BODY, "timm:deit_tiny_patch16_224", "torchvision:swin_t"])
def test_stochastic_depth_is_the_global_batchs(name):
    data = open_data(DATA)
    data = dataclasses.replace(data, channels=3)
    model = subject.build(name, data, (32, 32), 0.5, seed=0).train()
    modules = drop_path.replace(model)
    assert modules and not any(type(m).__name__ in drop_path.CLASSES for m in model.modules())
    x = torch.randn(6, 3, 32, 32)
    if name != "torchvision:swin_t":  # which has dropout too
        outs = []
        for parts in ((6,), (2, 4), (3, 3)):
            logits, first = [], 0
            for count in parts:
                drop_path.set_draws(modules, seed=1, step=2, batch=6, first=first, count=count)
                logits.append(model(x[first : first + count]))
                first += count
            outs.append(torch.cat(logits))
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outs[0], outs[2], rtol=1e-4, atol=1e-5)
        drop_path.set_draws(modules, seed=1, step=3, batch=6, first=0, count=6)
        assert not torch.allclose(model(x), outs[0], rtol=1e-3)


def test_a_drop_has_its_rate_and_keeps_the_mean():
    module = drop_path.GlobalDropPath(0.25).train()
    drop_path.set_draws([module], seed=0, step=0, batch=4000, first=0, count=4000)
    y = module(torch.ones(4000, 1, 1, 1)).flatten()
    assert set(y.tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs(float((y == 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    second = module(torch.ones(4000, 1, 1, 1)).flatten()
    assert not torch.equal(y, second)  # the other residual of the block
    assert torch.equal(module.eval()(torch.ones(2, 1)), torch.ones(2, 1))


# -- resuming ----------------------------------------------------------------------------------


def test_two_runs_are_equal_to_the_bit(whole, data, tmp_path):
    torch.manual_seed(7)
    again = Run(config(), data, tmp_path, ALONE).run()
    assert again["weights"] == whole["weights"]
    assert losses(again) == losses(whole) and again["correct"] == whole["correct"]
    other = Run(config(seed=1), data, tmp_path, ALONE).run()
    assert other["weights"] != whole["weights"]


@pytest.mark.parametrize("at", [1, 8, 11])
def test_a_stopped_run_resumes_to_the_bit(at, whole, data, tmp_path):
    calls = iter(range(1, 100))
    run = Run(config(), data, tmp_path, ALONE, stopping=lambda: next(calls) == at)
    with pytest.raises(Stopped):
        run.run()
    assert run.step == at
    resumed = Run(config(), data, tmp_path, ALONE)
    assert resumed.step == at
    row = resumed.run()
    assert row["weights"] == whole["weights"] and losses(row) == losses(whole)


def test_losses_since_the_last_evaluation_survive_a_stop(data, tmp_path):
    """The mean loss of a point of the curve is over all its steps, those before a stop too."""
    rare = config(evaluations=2)
    want = Run(rare, data, tmp_path / "whole", ALONE).run()
    calls = iter(range(1, 100))
    with pytest.raises(Stopped):
        Run(rare, data, tmp_path, ALONE, stopping=lambda: next(calls) == 4).run()
    assert losses(Run(rare, data, tmp_path, ALONE).run()) == losses(want)


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(whole, data, tmp_path):
    calls = iter(range(1, 100))
    with pytest.raises(Stopped):
        Run(config(), data, tmp_path, ALONE, stopping=lambda: next(calls) == 9, save_steps=2).run()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == ["step-000000008.safetensors",
                                             "step-000000009.safetensors"]  # fmt: skip
    files[1].write_bytes(files[1].read_bytes()[:-100])
    resumed = Run(config(), data, tmp_path, ALONE)
    assert resumed.step == 8 and resumed.run()["weights"] == whole["weights"]
    files[0].write_bytes(b"junk")
    for path in files[1:]:
        path.unlink(missing_ok=True)
    with pytest.raises(SpecError, match="no checkpoint can be read"):
        Run(config(), data, tmp_path, ALONE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": dataclasses.replace(BUSY, lr=1e-4)}, "recipe.lr was 0.003 and is 0.0001"),
        ({"threads": 2}, "threads was 1 and is 2"), ({"batch": 16}, "batch was 8 and is 16"),
        ({"backbone": BODY + "/1=pale"}, "backbone was"), ({"budget": "9steps"}, "budget was"),
    ],
)  # fmt: skip
def test_what_changed_between_two_parts_is_named(change, said, data, tmp_path):
    calls = iter(range(1, 100))
    with pytest.raises(Stopped):
        Run(config(), data, tmp_path, ALONE, stopping=lambda: next(calls) == 2).run()
    with pytest.raises(SpecError, match=said):
        Run(config(**change), data, tmp_path, ALONE)
    other = dataclasses.replace(data, digest="0123")
    with pytest.raises(SpecError, match="content of the data was"):
        Run(config(), other, tmp_path, ALONE)


def test_the_optimizers_state_is_by_name(data, tmp_path):
    """Groups in another order get the same state."""
    run = Run(config(), data, tmp_path, ALONE)
    for _ in range(2):
        run.make_step(*next(run.batches()))
    saved = checkpoint.optimizer_tensors(run.learner.model, run.learner.optimizer)
    assert any(key.endswith("/exp_avg_sq") for key in saved)
    other = torch.optim.AdamW(list(run.learner.model.parameters())[::-1], lr=1.0)
    checkpoint.restore_optimizer(run.learner.model, other, saved)
    for parameter, state in run.learner.optimizer.state.items():
        for key, value in state.items():
            assert torch.equal(other.state[parameter][key], value)


# -- failures ----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_only(data, tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    wild = dataclasses.replace(BUSY, clip_grad=0.0)
    runs = [config(recipe=wild, lr=1e30), config(recipe=wild)]
    assert work(runs, store)
    bad, good = store.read()[0]
    assert bad["status"] == "diverged" and bad["accuracy"] == 0.5 and bad["correct"] == ""
    assert all(word in bad["reason"] for word in ("step", "learning rate", "gradient"))
    assert good["status"] == "ok"


def test_short_memory_means_smaller_parts_of_the_same_batch(whole, data, tmp_path):
    run = Run(config(), data, tmp_path, ALONE)
    body = run.learner.trained

    class Short(nn.Module):
        def forward(self, x):
            if len(x) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return body(x)

    run.learner.trained = Short()
    row = run.run()
    assert row["micro_batch"] == 2 and row["status"] == "ok"
    assert losses(row) == pytest.approx(losses(whole), abs=1e-5)
    run = Run(config(), data, tmp_path, ALONE)

    class None_(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("out of memory")

    run.learner.trained = None_()
    row = run.run()
    assert row["status"] == "oom" and row["micro_batch"] == 1 and row["accuracy"] == 0.5


def test_a_full_disk_leaves_store_and_checkpoint_whole(whole, data, tmp_path, monkeypatch):
    calls = iter(range(1, 100))
    with pytest.raises(Stopped):
        Run(config(), data, tmp_path, ALONE, stopping=lambda: next(calls) == 4).run()
    import safetensors.torch

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save", full)
        with pytest.raises(SpecError, match="No space left on device"):
            Run(config(), data, tmp_path, ALONE, save_steps=2).run()
    assert [p.name for p in tmp_path.glob("step*.safetensors")] == ["step-000000004.safetensors"]
    assert Run(config(), data, tmp_path, ALONE).run()["weights"] == whole["weights"]


def test_a_failing_model_is_a_row(tmp_path, monkeypatch):
    store = Store(tmp_path / "runs.jsonl")
    monkeypatch.setattr(Run, "make_step", lambda *a: (_ for _ in ()).throw(ValueError("no way")))
    assert work([config()], store)
    (row,) = store.read()[0]
    assert row["status"] == "failed" and row["reason"] == "ValueError: no way"
    assert row["accuracy"] == 0.5


@pytest.mark.parametrize("text", ["ce", "bce", "bce,smoothing=0.1", "ce,smoothing=0.1",
                                  "bce,bce_threshold=0.2"])  # fmt: skip
def test_losses_are_timms(text):
    from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy

    from training.objectives.classes import summed_loss

    torch.manual_seed(0)
    logits, targets = torch.randn(6, 5), torch.arange(6) % 5
    made = presets.read(f"micro:loss={text}")
    if made.loss == "ce":
        theirs = LabelSmoothingCrossEntropy(made.smoothing)
    else:
        theirs = BinaryCrossEntropy(made.smoothing, made.bce_threshold or None)
    ours = summed_loss(logits, targets, made) / 6
    torch.testing.assert_close(ours, theirs(logits, targets))
