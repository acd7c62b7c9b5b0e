"""What no training can give an architecture, measured on random weights.

Every output is a composition of analytic and piecewise analytic functions of the weights.  A
relation between outputs that holds for weights drawn at random from a density holds for almost all
weights: it is an algebraic identity of the architecture, for images of this size, and every trained
model keeps it.  Three relations are measured in float64, on redrawn parameters:

    additive    f(A, B) - f(A) - f(B) + f() = 0, for patches A and B in different halves
    exchange    f(image with two columns, rows or patches exchanged) = f(image)
    halves      f(image with its left and right, or upper and lower half exchanged) = f(image)

Outputs are logits, or maps averaged over their tokens.  A relation that fails forbids nothing; it
does not say that a training arrives.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analysis.checking.checks import MODULE_ERRORS, error_text
from analysis.checking.placements import Images, drawn, nearest, outputs
from analysis.models.influence import randomise
from backbones.model.backbone import HierarchicalBackbone
from transom.errors import SpecError
from transom.fields import read_size
from transom.progress import Bar

# Float64 rounds to 1.1e-16 of the largest term; sums of thousands of terms and dozens of layers
# leave 1e-16 to 5e-14 of the response, measured where a proof exists.  Where a relation fails,
# weights of order 1 leave 1e-3 to 5.  Between the limits lie models that compute in float32
# somewhere: they leave 1e-7 to 1e-5, and certify nothing.
CANNOT, CAN = 1e-12, 1e-4
FOREIGN_PATCH = 32  # pixels; the stride of the last map of most networks
BLIND = 1e-9  # a response below this share of the output is rounding
FLOOR = 1e-6  # of the response to a whole new image, the least that a value is relative to

PAIRS = {"left_right": (0, 1), "top_bottom": (1, 0), "diagonal": (1, 1)}  # halves that differ
MEANINGS = {
    "compare_left_right": "compare a place on the left with one on the right",
    "compare_top_bottom": "compare a place above with one below",
    "compare_diagonal": "compare places of opposite quadrants",
    "columns": "notice that columns of different halves are exchanged",
    "rows": "notice that rows of different halves are exchanged",
    "patches": "notice that patches of opposite quadrants are exchanged",
    "adjacent_columns": "notice that two adjacent columns are exchanged",
    "adjacent_rows": "notice that two adjacent rows are exchanged",
    "adjacent_patches": "notice that two adjacent patches are exchanged",
    "left_right": "tell its left half from its right",
    "top_bottom": "tell its upper half from its lower",
}  # what a model with the relation cannot do


@dataclass(frozen=True)
class Certificates:
    """The relations of one model at one size of image.

    Args:
        name: of the model.
        img_size: (height, width) in pixels.
        patch: side of the patches in pixels; columns and rows are as wide.
        seeds: numbers of draws of weights, images and places.
        values: the largest violation of each relation of `MEANINGS`, relative to the response.

    Example:
        >>> from analysis.checking.certificates import Certificates
        >>> found = Certificates("net", (32, 32), 8, 3, {"columns": 2e-15, "rows": 0.03})
        >>> found.verdict("columns"), found.verdict("rows"), found.named("cannot")
        ('cannot', 'can', ['columns'])
    """

    name: str
    img_size: tuple[int, int]
    patch: int
    seeds: int
    values: dict[str, float]

    def verdict(self, relation: str) -> str:
        """cannot, where the relation is an identity; can, where it is none; else unclear."""
        value = self.values[relation]
        return "cannot" if value < CANNOT else "can" if value > CAN else "unclear"

    def named(self, verdict: str) -> list[str]:
        return [relation for relation in self.values if self.verdict(relation) == verdict]

    def largest(self, relations: list[str]) -> float:
        return max(self.values[relation] for relation in relations)

    def sentences(self) -> list[str]:
        """The findings: what is ruled out first, then what is unclear, then what is not."""
        cannot, found = self.named("cannot"), []
        additive = [name for name in cannot if name.startswith("compare_")]
        if additive:
            places = " or ".join(name.removeprefix("compare_") for name in additive)
            found.append(
                f"cannot compare two places ({places.replace('_', '|')}): the output is a sum over "
                f"the parts of the image, to {self.largest(additive):.0e}; no training lets it see "
                "whether two glyphs there are equal"
            )
        kinds: list[str] = [name for name in ("columns", "rows", "patches") if name in cannot]
        near: list[str] = [
            name for name in ("adjacent_columns", "adjacent_rows", "adjacent_patches")
            if name in cannot and name.removeprefix("adjacent_") not in kinds
        ]  # fmt: skip
        for names, where in ((kinds, "in any places"), (near, "inside a window, the first two")):
            if names:
                words = ", ".join(name.removeprefix("adjacent_") for name in names)
                found.append(
                    f"cannot notice that two {words} are exchanged ({where}): equal to "
                    f"{self.largest(names):.0e}"
                )
        if "left_right" in cannot:
            found.append(
                f"cannot tell left from right: halves exchanged, equal to "
                f"{self.values['left_right']:.0e}; the task order stays at chance"
            )
        if "top_bottom" in cannot:
            value = f"{self.values['top_bottom']:.0e}"
            found.append(f"cannot tell top from bottom: halves exchanged, equal to {value}")
        for verdict in ("unclear", "can"):
            if names := self.named(verdict):
                listed = ", ".join(f"{name} {self.values[name]:.1g}" for name in names)
                found.append(f"{verdict}: {listed}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data: a dict per relation with its value, verdict and meaning."""
        return {
            "backbone": self.name, "img_size": list(self.img_size), "patch": self.patch,
            "seeds": self.seeds,
            "relations": [
                {"relation": name, "value": value, "verdict": self.verdict(name),
                 "meaning": MEANINGS[name]}
                for name, value in self.values.items()
            ],
            "findings": self.sentences(),
        }  # fmt: skip


def certify(
    model: nn.Module, img_size: int | str | tuple[int, int], *, seeds: int = 3,
    patch: int | None = None, name: str = "",
) -> Certificates:  # fmt: skip
    """Measures what no training can give a model: additivity, and what it cannot tell apart.

    Relative to the response, each value is the largest of all seeds and places; a value below
    `CANNOT` on random weights is an identity of the architecture for images of this size.  Each
    seed draws parameters, batch norm statistics, an image and places anew, in a copy of the model,
    in evaluation mode and float64.  Patches stand on a grid of their own side, and any rest of the
    image stays as it is.

    Args:
        model: maps images (b, in_chans, height, width) to logits (b, classes), to tokens (b, n, c)
            or to maps (b, c, h, w) or (b, h, w, c), which are averaged; or to several of them, of
            which the largest violation counts.  in_chans is 3 where the model does not state it.
        img_size: pixels: 224, "512x1024" or (height, width).
        seeds: draws of weights, images and places.
        patch: side of a patch in pixels; default: of a token of the last stage, which merging
            does not part, or 32 where a model of others does not state it.
        name: what errors call the model; default: the name of its spec or class.

    Returns:
        The largest violation of each relation.

    Raises:
        SpecError: the image has fewer than two patches along a side, the forward fails, or the
            output has another shape, does not depend on the image, or depends on more than it.

    Example:
        >>> import backbones
        >>> from analysis.checking.certificates import certify
        >>> small = "/".join(f"{i}.dim={8 * i}/{i}.heads=2/{i}.depth=2" for i in (1, 2))
        >>> mixers = "1=window:size=4,shift=false/2=window:size=2,shift=false"
        >>> model = backbones.create(f"swin_t/stages=2/{small}/num_classes=2/{mixers}")
        >>> found = certify(model, 32, seeds=1)
        >>> found.verdict("compare_left_right"), found.verdict("columns")
        ('cannot', 'can')
    """
    spec = model.spec if isinstance(model, HierarchicalBackbone) else None
    name = name or (spec.name if spec else type(model).__name__)
    try:
        h, w = read_size(img_size)
    except ValueError as error:
        raise SpecError(f"img_size={img_size!r}: expected {error}") from None
    if seeds < 1 or (patch is not None and patch < 1):
        raise SpecError(f"seeds={seeds}, patch={patch}: expected whole numbers from 1")
    patch = patch or _patch(model)
    if min(h, w) < 2 * patch:
        raise SpecError(
            f"{name}: an image of {h}x{w} has no two patches of {patch} pixels along each side; "
            f"the least is {2 * patch}x{2 * patch}, or a smaller --patch"
        )
    stated = spec.in_channels if spec else getattr(model, "in_chans", 3)
    shape = (stated if isinstance(stated, int) else 3, h, w)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            double = copy.deepcopy(model).to("cpu", torch.float64)
            shown = Bar(range(seeds), unit="seed")
            shown.say(name)
            draws = [_values(_redrawn(double, seed), shape, patch, seed) for seed in shown]
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None
    except MODULE_ERRORS as error:
        text = f"fails on images of {h}x{w} in float64: {error_text(error)}"
        raise SpecError(f"{name}: {text}") from None
    largest = {relation: max(draw[relation] for draw in draws) for relation in MEANINGS}
    return Certificates(name, (h, w), patch, seeds, largest)


def _patch(model: nn.Module) -> int:
    """Pixels of a token of the last stage: of our specs, or of timm's feature_info."""
    if isinstance(model, HierarchicalBackbone):
        return model.spec.patch_size * 2 ** (len(model.spec.stages) - 1)
    info = getattr(model, "feature_info", None)
    try:
        return int(info[-1]["reduction"])  # type: ignore[index]
    except (TypeError, KeyError, IndexError, ValueError):
        return FOREIGN_PATCH


def _redrawn(model: nn.Module, seed: int) -> nn.Module:
    """The model with parameters of order 1, none of which is 0.

    `randomise` takes a table of positions (1, tokens, c) for a layer with as many inputs, and would
    leave it too small to be seen in an average over tokens.
    """
    randomise(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name and parameter.ndim > 2 and len(parameter) == 1:
                parameter.mul_(0.5 * parameter.numel() ** 0.5)
    return model


def _values(
    model: nn.Module, shape: tuple[int, int, int], patch: int, seed: int
) -> dict[str, float]:
    """The violation of every relation by a model with its weights, at the places of a seed."""
    images, rng = Images(shape, patch, seed), random.Random(seed)
    rows, columns = shape[1] // patch, shape[2] // patch
    additive: dict[str, list[tuple[int, int, int]]] = {pair: [] for pair in PAIRS}
    for r, c in ((nearest(rows), nearest(columns)), (drawn(rows, rng), drawn(columns, rng))):
        up, left = rng.randrange(2), rng.randrange(2)  # the quadrant of A
        a, b = (2 * images.noise((shape[0], patch, patch)) for _ in range(2))
        at = (r[up], c[left])
        one = images.with_patches((at, a))
        for pair, (i, j) in PAIRS.items():
            to = (r[up ^ i], c[left ^ j])
            other, both = images.with_patches((to, b)), images.with_patches((at, a), (to, b))
            additive[pair].append((both, one, other))
    r, c, cut = drawn(rows, rng), drawn(columns, rng), images.cut
    exchanged = {
        "columns": images.exchanged(cut(None, c[0]), cut(None, c[1])),
        "rows": images.exchanged(cut(r[0], None), cut(r[1], None)),
        "patches": images.exchanged(cut(r[0], c[0]), cut(r[1], c[1])),
        "adjacent_columns": images.exchanged(cut(None, 0), cut(None, 1)),
        "adjacent_rows": images.exchanged(cut(0, None), cut(1, None)),
        "adjacent_patches": images.exchanged(cut(0, 0), cut(0, 1)),
        "left_right": images.rolled(2),
        "top_bottom": images.rolled(1),
    }
    values = dict.fromkeys(MEANINGS, 0.0)
    found = outputs(model, images.found)
    alone = outputs(model, images.found[:1])
    for y, again in zip(found, alone, strict=True):
        base, whole = y[images.blank], _response(y, images)
        if not whole:
            continue
        if float((again[0] - base).abs().amax()) > CAN * whole:
            raise SpecError("its output for an image depends on chance, or on the batch")
        for pair, cases in additive.items():
            for both, one, two in cases:
                error = float((y[both] - y[one] - y[two] + base).abs().amax())
                response = float((y[[one, two]] - base).abs().amax())
                value = error / max(response, FLOOR * whole)
                values[f"compare_{pair}"] = max(values[f"compare_{pair}"], value)
        for relation, image in exchanged.items():
            value = float((y[image] - base).abs().amax()) / whole
            values[relation] = max(values[relation], value)
    if not any(_response(y, images) for y in found):
        raise SpecError("its output does not depend on the image")
    return values


def _response(y: Tensor, images: Images) -> float:
    """The largest change of an output with the whole image; 0 where it is rounding."""
    scale = float(y.abs().amax())
    if not math.isfinite(scale):
        raise SpecError("its output is NaN or Inf with random weights")
    change = float((y[images.other] - y[images.blank]).abs().amax())
    return change if change > BLIND * scale else 0.0
