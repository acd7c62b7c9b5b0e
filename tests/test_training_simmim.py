"""Masked image modelling: what is hidden, what is predicted, and the probe that judges it."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import small_run
import torch
from small_run import ALONE, BODY, DATA
from torch import nn

import analysis
import backbones
from backbones import weights
from training import compare, report
from training.data.images import ArrayImages
from training.data.opening import open_data
from training.data.splits import assemble
from training.loop import subject
from training.loop.learner import Learner
from training.loop.run import Run, Stopped
from training.objectives import choice, probe
from training.objectives.simmim import MaskedImages, draw_hidden
from training.settings import presets
from transom.errors import SpecError

RECIPE = presets.read("micro-simmim:hflip=0.5,drop_path=0.5")


config = functools.partial(small_run.config, recipe=RECIPE, evaluations=4)


@pytest.fixture(scope="module")
def data():
    return open_data(DATA)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The row of a run that kept its weights, and their file."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    row = Run(config(keep_weights=True), data, folder, ALONE).run()
    return row, folder / "weights.safetensors"


# -- what is hidden ------------------------------------------------------------------------------


def test_every_image_has_its_own_cells_and_as_many():
    hidden = draw_hidden(3, 5, batch=64, grid=(5, 3), ratio=0.6)
    assert hidden.shape == (64, 5, 3) and hidden.dtype == torch.bool
    assert hidden.sum((1, 2)).tolist() == [9] * 64
    assert len({tuple(image.flatten().tolist()) for image in hidden}) > 50
    assert abs(hidden.float().mean(0) - 0.6).max() < 0.25  # no cell is always seen
    assert torch.equal(hidden, draw_hidden(3, 5, batch=64, grid=(5, 3), ratio=0.6))
    for seed, step in (4, 5), (3, 6):
        assert not torch.equal(hidden, draw_hidden(seed, step, batch=64, grid=(5, 3), ratio=0.6))
    assert draw_hidden(0, 0, batch=2, grid=(2, 2), ratio=0.51).sum().item() == 6  # rounded up


def naive(model: MaskedImages, image: torch.Tensor, cells: torch.Tensor, cell: int):
    """Prediction and loss of one image (c, H, W), with a loop over tokens and over pixels.

    From SimMIM, section 3: a hidden patch's token is the learned vector, positions are added to
    it; a linear layer of a last token predicts the pixels that the token stands for; the loss is
    the mean over hidden pixels and channels.
    """
    encoder, patch = model.encoder, model.encoder.spec.patch_size
    channels, height, width = image.shape
    padded = nn.functional.pad(image, (0, -width % patch, 0, -height % patch))
    h, w = padded.shape[1] // patch, padded.shape[2] // patch
    tokens = torch.empty(encoder.spec.stages[0].dim, h, w, dtype=image.dtype)
    for i in range(h):
        for j in range(w):
            part = padded[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            token = (encoder.stem.conv.weight * part).sum((1, 2, 3)) + encoder.stem.conv.bias
            token = encoder.stem.norm(token)
            if cells[i * patch // cell, j * patch // cell]:
                token = model.mask_token
            tokens[:, i, j] = token
    if encoder.stem.position is not None:
        tokens = tokens + encoder.stem.position[0]
    last = encoder.stages(tokens[None])[0]
    stride = model.stride
    predicted = torch.empty(channels, last.shape[1] * stride, last.shape[2] * stride).to(image)
    matrix = model.decoder.weight[:, :, 0, 0]
    for i in range(last.shape[1]):
        for j in range(last.shape[2]):
            values = matrix @ encoder.norm(last[:, i, j]) + model.decoder.bias
            block = values.view(channels, stride, stride)
            predicted[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride] = block
    predicted = predicted[:, :height, :width]
    errors = [
        abs(predicted[c, y, x] - image[c, y, x])
        for c in range(channels) for y in range(height) for x in range(width)
        if cells[y // cell, x // cell]
    ]  # fmt: skip
    return predicted, sum(errors) / len(errors)


@pytest.mark.parametrize("position", ["none", "absolute"])
@pytest.mark.parametrize("size", [(32, 32), (30, 21)])
def test_prediction_and_loss_are_the_papers(size, position):
    """Against a loop in float64; nine additions of a relative error of 2**-53 are below 1e-12."""
    pixels = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8)
    images = ArrayImages(pixels, torch.tensor([0, 1, 0, 1]))
    task = choice.make(RECIPE, assemble("noise", images, images, "ab"), batch=6, seed=2)
    spec = backbones.parse(f"{BODY}/num_classes=0/position={position}")
    encoder = backbones.HierarchicalBackbone(dataclasses.replace(spec, img_size=size))
    model = task.wrap(encoder).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = math.ceil(size[0] / 8), math.ceil(size[1] / 8)
    hidden = draw_hidden(2, 7, batch=6, grid=grid, ratio=0.6)[3:5]
    with torch.no_grad():
        found = model(x, hidden)
        expected = [naive(model, image, cells, 8) for image, cells in zip(x, hidden, strict=True)]
        torch.testing.assert_close(found, torch.stack([p for p, _ in expected]), rtol=0, atol=1e-12)
        loss = task.loss(model, x, torch.zeros(2), step=7, first=3)  # of places 3 and 4
    # the loss is made in float32
    assert float(loss) == pytest.approx(float(sum(loss for _, loss in expected)), rel=1e-5)


def test_hidden_pixels_are_not_seen_and_seen_ones_are():
    model = MaskedImages(backbones.create(f"{BODY}/num_classes=0"), cell=8, seed=0).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    hidden = draw_hidden(0, 0, batch=1, grid=(4, 4), ratio=0.5)
    where = hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    with torch.no_grad():
        before = model(x, hidden)
        assert torch.equal(model(torch.where(where, torch.randn_like(x), x), hidden), before)
        assert not torch.equal(model(torch.where(where, x, torch.randn_like(x)), hidden), before)
        assert not torch.equal(model(x), before)  # nothing stays hidden


def test_a_start_is_that_of_a_classifier_and_positions_are_not_decayed(data):
    """The backbone of a seed is drawn by name, whatever it learns."""
    masked = Learner(config(), data, ALONE)
    classes = Learner(config(recipe=presets.read("micro")), data, ALONE)
    theirs = classes.model.state_dict()
    ours = masked.judged.state_dict()
    assert {*theirs} - {*ours} == {"head.weight", "head.bias"}
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    names = {id(parameter): name for name, parameter in masked.model.named_parameters()}
    decayed = {
        names[id(parameter)] for group in masked.optimizer.param_groups if group["weight_decay"]
        for parameter in group["params"]
    }  # fmt: skip
    assert "decoder.weight" in decayed and "encoder.stages.0.blocks.0.mlp.fc1.weight" in decayed
    assert not any("mask_token" in name or "bias" in name for name in decayed)
    macs = analysis.count(backbones.create(f"{BODY}/num_classes=0/in_channels=1"), 32).macs
    assert masked.macs == macs + 4 * 4 * 16 * 64  # 16 tokens, each of 16 channels to 8x8 pixels


# -- a run ---------------------------------------------------------------------------------------


def test_a_run_learns_and_tells_what_its_start_could(whole, data):
    row, _ = whole
    losses = [point["loss"] for point in row["curve"]]
    assert row["status"] == "ok" and losses[-1] < 0.9 * losses[0]
    start = Learner(config(), data, ALONE)
    assert row["untrained"] == start.correct(start.judged, (32, 32)).mean()
    shown = report.table_rows([row], None, None)[0]
    assert shown["untrained, %"] == round(100 * row["untrained"], 2)
    assert any("linear probe" in line for line in report.notes([row], None, None))


def test_evaluations_change_nothing(whole, data, tmp_path):
    """The encoder alone is evaluated; it must be in training again for the next step."""
    row, _ = whole
    rare = Run(config(evaluations=1), data, tmp_path, ALONE)
    rare.untrained = row["untrained"]
    assert rare.run()["weights"] == row["weights"]


def test_a_stopped_run_goes_on_to_the_bit(whole, data, tmp_path):
    row, _ = whole
    steps = iter(range(100))
    with pytest.raises(Stopped):
        Run(config(), data, tmp_path, ALONE, stopping=lambda: next(steps) == 4).run()
    again = Run(config(), data, tmp_path, ALONE).run()
    for key in "weights", "accuracy", "untrained", "correct":
        assert again[key] == row[key]


def test_a_batch_in_parts_has_the_loss_of_the_whole(data):
    task = choice.make(RECIPE, data, batch=8, seed=0)
    model = task.wrap(backbones.create(f"{BODY}/num_classes=0/in_channels=1")).eval()
    x = torch.randn(8, 1, 32, 32)
    with torch.no_grad():
        sums = [sum(float(task.loss(model, part, torch.zeros(len(part)), 1, 8 // n * i))
                    for i, part in enumerate(x.chunk(n))) for n in (1, 2, 4)]  # fmt: skip
    assert sums[1:] == pytest.approx([sums[0]] * 2, rel=1e-5)


def test_kept_weights_are_those_that_were_judged_and_start_another_run(whole, data, tmp_path):
    row, path = whole
    assert row["file"] == "run/weights.safetensors"
    encoder = weights.load(None, path).model
    learner = Learner(config(), data, ALONE)
    assert np.array_equal(learner.correct(encoder, (32, 32)), report.correct_of(row))
    fine = config(recipe=presets.read("micro"), weights=str(path), budget="2steps",
                  weights_digest=subject.digest_of(str(path)))  # fmt: skip
    tuned = Run(fine, data, tmp_path, ALONE).run()
    assert tuned["start"] == {"loaded": len(encoder.state_dict()), "fresh": 2}
    averaged = config(recipe=presets.read("micro-simmim:ema=0.5"), budget="3steps",
                      keep_weights=True)  # fmt: skip
    row = Run(averaged, data, tmp_path / "ema", ALONE).run()
    encoder = weights.load(None, tmp_path / "ema/weights.safetensors").model
    assert np.array_equal(learner.correct(encoder, (32, 32)), report.correct_of(row))


def test_the_probe_is_logistic_regression():
    """Against scikit-learn's solver of the same convex problem."""
    linear = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 12, generator=generator)
    labels = torch.arange(400) % 4
    x = centres[labels] + 1.5 * torch.randn(400, 12, generator=generator)
    x[:, 3] = 7.0  # a constant feature
    x[:, 4] *= 1e3
    train, test = x[:300], x[300:]
    found = probe.answers(train, labels[:300], test, classes=4)
    scaled = (x - train.mean(0)) / train.std(0, correction=0).clamp_min(1e-12)
    theirs = linear.LogisticRegression(C=1 / (2 * probe.DECAY * 300), tol=1e-8, max_iter=5000)
    expected = theirs.fit(scaled[:300].double().numpy(), labels[:300]).predict(scaled[300:])
    assert (found.numpy() == expected).all()
    assert 0.5 < (found == labels[300:]).float().mean() < 1  # neither is trivial


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["timm:resnet18"], "timm:resnet18: simmim hides patches behind the stem"),
        (["micro_full/2.tokens=1/pool=token"], "from the map; add /pool=mean"),
        (["micro_pale", "--recipe", "micro-simmim:mask_patch=6"], "multiple of its patch size, 4"),
        (["micro_pale", "--recipe", "simmim"], "an image of 32x32 has 1 cells"),
        (["micro_pale", "--recipe", "micro-simmim:mixup=0.8"], "simmim mixes no images"),
        (["micro_pale", "--eval-size", "48"], "fine-tune the pre-trained weights"),
        (["micro_pale", "--keep-weights"], "give its name"),
    ],
)
def test_what_cannot_be_pre_trained_is_refused_before_a_run(argv, said, monkeypatch):
    monkeypatch.setattr(compare, "_make", lambda *args: pytest.fail("a run was made"))
    with pytest.raises(SpecError, match=said):
        compare.main(["--recipe", "micro-simmim", "--data", DATA, "--backbone", *argv])


def test_the_recipe_is_that_of_the_authors():
    """configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml, with the
    defaults of their config.py; rates are for 512 images."""
    theirs = {
        "mask_patch": 32, "mask_ratio": 0.6, "lr": 2e-4, "lr_batch": 512, "weight_decay": 0.05,
        "warmup": 10 / 100, "warmup_lr": 1e-6 / 2e-4, "min_lr": 1e-5 / 2e-4, "clip_grad": 5.0,
        "scale": 0.67, "hflip": 0.5, "drop_path": 0.0, "opt": "adamw", "beta2": 0.999,
        "crop": "resized", "objective": "simmim",
    }  # fmt: skip
    ours = presets.read("simmim").to_dict()
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs)
