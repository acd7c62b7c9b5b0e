"""Studies of models, random or trained: gradients, biases and attention.

Each returns arrays, a figure and a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import backbones
from analysis.models import lookup, maps
from analysis.pictures import draw_heatmaps
from analysis.pictures.draw_maps import Panel
from analysis.pictures.studies import Grid, Study, shape
from transom.errors import SpecError
from transom.progress import Bar

SHARES = (0.2, 0.3, 0.5, 0.99)


def load(
    name: str, img_size: Grid | None, weights: Path | None = None, source: str = "transom",
    seed: int = 0,
) -> Any:  # fmt: skip
    """One of our backbones in eval mode, with weights from a file or random.  Raises SpecError."""
    spec = backbones.parse(name)
    torch.manual_seed(seed)
    model = backbones.create(spec, img_size=img_size or spec.img_size).eval()
    if weights is not None:
        from backbones.weights import load as load_weights

        try:
            load_weights(model, weights, source)
        except ValueError as error:
            raise SpecError(f"--weights {weights}: {error}") from None
    return model


def _origin(weights: Path | None) -> str:
    return weights.name if weights is not None else "random weights"


def erf(
    names: Sequence[str], img_size: Grid | None = None, *, stage: int | None = None,
    seeds: int = 3, weights: Path | None = None, source: str = "transom",
) -> Study:  # fmt: skip
    """Effective receptive fields: (H, W) per backbone, mean over `seeds` models and images."""
    if weights is not None and len(names) > 1:
        raise SpecError("--weights: for one --backbone")
    factories = [lookup.find(name) for name in names]
    panels, changed = [], set()
    for factory in factories:
        size = img_size or factory.img_size
        total = torch.zeros(size, dtype=torch.float64)
        shown = Bar(range(seeds), unit="gradient")
        shown.say(factory.name)
        for seed in shown:
            gradient, zero_norms = _field(factory, size, stage, seed, weights, source)
            total += gradient / gradient.sum().clamp(min=1e-300) / seeds
            if zero_norms:
                changed.add(factory.name)
        ratios = area_ratios(total, SHARES)
        seen = float((total > 0).double().mean())
        text = f"{_percent(seen)} of the pixels are seen\n" + "\n".join(
            f"{share:.0%} of the gradient in {_percent(ratio)}"
            for share, ratio in zip(SHARES, ratios, strict=True) if share in (0.5, 0.99)
        )  # fmt: skip
        panels.append(Panel(factory.name, total, text))
    where = f"stage {stage}" if stage else "the last stage"
    drawn = f"mean of {seeds} gradients" if seeds > 1 else "one gradient"
    heading = f"What the centre unit of {where} reads: {drawn}, {_origin(weights)}"
    words = "; ".join(f"{p.title}: " + p.text.replace("\n", ", ") for p in panels)
    if changed:
        words += f"; norms that start at 0 were set to 1 in {', '.join(sorted(changed))}"
    figure = draw_heatmaps.draw_erf(panels, heading)
    return Study({p.title: p.values for p in panels}, figure, words)


def area_ratios(field: Tensor, shares: Sequence[float] = SHARES) -> list[float]:
    """For each share of the field, the smallest part of all pixels that holds it."""
    ordered = field.flatten().double().sort(descending=True).values.cumsum(0)
    return [
        (int((ordered < share * ordered[-1]).sum()) + 1) / ordered.numel() for share in shares
    ]


def _percent(part: float) -> str:
    return f"{100 * part:.3g}%"


def _field(
    factory: lookup.ModelFactory, size: Grid, stage: int | None, seed: int, weights: Path | None,
    source: str,
) -> tuple[Tensor, int]:  # fmt: skip
    """(H, W) float64 gradient of one random model, and how many of its norms were set to 1."""
    if factory.foreign and weights is not None:
        raise SpecError(f"--weights: {factory.name} is not one of ours")
    try:
        torch.manual_seed(seed)
        model: Any = factory.make(size) if factory.foreign else load(
            factory.name, size, weights, source, seed
        )  # fmt: skip
        model.eval().requires_grad_(False)
        zero_norms = 0 if weights is not None else maps.wake_norms(model)
        torch.manual_seed(seed)
        x = torch.randn(1, 3, *size)

        def features(x: Tensor) -> list[Tensor]:
            if factory.foreign:
                return maps.maps_of(model, x)
            return [level.permute(0, 2, 3, 1) for level in model.features(x)]

        return maps.field(features, x, stage, factory.name).double(), zero_norms
    except SpecError:
        raise
    except Exception as error:  # whatever a foreign model raises is the reason
        raise SpecError(f"{factory.name} at {shape(size)}: {error}") from None


def bias(
    name: str, img_size: Grid | None = None, *, stage: int = 1, block: int = 1,
    weights: Path | None = None, source: str = "transom",
) -> Study:  # fmt: skip
    """Bias tables (heads, 2 gh - 1, 2 gw - 1) of a block, its branches concatenated."""
    model = load(name, img_size, weights, source)
    calls = maps.calls_of(model, torch.zeros(1, 3, *model.spec.img_size), stage, block)
    tables = [maps.bias_of(call) for call in calls]
    if len({t.shape[1:] for t in tables}) > 1:
        tables = tables[:1]  # branches of unlike groups cannot share an axis
    table, config = torch.cat(tables), calls[0].branch.config
    words = (
        f"{name}, stage {stage}, block {block}: position={config.position}, {len(table)} heads, "
        f"groups of {shape(calls[0].groups.extent)}, from {table.min():.3g} to {table.max():.3g} "
        f"({_origin(weights)})"
    )
    return Study({"bias": table}, draw_heatmaps.draw_bias(table, words), words)


# -- a photo ---------------------------------------------------------------------------------


def photo(path: Path | None, size: Grid) -> np.ndarray:
    """(H, W, 3) from 0 to 1, cropped to the shape of `size` around its centre, then scaled."""
    try:
        if path is None:
            from skimage import data

            pixels = data.astronaut()
        else:
            from matplotlib.image import imread

            pixels = imread(path)
    except ImportError:
        raise SpecError(
            "the photo needs scikit-image: pip install transom[report], or --image FILE"
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise SpecError(f"--image {path}: cannot be read: {error}") from None
    pixels = np.asarray(pixels)
    scale = 255 if pixels.dtype == np.uint8 else 1
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    image = torch.tensor(pixels[..., :3] / scale, dtype=torch.float32).permute(2, 0, 1)
    h, w = image.shape[1:]
    part = min(h / size[0], w / size[1])
    tall, wide = max(int(part * size[0]), 1), max(int(part * size[1]), 1)
    top, left = (h - tall) // 2, (w - wide) // 2
    image = image[None, :, top : top + tall, left : left + wide]
    image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    return image[0].permute(1, 2, 0).clamp(0, 1).numpy()


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def attention(
    name: str, img_size: Grid | None = None, *, stage: int = 1, block: int = 1,
    query: Grid | None = None, image: Path | None = None, weights: Path | None = None,
    source: str = "transom",
) -> Study:  # fmt: skip
    """Attention on a photo: (h, w) per head, the weight of every token of the stage's map for
    `query`."""
    model = load(name, img_size, weights, source)
    pixels = photo(image, model.spec.img_size)
    x = torch.tensor((pixels - np.array(MEAN)) / np.array(STD), dtype=torch.float32)
    calls = maps.calls_of(model, x.permute(2, 0, 1)[None], stage, block)
    grid = model.spec.grids(model.spec.img_size)[stage - 1]
    query = query or (grid[0] // 2, grid[1] // 2)
    panels: list[Panel] = []
    others = {"pads": 0.0, "tokens beside the map": 0.0}
    for call in calls:
        weights_of_query, *to_others = maps.attention_of(call, query)
        for place, parts in zip(others, to_others, strict=True):
            others[place] = max(others[place], float(parts.max()))
        for head, *shares in zip(weights_of_query, *to_others, strict=True):
            text = f"strongest token {head.max():.2g}" + "".join(
                f", {place} {part:.2g}"
                for place, part in zip(("pads", "beside"), shares, strict=True) if part > 0
            )  # fmt: skip
            title = f"head {len(panels) + 1}, groups {shape(call.groups.extent)}"
            panels.append(Panel(title, head, text, query))
    words = f"{name}, stage {stage}, block {block}, query {query[0]},{query[1]} of {shape(grid)}"
    figure = draw_heatmaps.draw_attention(pixels, panels, f"{words} ({_origin(weights)})")
    more = "".join(f"; up to {part:.0%} goes to {place}" for place, part in others.items() if part)
    summary = f"{words}: {len(panels)} heads{more} ({_origin(weights)})"
    return Study({p.title: p.values for p in panels}, figure, summary)
