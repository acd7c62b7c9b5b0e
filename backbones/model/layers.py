"""The parts of a backbone that are not mixers: stem, downsampling, MLP, block, stage.

Stems, downsamplers and stages map NCHW to NCHW in channels-last memory; blocks work on its
(b, h, w, c) view, which costs no copy.  A strided layer pads bottom and right, so that every
size rounds up.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attention
from attention.execution import backends, chunks
from attention.execution.backends import Reference
from attention.execution.dispatch import Executable
from attention.geometry import inputs
from attention.geometry.symbolic import known, round_up
from attention.mixer import TokenMixer
from attention.softmax.branch import projection as linear
from backbones.specs.spec import BackboneSpec, StageSpec


class Macs(NamedTuple):
    """Multiply-adds of one part, for one image.

    module: name of the module in the backbone.  column: projection, mixing, position, mlp,
    resample (stem or downsampling) or head.  macs: multiply-adds.  padding: those of the module
    whose token, query or key is a pad; the mixing row has them for the entire mixer.
    """

    module: str
    column: str
    macs: int
    padding: int = 0


def nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)  # (b, h, w, c)


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)  # (b, c, h, w)


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """Map (b, c, h, w) with zeros at the bottom and right, up to multiples of both sides."""
    h, w = x.shape[2:]
    after_h, after_w = round_up(h, multiple) - h, round_up(w, multiple) - w
    return x if known(after_h + after_w == 0) else F.pad(x, (0, after_w, 0, after_h))


class Resample(nn.Module):
    """A strided convolution, with or without a layer norm: stems and CSWin's merging."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, padding: int, norm: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.LayerNorm(outputs) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(pad_to(x, self.stride))  # (b, c, ceil(h / stride), ceil(w / stride))
        x = self.norm(nhwc(x).contiguous())  # (b, h, w, c)
        return nchw(x)  # (b, c, h, w)

    def cost(self, h: int, w: int) -> int:
        """Multiply-adds for an output of h x w tokens."""
        return h * w * self.conv.weight.numel()


class Merge(nn.Module):
    """2x2 neighbours concatenated, column by column, and projected (Swin, section 3.1).

    The norm comes before the projection, or with `post` after it (Swin V2's code).
    """

    def __init__(self, inputs: int, outputs: int, *, post: bool) -> None:
        super().__init__()
        self.post = post
        self.reduction = linear(4 * inputs, outputs, bias=False)
        self.norm = nn.LayerNorm(outputs if post else 4 * inputs)

    def forward(self, x: Tensor) -> Tensor:
        x = nhwc(pad_to(x, 2))  # (b, h, w, c); channels last, so that the gradient is, too
        x = rearrange(x, "b (h y) (w x) c -> b h w (x y c)", y=2, x=2)  # (b, h/2, w/2, 4 c)
        if self.post:
            return nchw(self.norm(self.reduction(x)))  # (b, outputs, h/2, w/2)
        return nchw(self.reduction(self.norm(x)))  # (b, outputs, h/2, w/2)

    def cost(self, h: int, w: int) -> int:
        """Multiply-adds for an output of h x w tokens."""
        return h * w * self.reduction.weight.numel()


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


def make_downsample(spec: BackboneSpec, inputs: int, outputs: int) -> Resample | Merge:
    if spec.downsample in ("merge", "merge_post"):
        return Merge(inputs, outputs, post=spec.downsample == "merge_post")
    norm = spec.downsample == "conv_norm"
    return Resample(inputs, outputs, kernel=3, stride=2, padding=1, norm=norm)


class MLP(nn.Module):
    """Two linear layers with GELU between them, (..., dim) to (..., dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(dim, hidden), linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return backends.current().over_rows(self._body, x, self.fc1.out_features)  # (..., dim)

    def _body(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))  # (..., hidden)
        return self.fc2(x)  # (..., dim)

    def cost(self, h: int, w: int) -> int:
        return h * w * (self.fc1.weight.numel() + self.fc2.weight.numel())


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops an image's residual at this rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate  # (b, 1, 1, 1)
        return x * keep.to(x.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate:g}"


class Block(nn.Module):
    """A mixer and an MLP on residuals, (b, h, w, c) to (b, h, w, c).

    norm=pre: x + f(norm(x)).  norm=res_post: x + norm(f(x)), where norms start at 0 (Swin V2,
    section 3.1 and the authors' initialisation).  cpe: x + depthwise 3x3 of x comes first.
    """

    def __init__(
        self, mixer: TokenMixer, *, dim: int, hidden: int, norm: str, cpe: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.post = norm == "res_post"
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if cpe else None
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer: TokenMixer = mixer
        self.mlp = MLP(dim, hidden)
        self.drop_path = DropPath(drop_path)
        if self.post:
            nn.init.zeros_(self.norm1.weight)
            nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.cpe is not None:
            x = x + nhwc(self.cpe(nchw(x)))  # (b, h, w, c)
        for norm, inner in ((self.norm1, self.mixer), (self.norm2, self.mlp)):
            x = x + self.drop_path(norm(inner(x)) if self.post else inner(norm(x)))  # (b, h, w, c)
        return x

    def cost(self, h: int, w: int) -> list[Macs]:
        mixer = self.mixer.cost(h, w)
        parts = [
            Macs("mixer", "projection", mixer.projection),
            Macs("mixer", "mixing", mixer.mixing, mixer.padding),
            Macs("mixer", "position", mixer.position),
            Macs("mlp", "mlp", self.mlp.cost(h, w)),
        ]
        if self.cpe is not None:
            parts.append(Macs("cpe", "position", h * w * self.cpe.weight.numel()))
        return parts


class Stage(Executable):
    """Downsampling (but in the first stage), then blocks: NCHW to NCHW.

    The cpu backend takes a few images at a time through all blocks, so that their map stays in
    the cache.
    """

    def __init__(
        self, stage: StageSpec, spec: BackboneSpec, *, inputs: int | None, drop_path: list[float]
    ) -> None:
        super().__init__()
        self.spec = stage
        self.downsample: Resample | Merge | nn.Identity = (
            nn.Identity() if inputs is None else make_downsample(spec, inputs, stage.dim)
        )
        self.blocks = nn.ModuleList(
            Block(
                attention.build(config, dim=stage.dim, heads=stage.heads, index=index),
                dim=stage.dim, hidden=stage.hidden, norm=spec.norm, cpe=spec.position == "cpe",
                drop_path=rate,
            )
            for (config, index), rate in zip(stage.blocks(), drop_path, strict=True)
        )  # fmt: skip

        self.checkpointing: str | None = None  # what runs again in backward: block or stage

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        x = backend.over_images(self._body, x, self._image_bytes(x))  # (b, h, w, c)
        return nchw(x)  # (b, c, h, w)

    def _body(self, x: Tensor) -> Tensor:
        """Map (b, h, w, c) after all blocks of a map (b, c, h, w) of the stage before.

        With checkpointing, blocks run again in backward.
        """
        x = nhwc(self.downsample(x))  # (b, h, w, c)
        per = self.checkpointing if torch.is_grad_enabled() else None
        if per == "stage":
            return checkpoint(self._run_blocks, x, use_reentrant=False)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if per == "block" else block(x)
        return x

    def _run_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)  # (b, h, w, c)
        return x

    def _image_bytes(self, x: Tensor) -> int:
        """Bytes of the map of one image inside this stage."""
        h, w = x.shape[2:]
        step = 1 if isinstance(self.downsample, nn.Identity) else 2
        return -(-h // step) * -(-w // step) * self.spec.dim * x.element_size()

    def in_parts(self, x: Tensor) -> bool:
        wide = max(3 * self.spec.dim, self.spec.hidden) // self.spec.dim
        size = self._image_bytes(x)
        return len(chunks.image_parts(x.shape[0], size)) > 1 or chunks.exceeds(
            x.shape[0] * size * wide
        )

    def signature(self) -> str:
        spec = self.spec
        mixers = "+".join(map(str, spec.mixers))
        down = type(self.downsample).__name__
        return f"{down} {spec.depth}x({mixers}) dim={spec.dim} heads={spec.heads}"

    def cost(self, h: int, w: int) -> list[Macs]:
        """Multiply-adds of every part for one map of h x w tokens, after downsampling."""
        parts = []
        if not isinstance(self.downsample, nn.Identity):
            parts.append(Macs("downsample", "resample", self.downsample.cost(h, w)))
        for i, block in enumerate(cast("list[Block]", self.blocks)):
            parts += [p._replace(module=f"blocks.{i}.{p.module}") for p in block.cost(h, w)]
        return parts
