"""The parts of a backbone that are not mixers: stem, downsampling, MLP, block, stage.

Stems, downsamplers and stages map NCHW to NCHW in channels-last memory; blocks work on the free
(b, h, w, c) view of it.  What strides pads bottom and right, so that every size rounds up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attention
from attention import fast, learning, products
from attention.folding import Keeper
from attention.mixer import TokenMixer
from attention.sizes import known, whole
from backbones.spec import BackboneSpec, StageSpec


class Macs(NamedTuple):
    """Multiply-adds of one part, for one image.

    module: its name in the backbone.  column: projection, mixing, position, mlp, resample (stem
    or downsampling) or head.  padding: the share of the whole module whose token, query or key
    is a pad; of a mixer, it stands in the mixing row.
    """

    module: str
    column: str
    macs: int
    padding: int = 0


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """NCHW, zeros at the bottom and right up to whole multiples."""
    h, w = x.shape[2:]
    after_h, after_w = whole(h, multiple) - h, whole(w, multiple) - w
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
        x = self.conv(pad_to(x, self.stride))
        return nchw(self.norm(nhwc(x).contiguous()))

    def cost(self, h: int, w: int) -> int:
        """h, w: of the result."""
        return h * w * self.conv.weight.numel()


class Merge(Keeper):
    """2x2 neighbours concatenated, column by column, and projected (Swin, section 3.1); the norm
    before the projection, or after it (Swin V2's code)."""

    def __init__(self, inputs: int, outputs: int, *, post: bool) -> None:
        super().__init__()
        self.post = post
        self.reduction = linear(4 * inputs, outputs, bias=False)
        self.norm = nn.LayerNorm(outputs if post else 4 * inputs)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to(x, 2)
        if not fast.unseen(x, self, self.reduction):
            return nchw(self._project(x, self.reduction))
        if not fast.learns(x, self):
            return nchw(self._fast(x))
        return nchw(self._project(x, lambda y: learning.linear(y, self.reduction.weight, None)))

    def _project(self, x: Tensor, reduction: Callable[[Tensor], Tensor]) -> Tensor:
        x = self._neighbours(x)
        return self.norm(reduction(x)) if self.post else reduction(self.norm(x))

    def _neighbours(self, x: Tensor) -> Tensor:
        # from channels last, so that the gradient is, too
        return rearrange(nhwc(x), "b (h y) (w x) c -> b h w (x y c)", y=2, x=2)

    def _fast(self, x: Tensor) -> Tensor:
        """A few images at a time: four copies of a map never stand side by side."""
        weight = self.packed("reduction", self.reduction.weight)

        def run(x: Tensor) -> Tensor:
            return self._project(x, lambda y: products.linear(y, weight, None))

        return fast.each(x, fast.images(x), run, spread=True)

    def cost(self, h: int, w: int) -> int:
        return h * w * self.reduction.weight.numel()


class Stem(Resample):
    """The strided convolution of a spec, and its absolute positions if it has them: learned on
    the grid of its image size, interpolated (bicubic) on any other."""

    def __init__(self, spec: BackboneSpec) -> None:
        p, dim = spec.patch_size, spec.stages[0].dim
        kernel = p if spec.stem == "patch" else 2 * p - 1
        padding = {"patch": 0, "overlap": p // 2, "overlap_same": kernel // 2}[spec.stem]
        super().__init__(
            spec.in_channels, dim, kernel=kernel, stride=p, padding=padding, norm=spec.patch_norm
        )
        self.position: nn.Parameter | None = None
        if spec.position == "absolute":
            self.position = nn.Parameter(torch.zeros(1, dim, *spec.grids(spec.img_size)[0]))
            nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.position is None:
            return x
        position: Tensor = self.position
        h, w = x.shape[2:]
        if not (known(position.shape[2] == h) and known(position.shape[3] == w)):
            position = F.interpolate(position, x.shape[2:], mode="bicubic", align_corners=False)
        return x + position.to(x.dtype)


def make_downsample(spec: BackboneSpec, inputs: int, outputs: int) -> Resample | Merge:
    if spec.downsample in ("merge", "merge_post"):
        return Merge(inputs, outputs, post=spec.downsample == "merge_post")
    norm = spec.downsample == "conv_norm"
    return Resample(inputs, outputs, kernel=3, stride=2, padding=1, norm=norm)


class MLP(Keeper):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(dim, hidden), linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        if not fast.unseen(x, self, self.fc1, self.fc2):
            return self.fc2(F.gelu(self.fc1(x)))
        return self._learn(x) if fast.learns(x, self) else self._fast(x)

    def _learn(self, x: Tensor) -> Tensor:
        one, two = self.fc1, self.fc2
        return learning.mlp(x, one.weight, one.bias, two.weight, two.bias)

    def _fast(self, x: Tensor) -> Tensor:
        one, two = self.packed("fc1", self.fc1.weight), self.packed("fc2", self.fc2.weight)
        rows = x.reshape(-1, x.shape[-1])
        return products.mlp(rows, one, self.fc1.bias, two, self.fc2.bias).view(x.shape)

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
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate:g}"


class Block(nn.Module):
    """A mixer and an MLP on residuals, (b, h, w, c) to (b, h, w, c).

    norm=pre: x + f(norm(x)).  norm=res_post: x + norm(f(x)), norms starting at 0 (Swin V2,
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
            x = x + nhwc(self.cpe(nchw(x)))
        for norm, inner in ((self.norm1, self.mixer), (self.norm2, self.mlp)):
            x = x + self.drop_path(norm(inner(x)) if self.post else inner(norm(x)))
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


class Stage(nn.Module):
    """Downsampling (but for the first stage), then blocks: NCHW to NCHW, self-contained."""

    def __init__(
        self, stage: StageSpec, spec: BackboneSpec, *, inputs: int | None, drop_path: list[float]
    ) -> None:
        super().__init__()
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

    def forward(self, x: Tensor) -> Tensor:
        x = nhwc(self.downsample(x))
        if torch.compiler.is_compiling() or not fast.unseen(x, self):
            return nchw(self._whole(x))
        if fast.learns(x, self):
            with fast.forward(learning=True):
                return nchw(self._whole(x))
        return nchw(self._whole(x) if self.training else self._fast(x))

    def _whole(self, x: Tensor) -> Tensor:
        """The whole batch through block after block, some of which run again in backward."""
        per = self.checkpointing if torch.is_grad_enabled() else None
        if per == "stage":
            return checkpoint(self._blocks, x, use_reentrant=False)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if per == "block" else block(x)
        return x

    def _blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def _fast(self, x: Tensor) -> Tensor:
        """Depth first: a few images go through all blocks before the next."""
        parts = fast.images(x)
        with fast.forward(again=len(parts) > 1):
            return fast.each(x, parts, self._blocks, spread=True)

    def cost(self, h: int, w: int) -> list[Macs]:
        """h, w: of this stage's map."""
        parts = []
        if not isinstance(self.downsample, nn.Identity):
            parts.append(Macs("downsample", "resample", self.downsample.cost(h, w)))
        for i, block in enumerate(cast("list[Block]", self.blocks)):
            parts += [p._replace(module=f"blocks.{i}.{p.module}") for p in block.cost(h, w)]
        return parts
