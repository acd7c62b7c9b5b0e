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
from backbones.parts.resample import Merge, Resample, make_downsample
from backbones.specs.spec import BackboneSpec, StageSpec


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
                attention.build(config, dim=stage.dim, heads=stage.heads, index=index), spec,
                dim=stage.dim, hidden=stage.hidden, drop_path=rate,
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
