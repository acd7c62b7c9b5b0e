"""Batches of a run: a pure function of the seed and the step.

What happens to an image depends on the seed, the step and its place in the global batch, so the
batches are the same for any number of workers and processes, and after any resume.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import batches
from training.data.batches import stream
from training.data.images import ArrayImages, Images
from training.data.splits import Data
from training.settings.recipe import Recipe

Size = tuple[int, int]


@contextlib.contextmanager
def seeded(*key: Any) -> Iterator[None]:
    """Context with the generators of torch, numpy and Python seeded by a key, restored afterwards.

    timm's transforms draw from all three.
    """
    seed = stream(0, "seeded", *key).initial_seed() % 2**32
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it wakes every GPU
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@dataclass
class TrainBatches:
    """Training batches by step, as a map-style dataset of torch.

    Args:
        data: the dataset.
        recipe: its augmentation and mixing.
        size: (height, width) of the images in pixels.
        seed: of the run.
        batch: images of the global batch.
        first, count: the images of this process, by their place in the global batch.
        steps: number of batches.
    """

    data: Data
    recipe: Recipe
    size: Size
    seed: int
    batch: int
    first: int
    count: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """(images (count, c, h, w) normalised, targets (count,) or, mixed, (count, classes))."""
        repeats = self.recipe.repeats
        order = batches.indices(len(self.data.train), self.seed, step, self.batch, repeats)
        places = torch.arange(self.first, self.first + self.count)
        if not (self.recipe.mixup or self.recipe.cutmix):
            return self._images(order, places, step), self.data.train.labels[order[places]]
        partners = self.batch - 1 - places  # as timm mixes an image with one of the flipped batch
        both = torch.cat([places, partners.flip(0)])
        images, labels = self._images(order, both, step), self.data.train.labels[order[both]]
        with seeded(self.seed, "mix", step):
            images, targets = self._mixer()(images, labels)
        return images[: self.count], targets[: self.count]

    def _mixer(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        from timm.data import Mixup

        return Mixup(
            mixup_alpha=self.recipe.mixup, cutmix_alpha=self.recipe.cutmix, mode="batch",
            switch_prob=self.recipe.mixup_switch, label_smoothing=self.recipe.smoothing,
            num_classes=self.data.classes,
        )  # fmt: skip

    def _images(self, order: Tensor, places: Tensor, step: int) -> Tensor:
        train = self.data.train
        if isinstance(train, ArrayImages) and not needs_pictures(self.recipe):
            pixels = train.pixels(order[places])
            return self._fast(normalised(resized(pixels, self.size), self.data), places, step)
        transform = picture_transform(self.recipe, self.data, self.size)
        images = []
        for place in places.tolist():
            picture = train.picture(int(order[place]))
            with seeded(self.seed, "augment", step, place):
                images.append(transform(picture))
        return channels(torch.stack(images), self.data.channels)

    def _fast(self, images: Tensor, places: Tensor, step: int) -> Tensor:
        """Windows and mirror images of a batch (b, c, h, w) without a loop over pictures."""
        if not self.recipe.hflip and self.recipe.crop == "none":
            return images
        draws = torch.rand(3, self.batch, generator=stream(self.seed, "augment", step))[:, places]
        if self.recipe.crop == "pad":
            h, w = self.size
            before = max(1, h // 8), max(1, w // 8)
            padded = F.pad(images, (before[1], before[1], before[0], before[0]))
            top = (draws[0] * (2 * before[0] + 1)).long()
            left = (draws[1] * (2 * before[1] + 1)).long()
            rows = top[:, None] + torch.arange(h)  # (b, h)
            columns = left[:, None] + torch.arange(w)  # (b, w)
            which = torch.arange(len(images))[:, None, None]
            images = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]]
            images = images.permute(0, 3, 1, 2)
        mirrored = (draws[2] < self.recipe.hflip).view(-1, 1, 1, 1)
        return torch.where(mirrored, images.flip(-1), images)


def needs_pictures(recipe: Recipe) -> bool:
    """Whether the recipe's augmentation is made picture by picture."""
    return bool(
        recipe.auto_augment or recipe.color_jitter or recipe.reprob or recipe.crop == "resized"
    )


def picture_transform(recipe: Recipe, data: Data, size: Size) -> Callable[[Any], Tensor]:
    """timm's training transform of one PIL picture."""
    from timm.data import create_transform
    from torchvision import transforms

    whole = recipe.crop != "resized"
    transform = create_transform(
        size, is_training=True, scale=(1.0, 1.0) if whole else (recipe.scale, 1.0),
        ratio=(1.0, 1.0) if whole else (3 / 4, 4 / 3), hflip=recipe.hflip,
        color_jitter=recipe.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=recipe.auto_augment or None,
        interpolation=recipe.interpolation, mean=data.mean, std=data.std, re_prob=recipe.reprob,
        re_mode="pixel",
    )  # fmt: skip
    before = [transforms.Lambda(lambda picture: picture.convert("RGB"))]
    if recipe.crop == "pad":
        pads = max(1, size[1] // 8), max(1, size[0] // 8)
        before += [transforms.Resize(size), transforms.Pad(pads), transforms.RandomCrop(size)]
    return transforms.Compose([*before, transform])


def evaluated(images: Images, indices: Tensor, recipe: Recipe, data: Data, size: Size) -> Tensor:
    """Test images (b, c, h, w), normalised: the middle of the resized picture."""
    if isinstance(images, ArrayImages):
        return normalised(resized(images.pixels(indices), size), data)
    from timm.data import create_transform

    transform = create_transform(
        size, is_training=False, crop_pct=recipe.crop_pct, interpolation=recipe.interpolation,
        mean=data.mean, std=data.std,
    )  # fmt: skip
    pictures = [images.picture(int(index)).convert("RGB") for index in indices]
    return channels(torch.stack([transform(picture) for picture in pictures]), data.channels)


def channels(images: Tensor, count: int) -> Tensor:
    """Images of three channels (b, 3, h, w) with the channels of the data: one of gray ones."""
    return images if images.shape[1] == count else images[:, :count]


def normalised(pixels: Tensor, data: Data) -> Tensor:
    """Images (b, c, h, w) of bytes with the data's mean taken off, in units of its deviation."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return (pixels.float() / 255 - mean) / std


def resized(pixels: Tensor, size: Size) -> Tensor:
    """Images (b, c, h, w) at another size, unless they have it."""
    if tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    return F.interpolate(
        pixels.float(), size, mode="bilinear", align_corners=False, antialias=True
    ).clamp(0, 255)
