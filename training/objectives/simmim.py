"""Masked image modelling as SimMIM does it, for a backbone of any mixer.

Source: SimMIM (Xie et al. 2022, arXiv 2111.09886), section 3: patches are hidden by a learned
vector after the patch embedding, and one linear layer predicts the pixels of every position of
the last map; the loss is the mean absolute error of the hidden pixels.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import HierarchicalBackbone
from training.data.batches import stream
from training.data.splits import Data
from training.objectives import probe
from training.objectives.objective import Read
from training.settings.recipe import Recipe
from transom.errors import SpecError

Size = tuple[int, int]
TOKEN_STD = 0.02  # of the vector of hidden patches, as in the authors' code


class MaskedImages(nn.Module):
    """A backbone that sees images with hidden patches, and a decoder of one layer.

    Args:
        encoder: a backbone of ours.
        cell: side of the squares that are hidden or seen as a whole in pixels, a multiple of the
            encoder's patch size.
        seed: of the hidden patches' vector and the decoder's weights.

    Example:
        >>> import backbones, torch
        >>> from training.objectives.simmim import MaskedImages
        >>> encoder = backbones.create("swin_t/stages=2", num_classes=0)
        >>> model = MaskedImages(encoder, cell=16, seed=0)
        >>> model(torch.zeros(1, 3, 30, 33), torch.zeros(1, 2, 3, dtype=torch.bool)).shape
        torch.Size([1, 3, 30, 33])
    """

    def __init__(self, encoder: HierarchicalBackbone, cell: int, seed: int) -> None:
        super().__init__()
        spec = encoder.spec
        self.encoder = encoder
        self.scale = cell // spec.stem_stride  # tokens of the stem's map a side of a cell
        self.in_chans = spec.in_channels
        self.stride = spec.patch_size * 2 ** (len(spec.stages) - 1)
        self.mask_token = nn.Parameter(torch.empty(spec.stem_width))
        nn.init.trunc_normal_(self.mask_token, std=TOKEN_STD, generator=stream(seed, "mask token"))
        self.decoder = nn.Conv2d(spec.stages[-1].dim, self.stride**2 * self.in_chans, 1)
        bound = spec.stages[-1].dim ** -0.5  # as torch draws a convolution
        for name, parameter in self.decoder.named_parameters():
            with torch.no_grad():
                parameter.uniform_(-bound, bound, generator=stream(seed, "decoder", name))
        self._hidden: Tensor | None = None
        # between the embedding with its norm and the absolute positions, as in the authors' code
        encoder.stem.norm.register_forward_hook(self._hide)

    def _hide(self, module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        """Tokens (b, h, w, c) with the learned vector in the place of the hidden ones."""
        if self._hidden is None:
            return tokens
        hidden = expanded(self._hidden, self.scale, (tokens.shape[1], tokens.shape[2]))
        return torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Predicted pixels of all positions.

        Args:
            images: (b, c, H, W), any height and width.
            hidden: (b, ceil(H / cell), ceil(W / cell)) of bool, true where a cell is hidden;
                None: none is.

        Returns:
            (b, c, H, W) in the units of the images.
        """
        self._hidden = hidden
        try:
            x = self.encoder.forward_features(images)  # (b, dim, h, w)
        finally:
            self._hidden = None
        pixels = F.pixel_shuffle(self.decoder(x), self.stride)
        return pixels[:, :, : images.shape[2], : images.shape[3]]

    def no_weight_decay(self) -> set[str]:
        """The encoder's, and the vector of hidden patches."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()} | {"mask_token"}


def expanded(cells: Tensor, scale: int, size: Size) -> Tensor:
    """A grid of cells (b, rows, columns) as a map (b, *size) of `scale` positions a cell's side."""
    found = cells.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return found[:, : size[0], : size[1]]


def draw_hidden(seed: int, step: int, batch: int, grid: Size, ratio: float) -> Tensor:
    """Which cells of the images of a global batch are hidden: a pure function of its arguments.

    Args:
        seed: of the run.
        step: number of the step, from 0.
        batch: images of the global batch.
        grid: cells of an image, (rows, columns).
        ratio: part of the cells that is hidden, rounded up to whole cells in every image.

    Returns:
        (batch, rows, columns) of bool, true where hidden.

    Example:
        >>> from training.objectives.simmim import draw_hidden
        >>> hidden = draw_hidden(0, 0, batch=2, grid=(4, 4), ratio=0.6)
        >>> hidden.shape, hidden.sum((1, 2)).tolist()
        (torch.Size([2, 4, 4]), [10, 10])
    """
    count = math.prod(grid)
    draws = torch.rand(batch, count, generator=stream(seed, "mask", step))
    hidden = torch.zeros(batch, count, dtype=torch.bool)
    hidden.scatter_(1, draws.argsort(dim=1, stable=True)[:, : math.ceil(ratio * count)], True)
    return hidden.view(batch, *grid)


class MaskedModelling:
    """Pixels of hidden patches; judged by a linear probe of the backbone's pooled features.

    Args:
        recipe: of the run.
        data: of the run; labels are read by the probe alone.
        batch: images of the global batch.
        seed: of the run.
    """

    classes = 0
    probed = True

    def __init__(self, recipe: Recipe, data: Data, *, batch: int, seed: int) -> None:
        self.recipe, self.data, self.batch, self.seed = recipe, data, batch, seed

    def check(self, backbone: nn.Module, name: str) -> None:
        """Raises SpecError unless the backbone is ours, pools its map, and has patches that divide
        the cells."""
        if not isinstance(backbone, HierarchicalBackbone):
            raise SpecError(f"{name}: simmim hides patches behind the stem of a backbone of ours")
        spec, cell, ratio = backbone.spec, self.recipe.mask_patch, self.recipe.mask_ratio
        if cell % spec.patch_size:
            raise SpecError(
                f"{name}: mask_patch={cell}: expected a multiple of its patch size, "
                f"{spec.patch_size}"
            )
        if spec.pool != "mean":
            raise SpecError(f"{name}: simmim predicts pixels from the map; add /pool=mean")
        cells = math.prod(self._grid(spec.img_size))
        if not 0 < math.ceil(ratio * cells) < cells:
            side = "x".join(map(str, spec.img_size))
            raise SpecError(
                f"mask_patch={cell},mask_ratio={ratio:g}: an image of {side} has {cells} cells; "
                "some must be hidden and some seen"
            )

    def wrap(self, backbone: nn.Module) -> nn.Module:
        """The backbone with its decoder."""
        assert isinstance(backbone, HierarchicalBackbone)
        return MaskedImages(backbone, self.recipe.mask_patch, self.seed)

    def _grid(self, size: Size) -> Size:
        rows, columns = (math.ceil(side / self.recipe.mask_patch) for side in size)
        return rows, columns

    def backbone_of(self, model: nn.Module) -> nn.Module:
        return cast("MaskedImages", model).encoder

    def loss(
        self, trained: nn.Module, images: Tensor, targets: Tensor, step: int, first: int
    ) -> Tensor:
        size = (images.shape[2], images.shape[3])
        hidden = draw_hidden(
            self.seed, step, self.batch, self._grid(size), self.recipe.mask_ratio
        )[first : first + len(images)].to(images.device)  # fmt: skip
        predicted = trained(images, hidden).float()
        pixels = expanded(hidden, self.recipe.mask_patch, size)[:, None].to(predicted.dtype)
        errors = ((predicted - images).abs() * pixels).sum((1, 2, 3))  # (b,)
        return (errors / (pixels.sum((1, 2, 3)) * images.shape[1])).sum()

    def correct(self, read: Read) -> Tensor:
        train, test = self.data.train, self.data.test
        n = len(train)
        count = min(n, self.recipe.probe_images or n)
        chosen = torch.randperm(n, generator=stream(0, "probe"))[:count].sort().values
        everyone = torch.arange(len(test))
        features = [read(images, which, lambda pooled, _: pooled)
                    for images, which in ((train, chosen), (test, everyone))]  # fmt: skip
        answers = probe.answers(features[0], train.labels[chosen], features[1], self.data.classes)
        return answers == test.labels
