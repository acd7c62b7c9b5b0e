"""Datasets of a training comparison: what is read, what is refused by name, and in which order."""

from __future__ import annotations

import doctest
import gzip
import hashlib
import importlib
import os
import pickle
import shutil
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data import batches, opening, order, scan, splits
from training.data.arrays import read_idx
from training.data.images import ArrayImages, FolderImages
from training.data.opening import open_data
from training.data.splits import assemble, holdout, stratified
from transom.errors import SpecError

MODULES = ("batches", "splits", "order", "arrays", "folders", "hub", "scan", "opening")


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"training.data.{module}"))
    assert result.attempted and not result.failed


def refused(*parts: str):
    """A SpecError of one line that holds every part."""
    return pytest.raises(
        SpecError, match="(?s)^" + "".join(f"(?=.*{p})" for p in parts) + "[^\n]*$"
    )


# -- order of a run --------------------------------------------------------------------------


def by_hand(n: int, seed: int, step: int, batch: int, repeats: int = 1) -> list[int]:
    """The definition: the row of all epochs' permutations, and the step's place in it."""
    row: list[int] = []
    epoch = 0
    while len(row) < (step + 1) * batch:
        text = f"({seed}, 'order', {epoch})".encode()
        number = int(hashlib.sha256(text).hexdigest()[:16], 16) // 2
        generator = torch.Generator().manual_seed(number)
        for image in torch.randperm(n, generator=generator).tolist():
            row += [image] * repeats
        epoch += 1
    return row[step * batch : (step + 1) * batch]


def test_golden_order():
    found = [batches.indices(10, 0, step, 4).tolist() for step in range(5)]
    assert found == [by_hand(10, 0, step, 4) for step in range(5)]
    assert found == GOLDEN


GOLDEN = [[2, 1, 4, 8], [3, 0, 9, 5], [6, 7, 0, 2], [5, 3, 8, 1], [4, 7, 6, 9]]  # of torch 2.14


@settings(max_examples=60)
@given(
    n=st.integers(1, 40), seed=st.integers(0, 2**63), batch=st.integers(1, 100),
    steps=st.lists(st.integers(0, 30), min_size=1, max_size=4), repeats=st.integers(1, 3),
)  # fmt: skip
@example(n=10, seed=0, batch=10, steps=[1, 0], repeats=1)
@example(n=3, seed=1, batch=50, steps=[2], repeats=2)
def test_order_is_a_function_of_seed_and_step(n, seed, batch, steps, repeats):
    for step in steps:  # in any order, with whatever is cached
        found = batches.indices(n, seed, step, batch, repeats)
        assert found.shape == (batch,) and found.dtype == torch.int64
        assert found.tolist() == by_hand(n, seed, step, batch, repeats)


@settings(max_examples=40)
@given(n=st.integers(1, 50), seed=st.integers(0, 99), batch=st.integers(1, 120))
def test_every_epoch_is_a_permutation(n, seed, batch):
    epochs = 3
    steps = range(-(-epochs * n // batch))
    row = torch.cat([batches.indices(n, seed, step, batch) for step in steps])[: epochs * n]
    assert (row.view(epochs, n).sort(1).values == torch.arange(n)).all()
    if n >= 20:
        assert not torch.equal(row[:n], row[n : 2 * n])


def test_repeats_stand_in_a_row():
    once = torch.cat([batches.indices(7, 3, step, 5) for step in range(4)])
    thrice = torch.cat([batches.indices(7, 3, step, 5, repeats=3) for step in range(12)])
    assert torch.equal(once.repeat_interleave(3), thrice)


def test_what_a_caller_does_to_a_batch_stays_there():
    before = batches.indices(8, 0, 0, 8)
    expected = before.tolist()
    before.zero_()
    assert batches.indices(8, 0, 0, 8).tolist() == expected


@pytest.mark.parametrize("wrong", ({"n": 0}, {"step": -1}, {"batch": 0}, {"repeats": 0}))
def test_counts_of_an_order(wrong):
    with refused(f"{next(iter(wrong))}=", "whole number"):
        batches.indices(**{"n": 4, "seed": 0, "step": 0, "batch": 2, **wrong})


def test_streams_are_told_apart_by_seed_and_names():
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", "1"), (0, "a", 1, 1), (-1,)]
    seeds = [batches.stream(*key).initial_seed() for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    text = b"(0, 'a', 1)"
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") // 2
    assert batches.stream(np.int64(0), "a", True).initial_seed() == number
    with pytest.raises(TypeError):
        batches.stream(0, 1.5)
    state = torch.get_rng_state()
    torch.rand(3, generator=batches.stream(0, "a"))
    assert torch.equal(state, torch.get_rng_state())


# -- the made task ---------------------------------------------------------------------------

PLUS = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2)]  # fmt: skip  # noqa: E501


def decoded(image) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
    """(label, half, place in the left window, place in the right window) of a noise-free image, or
    an assertion fails: written anew from the task's definition."""
    found = {}
    assert image.shape == (32, 32)
    rest = image.clone()
    for y in range(0, 32, 4):
        for x in range(0, 32, 4):
            token = image[y : y + 4, x : x + 4]
            if not token.any():
                continue
            assert set(token.unique().tolist()) == {0.0, 2.0}
            lit = [tuple(place) for place in token.nonzero().tolist()]
            border = [(i, j) for i in range(4) for j in range(4) if {i, j} & {0, 3}]
            assert lit in (PLUS, border)
            found["plus" if lit == PLUS else "square"] = (y, x)
            rest[y : y + 4, x : x + 4] = 0
    assert not rest.any() and sorted(found) == ["plus", "square"]
    (left_name, left), (right_name, right) = sorted(found.items(), key=lambda item: item[1][1])
    assert left[1] < 16 <= right[1] and (left[0] < 16) == (right[0] < 16)
    inside = [(y % 16, x % 16) for y, x in (left, right)]
    assert {left_name, right_name} == {"plus", "square"}
    return int(left_name == "square"), left[0] // 16, inside[0], inside[1]


def test_rolling_by_half_an_image_changes_the_label():
    layout = order.layouts(200, batches.stream(0, "test"))
    for image, label in zip(order.paint(layout)[:, 0], layout[:, 0].tolist(), strict=True):
        said, half, left, right = decoded(image)
        assert said == label
        assert decoded(image.roll(16, 1)) == (1 - label, half, right, left)


def test_both_sides_of_the_made_task_have_one_distribution():
    """What stands in a window, glyph and place, as often on the left as on the right."""
    found = [decoded(image) for image in order.paint(order.layouts(400, batches.stream(1)))[:, 0]]
    left = Counter((label, half, place) for label, half, place, _ in found)
    right = Counter((1 - label, half, place) for label, half, _, place in found)
    assert left == right and len(left) == 2 * 2 * 16
    assert sum(label for label, *_ in found) == 200


@pytest.fixture(scope="module")
def made():
    return open_data("order")


def test_the_made_task(made):
    assert (len(made.train), len(made.test), made.classes, made.channels) == (4096, 1000, 2, 1)
    assert made.size == (32, 32) and made.class_names == ("plus left", "square left")
    assert (made.train.labels.sum(), made.test.labels.sum()) == (2048, 500)
    again = open_data("order")
    assert again.digest == made.digest == "082ca3b92dabc377" and again == again
    layout = order.layouts(4096, batches.stream(0, "order task", "train", "layout"))
    values = made.train.pixels(torch.arange(4096)) / 64 - 1
    noise = values - order.paint(layout)
    assert abs(float(noise.std()) - 0.1) < 1e-3 and abs(float(noise.mean())) < 1e-3
    assert 0.5 < float(noise.abs().max()) < 0.8
    both = torch.cat([made.train.array, made.test.array]).flatten(1)
    assert len(both.unique(dim=0)) == 5096  # no test image is a training image


def test_bytes_of_the_made_task_are_an_affine_map(made):
    layout = order.layouts(4096, batches.stream(0, "order task", "train", "layout"))
    draws = order.normal((4096, 1, 32, 32), batches.stream(0, "order task", "train", "noise"))
    values = order.paint(layout) + 0.1 * draws
    normal = (values - values.mean()) / values.std()
    bytes_ = made.train.array / 255
    assert (((bytes_ - made.mean[0]) / made.std[0]) - normal).abs().max() < 0.53 / 64 / values.std()
    loud = order.to_bytes(torch.tensor([-5.0, 0.0, 2.0, 7.0]), noise=1.0)
    assert loud.tolist() == [0, 106, 149, 255]  # 0 and 2 in the middle, 5 deviations on each side


def test_options_of_the_made_task():
    data = open_data("order:noise=0,train=64,test=32", size="64x48")
    assert data.name == "order:noise=0,train=64,test=32" and data.size == (64, 48)
    assert (len(data.train), len(data.test)) == (64, 32)
    assert set(data.train.array.unique().tolist()) == {64, 192}
    assert open_data("order:train=4096").name == "order"
    for text, parts in {
        "order:nosie=1": ("nosie", "did you mean 'noise'"),
        "order:noise=-1": ("noise='-1'", "from 0 to 4"),
        "order:noise": ("'noise' is not option=value",),
        "order:": ("is not option=value",),
        "order:train=8,train=9": ("given twice",),
        "order:train=0": ("train='0'", "whole number"),
        "order:train=1,test=4": ("train", "no image"),
    }.items():
        with refused(*parts):
            open_data(text)


# -- images and their numbers ----------------------------------------------------------------


def arrays(n=12, channels=1, side=6, classes=3, seed=0):
    generator = batches.stream(seed, "arrays")
    pixels = torch.randint(256, (n, channels, side, side), generator=generator, dtype=torch.uint8)
    return ArrayImages(pixels, torch.arange(n) % classes)


def test_access_is_random():
    images = arrays(channels=3)
    found = images.pixels(torch.tensor([7, 0, 7]))
    assert torch.equal(found, images.array[[7, 0, 7]]) and found.dtype == torch.uint8
    picture = np.asarray(images.picture(5))
    assert (
        picture.shape == (6, 6, 3) and (picture == images.array[5].permute(1, 2, 0).numpy()).all()
    )
    assert (np.asarray(arrays().picture(5)) == arrays().array[5, 0].numpy()).all()
    part = images.subset(torch.tensor([4, 2]))
    assert part.labels.tolist() == [1, 2] and torch.equal(part.array, images.array[[4, 2]])
    with refused("2 channels", "1 or 3"):
        arrays(channels=2).picture(0)


@pytest.mark.parametrize(
    ("pixels", "labels", "said"),
    [
        (torch.zeros(2, 1, 4, 4), torch.arange(2), "of bytes"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.arange(2), "channels, height, width"),
        (torch.zeros(2, 1, 0, 4, dtype=torch.uint8), torch.arange(2), "channels, height, width"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(3), "2 images have 3 labels"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "int64"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 1).long(), "one whole number"),
    ],
)  # fmt: skip
def test_shapes_of_arrays(pixels, labels, said):
    with refused(said):
        ArrayImages(pixels, labels)


def test_moments_are_those_of_the_training_pixels():
    train, test = arrays(n=9000, channels=3, side=4), arrays(seed=1, channels=3, side=4)
    data = assemble("mine", train, test, "abc")
    pixels = train.array.double() / 255
    assert np.allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12, atol=0)
    std = pixels.var((0, 2, 3), correction=0).sqrt()
    assert np.allclose(data.std, std, rtol=1e-12, atol=0)
    assert (data.channels, data.size, data.classes) == (3, (4, 4), 3)
    with pytest.raises(AttributeError):
        data.name = "other"


def test_a_digest_is_of_all_content():
    def digest(train, test):
        return assemble("mine", train, test, "abc").digest

    base = digest(arrays(), arrays(seed=1))
    assert len(base) == 16 and base == digest(arrays(), arrays(seed=1))
    pixel, label = arrays(), arrays()
    pixel.array[3, 0, 2, 1] ^= 1
    label.labels[3] = 1
    wide = ArrayImages(arrays().array.view(12, 1, 4, 9), arrays().labels)
    wide_test = ArrayImages(arrays(seed=1).array.view(12, 1, 4, 9), arrays().labels)
    others = [(pixel, arrays(seed=1)), (label, arrays(seed=1)), (arrays(seed=1), arrays()),
              (arrays(), pixel), (arrays(), label), (wide, wide_test)]  # fmt: skip
    assert len({base, *(digest(*pair) for pair in others)}) == 7


def test_no_image_is_no_dataset():
    empty = arrays(n=0)
    with refused("mine", "no training images"):
        assemble("mine", empty, arrays(), "abc")
    with refused("mine", "no test images"):
        assemble("mine", arrays(), empty, "abc")
    with refused(r"\(1, 6, 6\)", r"\(1, 5, 5\)"):
        assemble("mine", arrays(), arrays(side=5), "abc")


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), share=st.floats(0.02, 0.9),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_a_stratified_part(counts, share, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=batches.stream(seed))]
    count = min(max(1, int(share * len(labels))), len(labels) - len(counts))
    if count < 1:
        with refused("cannot be set apart"):
            stratified(labels, count, batches.stream(seed))
        return
    rest, drawn = stratified(labels, count, batches.stream(seed))
    assert torch.equal(torch.cat([rest, drawn]).sort().values, torch.arange(len(labels)))
    assert len(drawn) == count and (drawn.diff() > 0).all() and (rest.diff() > 0).all()
    shares = labels[drawn].bincount(minlength=len(counts)).tolist()
    assert all(n - s >= 1 for n, s in zip(counts, shares, strict=True))
    if min(counts) >= 30 // 2 and share < 0.5:  # no class is at its limit: exact to one image
        quotas = [n * count / len(labels) for n in counts]
        assert all(abs(s - q) < 1 for s, q in zip(shares, quotas, strict=True))


def test_what_is_held_out(made):
    tuning = holdout(made, seed=3)
    assert (len(tuning.train), len(tuning.test)) == (4096 - 409, 409)
    assert tuning.test.labels.bincount().tolist() in ([205, 204], [204, 205])
    rows = {bytes(row.numpy()) for row in made.train.array.flatten(1)}
    parts = [
        {bytes(row.numpy()) for row in part.array.flatten(1)}
        for part in (tuning.train, tuning.test)
    ]
    assert parts[0] | parts[1] == rows and not parts[0] & parts[1]  # and no judged image
    assert tuning.digest == holdout(made, 3).digest != holdout(made, 4).digest
    assert tuning.name == "order/holdout=3" and tuning.mean != made.mean
    assert tuning.size == made.size and tuning.class_names == made.class_names
    scan.scan(tuning)
    with refused("mine", "give more images"):
        holdout(assemble("mine", arrays(n=3), arrays(), "abc"), 0)


def data_with(train_labels, test_labels, classes=3, **changes):
    def images(labels, seed):
        return ArrayImages(arrays(n=len(labels), seed=seed).array, torch.tensor(labels))

    train, test = images(train_labels, 0), images(test_labels, 1)
    return assemble("mine", train, test, [f"c{i}" for i in range(classes)])


@pytest.mark.parametrize(
    ("train", "test", "classes", "said"),
    [
        ([0, 0], [0], 1, "one class only (c0)"),
        ([0, 1, 3], [0], 3, "train: label 3 of image 2 is out of range; expected 0 to 2"),
        ([0, 1, 2], [0, -1], 3, "test: label -1 of image 1 is out of range"),
        ([0, 2], [0], 3, "train: class 'c1' has no image"),
    ],
)
def test_a_check_names_the_fault(train, test, classes, said):
    data = data_with(train, test, classes)
    for look in (scan.check, scan.scan):
        with pytest.raises(SpecError, match=r"^mine: ") as error:
            look(data)
        assert said in str(error.value)


def test_a_constant_channel():
    flat = ArrayImages(torch.full((4, 2, 3, 3), 7, dtype=torch.uint8), torch.arange(4) % 2)
    flat.array[0, 0, 0, 0] = 8
    with refused("channel 1 is constant"):
        scan.check(assemble("mine", flat, flat, "ab"))


# -- folders of image files ------------------------------------------------------------------


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (9, 7), shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(shade)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, several formats and channel counts, folders in folders, and files to ignore."""
    root = tmp_path / "pets"
    for split in ("train", "val"):
        save(root / split / "cat" / "b.png", "L", shade=1)
        save(root / split / "cat" / "a.JPG", size=(20, 30), shade=2)
        save(root / split / "dog" / "deep" / "c.png", "RGBA", shade=3)
        save(root / split / "dog" / "d.gif", "P", shade=4)
        (root / split / "cat" / "._a.jpg").write_bytes(b"\0")
        (root / split / "cat" / "notes.txt").write_text("-")
        (root / split / ".cache" / "x").mkdir(parents=True)
    return root


def test_a_folder(folder):
    data = open_data(str(folder))
    assert isinstance(data.train, FolderImages) and data.class_names == ("cat", "dog")
    assert data.train.names == ("cat/a.JPG", "cat/b.png", "dog/d.gif", "dog/deep/c.png")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert [data.train.picture(i).mode for i in range(4)] == ["RGB"] * 4
    assert data.train.picture(0).size == (20, 30)
    gray = np.asarray(Image.open(folder / "train/cat/b.png"))
    assert (np.asarray(data.train.picture(1)) == gray[:, :, None]).all()
    assert data.size == (224, 224) and open_data(str(folder), 96).size == (96, 96)
    assert (data.channels, data.mean, data.std) == (3, splits.IMAGENET_MEAN, splits.IMAGENET_STD)
    scan.scan(data)
    with refused("picture"):
        data.train.pixels(torch.tensor([0]))
    part = data.train.subset(torch.tensor([3, 0]))
    assert part.names == ("dog/deep/c.png", "cat/a.JPG") and part.labels.tolist() == [1, 0]


def test_a_digest_of_a_folder(folder, tmp_path):
    base = open_data(str(folder)).digest
    os.utime(folder / "train/cat/b.png", (0, 0))
    assert open_data(str(folder)).digest == base
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert open_data(str(moved)).digest == base
    (folder / "train/cat/b.png").rename(folder / "train/cat/e.png")
    renamed = open_data(str(folder)).digest
    with (folder / "val/dog/d.gif").open("ab") as file:
        file.write(b"\0")
    longer = open_data(str(folder)).digest
    (folder / "train/cat/a.JPG").rename(folder / "train/dog/a.JPG")
    assert len({base, renamed, longer, open_data(str(folder)).digest}) == 4


def test_held_out_files(tmp_path):
    for i in range(10):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", size=(3, 3))
        save(tmp_path / "test" / "ab"[i % 2] / f"{i}.png", size=(3, 3))
    tuning = holdout(open_data(str(tmp_path), 64), 0)
    assert (len(tuning.train), len(tuning.test), tuning.size) == (9, 1, (64, 64))
    assert {*tuning.train.names, *tuning.test.names} == {
        f"{'ab'[i % 2]}/{i}.png" for i in range(10)
    }
    assert str(tuning.test.root).endswith("train")


def test_which_folder_is_judged(folder):
    shutil.copytree(folder / "val", folder / "validation")
    (folder / "test").mkdir()
    (folder / "test" / "0001.jpg").write_bytes(b"no labels")
    assert open_data(str(folder)).test.root.endswith("/val")
    save(folder / "test" / "cat" / "0.png")
    save(folder / "test" / "dog" / "0.png")
    assert open_data(str(folder)).test.root.endswith("/test")


def test_faults_of_a_folder(folder):
    name = str(folder)
    shutil.move(folder / "val", folder / "away")
    with refused("train/ has no folder beside it of test/, val/, validation/"):
        open_data(name)
    shutil.move(folder / "away", folder / "val")
    (folder / "val" / "dog").rename(folder / "val" / "dogs")
    with refused("val: it has no folder 'dog'; did you mean 'dogs'"):
        open_data(name)
    (folder / "val" / "dogs").rename(folder / "val" / "dog")
    (folder / "val" / "mouse").mkdir()
    with refused("train: it has no folder 'mouse'"):
        open_data(name)
    (folder / "val" / "mouse").rmdir()
    for split in ("train", "val"):
        (folder / split / "em\npty").mkdir()
    with refused(r"em\\npty: no image is in it"):
        open_data(name)
    for split in ("train", "val"):
        (folder / split / "em\npty").rmdir()
        shutil.rmtree(folder / split / "dog")
    with refused(r"one class only \(cat\)"):
        open_data(name)
    shutil.rmtree(folder / "train" / "cat")
    with refused("train: it is empty"):
        open_data(name)


def test_a_scan_names_the_first_unreadable_files(folder):
    shown = folder / "train/cat"
    good = (folder / "train/cat/b.png").read_bytes()
    for i in range(70):
        save(shown / f"fine{i}.png", size=(2, 2))
    (shown / "c.png").write_bytes(b"")
    (shown / "d.png").write_bytes(good[: len(good) // 2])
    place = good.index(b"IDAT") + 8
    (shown / "e.png").write_bytes(good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :])
    (folder / "val/dog/f.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    data = open_data(str(folder))
    for workers in (1, 3):
        with refused(
            "4 of 82 images cannot be read: ", "/c.png: .*/d.png: .*/e.png: .*; and 1 more"
        ):
            scan.scan(data, workers=workers)
    for name in ("c.png", "d.png", "e.png"):
        (shown / name).unlink()
    with refused(
        "1 of 79 images", "val/dog/f.jpg: it cannot be read", "cannot identify", "[^e]; repair"
    ):
        scan.scan(open_data(str(folder)))
    (folder / "val/dog/f.jpg").unlink()
    scan.scan(open_data(str(folder)))
    with refused("c.png", "No such file"):
        data.train.picture(data.train.names.index("cat/c.png"))


def test_a_checksum_is_verified(folder):
    """PIL decodes a .png whose checksum is wrong; the scan does not let it pass."""
    path = folder / "train/cat/b.png"
    content = bytearray(path.read_bytes())
    content[-16] ^= 255  # the last byte of IDAT's checksum: 12 bytes of IEND follow
    path.write_bytes(content[:-13] + bytes([content[-13] ^ 255]) + content[-12:])
    Image.open(path).load()
    with refused("1 of 8 images", "b.png"):
        scan.scan(open_data(str(folder)))


def test_more_than_eight_bits(folder):
    deep = np.arange(81, dtype=np.uint16).reshape(9, 9) * 700
    Image.fromarray(deep).save(folder / "train/cat/deep.png")
    with refused("deep.png: mode I;16; convert it to 8 bits"):
        scan.scan(open_data(str(folder)))


def test_a_file_that_vanishes(folder):
    data = open_data(str(folder))
    (folder / "train/cat/b.png").unlink()
    with refused("b.png", "No such file", "restore"):
        data.train.fingerprint()


# -- idx and npz -----------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, zipped: bool = True, prefix: str = "") -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    paths = {}
    for seed, (split, n) in enumerate((("train", 12), ("t10k", 6))):
        images = np.random.default_rng(seed).integers(0, 256, (n, 5, 4))
        for what, array in (("images-idx3", images), ("labels-idx1", np.arange(n) % 3)):
            path = folder / f"{prefix}{split}-{what}-ubyte{'.gz' * zipped}"
            path.write_bytes((gzip.compress if zipped else bytes)(idx_bytes(array)))
            paths[f"{split} {what[:6]}"] = path
    return paths


@pytest.mark.parametrize(("zipped", "prefix"), [(True, ""), (False, ""), (True, "emnist-mnist-")])
def test_idx_files(tmp_path, zipped, prefix):
    write_idx(tmp_path, zipped, prefix)
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.test), data.classes) == (12, 6, 3)
    assert (data.size, data.channels, data.class_names) == ((5, 4), 1, ("0", "1", "2"))
    expected = np.random.default_rng(1).integers(0, 256, (6, 5, 4))
    assert (data.test.array[:, 0].numpy() == expected).all()
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (tmp_path / "x").write_text("-") and open_data(str(tmp_path)).digest == data.digest


def test_damaged_idx_files(tmp_path):
    paths = write_idx(tmp_path, zipped=False)
    good = {key: path.read_bytes() for key, path in paths.items()}

    def with_bytes(key: str, content: bytes, *parts: str):
        paths[key].write_bytes(content)
        with refused(paths[key].name + ": ", *parts):
            open_data(str(tmp_path))
        paths[key].write_bytes(good[key])

    images = good["train images"]
    with_bytes("train images", images[:-1], "cut short")
    with_bytes("train images", images[:9], "cut short")
    with_bytes("train images", images[:6], "cut short")
    with_bytes("train images", images + b"\0", "longer than")
    with_bytes("train images", b"", "begins with nothing")
    with_bytes("t10k images", b"\0\0\x0d" + images[3:], "begins with 00000d03", "00000803")
    with_bytes("t10k images", good["t10k labels"], "begins with 00000801")
    with_bytes("train images", images[:4] + b"\xff" * 12 + images[16:], "cut short")
    with_bytes("t10k labels", images, "begins with 00000803", "00000801", "1 dimension;")
    paths["train labels"].write_bytes(idx_bytes(np.arange(11) % 3))
    with refused("train-images", "12 images have 11 labels"):
        open_data(str(tmp_path))
    paths["train labels"].write_bytes(idx_bytes(np.arange(12) % 3 + 1))
    with refused("train-labels", "label 0 has no training image", "from 0 to 2"):
        open_data(str(tmp_path))
    paths["train labels"].write_bytes(idx_bytes(np.arange(12) % 2))
    with refused("test: label 2 of image 2 is out of range; expected 0 to 1"):
        open_data(str(tmp_path))
    paths["train labels"].write_bytes(idx_bytes(np.arange(12) % 4))
    with refused("test: class '3' has no image, but train has"):
        open_data(str(tmp_path))
    paths["train labels"].write_bytes(idx_bytes(np.zeros(12)))
    with refused("one class only"):
        open_data(str(tmp_path))
    paths["train images"].write_bytes(idx_bytes(np.zeros((0, 5, 4))))
    paths["train labels"].write_bytes(idx_bytes(np.zeros(0)))
    with refused("no training images"):
        open_data(str(tmp_path))
    paths["train labels"].unlink()
    with refused("no idx file of the train labels"):
        open_data(str(tmp_path))


def test_damaged_gz_files(tmp_path):
    paths = write_idx(tmp_path)
    content = paths["train images"].read_bytes()
    flipped = bytes([content[-20] ^ 255])
    invalid = content[:10] + b"\xff" * 20 + content[30:]  # no block of deflate
    for wrong in (content[:-30], b"not gz", content[:-20] + flipped + content[-19:], invalid):
        paths["train images"].write_bytes(wrong)
        with refused("train-images-idx3-ubyte.gz: it cannot be read", "fetch it again"):
            read_idx(paths["train images"], 3)
    with refused("absent.gz", "No such file"):
        read_idx(tmp_path / "absent.gz", 3)


def test_idx_files_of_two_datasets(tmp_path):
    write_idx(tmp_path, prefix="emnist-letters-")
    write_idx(tmp_path, prefix="emnist-digits-")
    with refused("idx files of emnist-digits, emnist-letters"):
        open_data(str(tmp_path))


def write_npz(path: Path, **changes) -> str:
    arrays = {
        "train_images": np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), np.uint8),
        "train_labels": (np.arange(12) % 3)[:, None],
        "test_images": np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), np.uint8),
        "test_labels": (np.arange(6) % 3).astype(np.uint8)[:, None],
        "val_images": np.zeros(3), **changes,
    }  # fmt: skip
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path)


def test_npz_files(tmp_path):
    data = open_data(write_npz(tmp_path / "a.npz"))
    assert (data.size, data.channels, len(data.train), len(data.test)) == ((5, 4), 3, 12, 6)
    expected = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), np.uint8)
    assert (np.asarray(data.test.picture(2)) == expected[2]).all()
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    gray = np.arange(2 * 36, dtype=np.uint8).reshape(2, 6, 6)
    np.savez_compressed(
        tmp_path / "b.npz", x_train=gray, y_train=[0, 1], x_test=gray, y_test=[1, 0]
    )
    keras = open_data(str(tmp_path / "b.npz"), size=(32, 64))
    assert (keras.channels, keras.size, keras.test.labels.tolist()) == (1, (32, 64), [1, 0])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train_labels": None}, ("no array is called 'train_labels'", "train_images")),
        ({"train_images": np.zeros((12, 5, 4))}, ("train_images", "float64", "uint8")),
        ({"train_images": np.zeros((12, 5, 5, 5), np.uint8)}, ("train_images", "channels")),
        ({"train_images": np.zeros((12, 20), np.uint8)}, ("train_images", r"\(12, 20\)")),
        ({"test_labels": np.zeros((6, 14), int)}, ("test_labels", r"\(6, 14\)", "one an image")),
        ({"train_labels": np.arange(12) / 2}, ("train_labels", "float64", "whole numbers")),
        ({"train_labels": np.arange(12) % 3 - 1}, ("train_labels", "label -1 is out of range")),
        ({"train_labels": np.arange(12) * 7}, ("label 1 has no training image",)),
        ({"test_labels": np.arange(5) % 3}, ("test_images", "6 images have 5 labels")),
        ({"test_images": np.zeros((6, 5, 4), np.uint8)}, (r"\(3, 5, 4\)", r"\(1, 5, 4\)")),
    ],
)  # fmt: skip
def test_faults_of_npz_files(tmp_path, changes, parts):
    with refused("wrong.npz", *parts):
        open_data(write_npz(tmp_path / "wrong.npz", **changes))


def test_nothing_in_an_npz_is_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    path = tmp_path / "evil.npz"
    array = np.array([Payload()] * 12, dtype=object)
    write_npz(path, train_images=array)
    for content in (path.read_bytes(), pickle.dumps(Payload()), b"", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with refused("evil.npz: it cannot be read", "again"):
            open_data(str(path))
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(path)
    with refused("evil.npz: one array, not an .npz"):
        open_data(str(path))
    np.savez(path)
    with refused("evil.npz: no array", "empty"):
        open_data(str(path))
    assert not (tmp_path / "marker").exists()


# -- names -----------------------------------------------------------------------------------


def test_names_that_stand_for_nothing(tmp_path):
    with refused("no dataset is called 'fashon'; did you mean 'fashion'", "order, digits", "idx"):
        open_data("fashon")
    with refused("no dataset is called ''"):
        open_data("")
    with refused("absent/x: no such file or folder", "a path"):
        open_data(str(tmp_path / "absent" / "x"))
    with refused("neither train/ nor idx files"):
        open_data(str(tmp_path))
    (tmp_path / "a.zip").write_bytes(b"-")
    with refused("a.zip: not an .npz file"):
        open_data(str(tmp_path / "a.zip"))
    for name in ("x" * 5000, "a\0b", "/" + "y" * 5000, "line\nend"):
        with refused("no "):
            open_data(name)
    for size in (0, "7y", (1, 2, 3), "big\n"):
        with refused("size=", "height first"):
            open_data("order", size)
    with refused("no dataset is called 'digits:x=1'"):
        open_data("digits:x=1")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "FASHION", str(tmp_path / "none"))
    with refused("apt install dataset-fashion-mnist", "path"):
        open_data("fashion")
    monkeypatch.setattr(opening, "FASHION", str(tmp_path))
    with refused("apt install dataset-fashion-mnist"):
        open_data("fashion")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with refused(r"pip install transom\[data\]"):
        open_data("digits")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused("hf:a/b: .*pip install datasets"):
        open_data("hf:a/b")
    old = types.SimpleNamespace(__version__="3.6.0")
    monkeypatch.setitem(sys.modules, "datasets", old)
    with refused("datasets 3.6.0", "pip install 'datasets>=4'"):
        open_data("hf:a/b")


@pytest.mark.skipif(
    not Path(opening.FASHION).is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion():
    data = open_data("fashion")
    assert (len(data.train), len(data.test), data.classes, data.size) == (
        60_000,
        10_000,
        10,
        (28, 28),
    )
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.class_names[int(data.train.labels[0])] == "ankle boot"
    assert abs(data.mean[0] - 0.2860) < 5e-5 and abs(data.std[0] - 0.3530) < 5e-5  # as published
    assert holdout(data, 0).test.labels.bincount().tolist() == [600] * 10


def test_digits():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    data = open_data("digits")
    assert (len(data.train), len(data.test), data.classes, data.size) == (1437, 360, 10, (8, 8))
    assert int(data.train.array.max()) == 240
    counts = [part.labels.bincount() for part in (data.train, data.test)]
    assert ((counts[1] - (counts[0] + counts[1]) * 360 / 1797).abs() < 1).all()
    assert open_data("digits", 32).digest == data.digest


# -- the hub, whose library gives tables of its own here --------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Tables by id, given by the real library without a network."""
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    tables: dict[str, object] = {}

    def load(name, config=None, revision=None):
        if name not in tables:
            raise ConnectionError("no\nnetwork")
        return tables[name]

    def make(n, size=(9, 7), mode="RGB", labels=None, **columns):
        pictures = [Image.new("RGB", size, (i, 2 * i, 3 * i)).convert(mode) for i in range(n)]
        labels = [i % 2 for i in range(n)] if labels is None else labels
        features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        features |= {key: datasets.ClassLabel(names=["cat", "dog"]) for key in columns}
        values = {"img": pictures, "label": labels, **columns}
        return datasets.Dataset.from_dict(values, datasets.Features(features))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return tables, make


def test_small_images_of_the_hub(hub):
    tables, make = hub
    tables["a/b"] = {"train": make(8), "test": make(4)}
    data = open_data("hf:a/b")
    assert isinstance(data.train, ArrayImages) and data.class_names == ("cat", "dog")
    assert (data.size, data.channels, len(data.test)) == ((7, 9), 3, 4)
    assert data.train.array[5, :, 0, 0].tolist() == [5, 10, 15]
    tables["a/b"] = {"train": make(8, mode="L"), "test": make(4, mode="L")}
    assert open_data("hf:a/b").channels == 1


def test_pictures_of_the_hub(hub):
    tables, make = hub
    tables["a/b"] = {"train": make(8, size=(70, 9)), "test": make(4, labels=[-1] * 4),
                     "validation": make(6)}  # fmt: skip
    data = open_data("hf:a/b")
    assert len(data.test) == 6 and data.size == (224, 224)  # the labels of test are not public
    assert data.train.picture(3).getpixel((0, 0)) == (3, 6, 9)
    part = data.train.subset(torch.tensor([5, 3])).subset(torch.tensor([1]))
    assert part.picture(0).getpixel((0, 0)) == (3, 6, 9) and part.labels.tolist() == [1]
    scan.scan(data)
    tuning = holdout(assemble("x", data.train, data.test, data.class_names), 0)
    assert len(tuning.test) == 1 and tuning.digest != data.digest
    assert open_data("hf:a/b").digest == data.digest


def test_faults_of_the_hub(hub):
    tables, make = hub
    with refused("hf:a/b: it cannot be loaded", "ConnectionError: no network", "offline"):
        open_data("hf:a/b")
    tables["a/b"] = {"train": make(8), "more": make(4)}
    with refused("splits train, more", "validation"):
        open_data("hf:a/b")
    two = make(8, coarse=[1, 0] * 4)
    tables["a/b"] = {"train": two, "test": two}
    with refused("label, coarse", "name one by hf:a/b:label=COLUMN"):
        open_data("hf:a/b")
    assert open_data("hf:a/b:label=coarse").train.labels.tolist() == [1, 0] * 4
    with refused("no label column 'corse'; did you mean 'coarse'"):
        open_data("hf:a/b:label=corse")
    with refused("'lable' is no option=value; did you mean 'label'"):
        open_data("hf:a/b:lable=coarse")
    tables["a/b"] = {"train": make(8), "test": make(4, labels=[0] * 4)}
    with refused("test: class 'dog' has no image"):
        open_data("hf:a/b")
    tables["a/b"] = {"train": make(0), "test": make(4)}
    with refused("no training images"):
        open_data("hf:a/b")
