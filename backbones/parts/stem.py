"""The stem of a backbone: images to the first map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.geometry import inputs
from attention.geometry.symbolic import known
from backbones.parts.resample import Resample
from backbones.specs.spec import BackboneSpec


class Stem(Resample):
    """The strided convolution of a spec, and its absolute positions if it has them.

    Positions are learned on the grid of the spec's image size, and interpolated (bicubic) on
    any other.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        p, dim = spec.patch_size, spec.stages[0].dim
        kernel = p if spec.stem == "patch" else 2 * p - 1
        padding = {"patch": 0, "overlap": p // 2, "overlap_same": kernel // 2}[spec.stem]
        super().__init__(
            spec.in_channels, dim, kernel=kernel, stride=p, padding=padding, norm=spec.patch_norm
        )
        self.owner = spec.name or "the backbone"
        self.position: nn.Parameter | None = None
        if spec.position == "absolute":
            self.position = nn.Parameter(torch.zeros(1, dim, *spec.grids(spec.img_size)[0]))
            nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) of images (b, in_channels, H, W).  Raises SpecError for other inputs."""
        inputs.check(x, self.owner, inputs.IMAGES, self.conv.in_channels)
        x = super().forward(x)  # (b, c, h, w)
        if self.position is None:
            return x
        position: Tensor = self.position  # (1, c, h, w) of the spec's image size
        h, w = x.shape[2:]
        if not (known(position.shape[2] == h) and known(position.shape[3] == w)):
            position = F.interpolate(position, x.shape[2:], mode="bicubic", align_corners=False)
        return x + position.to(x.dtype)  # (b, c, h, w)
