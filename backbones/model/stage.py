"""A stage of a backbone: downsampling, then blocks, NCHW to NCHW in channels-last memory."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attention
from attention.execution import chunks
from attention.execution.backends import Reference
from attention.execution.dispatch import Executable
from backbones.model.block import Block
from backbones.parts.layout import nchw, nhwc
from backbones.parts.macs import Macs
from backbones.parts.mbconv import MBConv, make_between
from backbones.parts.resample import Strided, make_downsample
from backbones.specs.spec import BackboneSpec, StageSpec

# what the blocks of a stage take from the spec of the backbone
BODY = ("norm", "norm_layer", "mlp", "local", "layer_scale", "position", "stage_norms")


class Stage(Executable):
    """Downsampling (but in most first stages), then blocks: NCHW to NCHW.

    With position=cpe_once x + depthwise 3x3 of x comes after the first block, with stage_norms a
    layer norm after the last.

    The cpu backend takes a few images at a time through all blocks, so that their map stays in
    the cache.
    """

    def __init__(
        self, stage: StageSpec, spec: BackboneSpec, *, inputs: int | None, drop_path: list[float]
    ) -> None:
        super().__init__()
        self.spec = stage
        self.body = " ".join(f"{name}={getattr(spec, name)}" for name in BODY)
        self.downsample: Strided | MBConv | nn.Identity = (
            nn.Identity()
            if inputs is None
            else make_downsample(spec, inputs, stage.dim, drop_path[0])
        )
        self.blocks = nn.ModuleList(
            Block(
                attention.build(config, dim=stage.dim, heads=stage.heads, index=index), spec,
                dim=stage.dim, hidden=stage.hidden, drop_path=rate,
                conv=make_between(spec, stage.dim, number, rate),
            )
            for number, ((config, index), rate) in enumerate(
                zip(stage.blocks(), drop_path, strict=True)
            )
        )  # fmt: skip
        dim, cpe = stage.dim, spec.position == "cpe_once"
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if cpe else None
        self.norm = nn.LayerNorm(dim, eps=spec.eps) if spec.stage_norms else nn.Identity()

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
        return self._run_blocks(x, again=per == "block")

    def _run_blocks(self, x: Tensor, again: bool = False) -> Tensor:
        """again: whether each block runs again in backward."""
        for i, block in enumerate(self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)  # (b, h, w, c)
            if i == 0 and self.cpe is not None:
                x = x + nhwc(self.cpe(nchw(x)))  # (b, h, w, c)
        return self.norm(x)

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
        size = f"dim={spec.dim} hidden={spec.hidden} heads={spec.heads}"
        return f"{down} {spec.depth}x({mixers}) {size} {self.body}"

    def cost(self, h: int, w: int, before: tuple[int, int]) -> list[Macs]:
        """Multiply-adds of every part for one map of h x w tokens.

        before: (h, w) of the map before downsampling.
        """
        parts = []
        if isinstance(self.downsample, MBConv):
            parts.append(Macs("downsample", "resample", self.downsample.cost(h, w, before)))
        elif not isinstance(self.downsample, nn.Identity):
            parts.append(Macs("downsample", "resample", self.downsample.cost(h, w)))
        for i, block in enumerate(cast("list[Block]", self.blocks)):
            parts += [p._replace(module=f"blocks.{i}.{p.module}") for p in block.cost(h, w)]
        if self.cpe is not None:
            parts.append(Macs("cpe", "position", h * w * self.cpe.weight.numel()))
        return parts
