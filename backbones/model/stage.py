"""A stage of a backbone: downsampling, then blocks, NCHW to NCHW in channels-last memory."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attention
from attention.execution import chunks
from attention.execution.backends import Reference
from attention.execution.dispatch import Executable
from attention.mixer import map_size
from backbones.model.block import Block
from backbones.parts.layout import nchw, nhwc
from backbones.parts.macs import Macs
from backbones.parts.mbconv import MBConv, make_between
from backbones.parts.position import add_position, make_position
from backbones.parts.resample import Strided, make_downsample
from backbones.parts.tokens import Messengers, make_tokens
from backbones.specs.spec import BackboneSpec

# what the blocks of a stage take from the spec of the backbone
BODY = ("norm", "norm_layer", "mlp", "local", "layer_scale", "position", "stage_norms")


class Stage(Executable):
    """Downsampling (but in most first stages), then blocks: NCHW to NCHW.

    With position=cpe_once x + depthwise 3x3 of x comes after the first block, with stage_norms a
    layer norm after the last.  Where tokens beside the map go on to the next stage or to the head,
    the stage returns a pair of maps; the next one takes it, and downsamples both.

    The cpu backend takes a few images at a time through all blocks, so that their map stays in
    the cache.
    """

    def __init__(
        self, spec: BackboneSpec, i: int, *, inputs: int | None, drop_path: list[float]
    ) -> None:
        super().__init__()
        self.spec = stage = spec.stages[i]
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
        self.position: nn.Parameter | None = None
        if spec.position == "absolute_stages":
            self.position = make_position(dim, *spec.grids(spec.img_size)[i])
        self.beside = make_tokens(spec, i)
        last = i + 1 == len(spec.stages)
        self.hands_on = spec.goes_on(i) or (last and spec.pool == "token")

        self.checkpointing: str | None = None  # what runs again in backward: block or stage

    def run(self, x: Tensor, backend: Reference, *tokens: Tensor) -> Any:
        y = backend.over_images(self._body, x, *tokens, image_bytes=self._image_bytes(x))
        return nchw(y) if isinstance(y, Tensor) else tuple(map(nchw, y))  # (b, c, h, w) each

    def _body(self, x: Tensor, *before: Tensor) -> Any:
        """Map (b, h, w, c) after all blocks of a map (b, c, h, w) of the stage before.

        before: the messengers of the stage before, a map (b, c, h, w), too.  With checkpointing,
        blocks run again in backward.
        """
        x = nhwc(add_position(self.downsample(x), self.position, "bilinear"))  # (b, h, w, c)
        inputs = [x]
        if self.beside is not None:
            inputs.append(self.beside(x, *(nhwc(self.downsample(t)) for t in before)))  # (b, t, c)
        per = self.checkpointing if torch.is_grad_enabled() else None
        if per == "stage":
            outputs = checkpoint(self._run_blocks, *inputs, use_reentrant=False)
        else:
            outputs = self._run_blocks(*inputs, again=per == "block")
        if self.beside is None or not self.hands_on:
            return outputs[0]
        return outputs[0], self.beside.read(outputs[1], map_size(x))

    def _run_blocks(self, *maps: Tensor, again: bool = False) -> tuple[Tensor, ...]:
        """The map after all blocks, and the tokens beside it, if there are any.

        again: whether each block runs again in backward.
        """
        for i, block in enumerate(self.blocks):
            out = checkpoint(block, *maps, use_reentrant=False) if again else block(*maps)
            maps = (out,) if isinstance(out, Tensor) else out  # (b, h, w, c), (b, t, c)
            if i == 0 and self.cpe is not None:
                x, *tokens = maps
                maps = (x + nhwc(self.cpe(nchw(x))), *tokens)
        return tuple(map(self.norm, maps))

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
        size = f"dim={spec.dim} hidden={spec.hidden} heads={spec.heads} tokens={spec.tokens}"
        return f"{down} {spec.depth}x({mixers}) {size} {self.body}"

    def cost(self, h: int, w: int, before: tuple[int, int]) -> list[Macs]:
        """Multiply-adds of every part for one map of h x w tokens.

        before: (h, w) of the map before downsampling.
        """
        parts, tokens = [], self.spec.tokens_beside(h, w)
        if not isinstance(self.downsample, nn.Identity):
            parts.append(Macs("downsample", "resample", self._downsampling(h, w, before)))
        for i, block in enumerate(cast("list[Block]", self.blocks)):
            own = block.cost(h, w, tokens)
            parts += [p._replace(module=f"blocks.{i}.{p.module}") for p in own]
        if self.cpe is not None:
            parts.append(Macs("cpe", "position", h * w * self.cpe.weight.numel()))
        return parts

    def _downsampling(self, h: int, w: int, before: tuple[int, int]) -> int:
        """Multiply-adds of the downsampling, of the messengers that go on, too."""
        layer = cast("Strided | MBConv", self.downsample)
        macs = layer.cost(h, w, before) if isinstance(layer, MBConv) else layer.cost(h, w)
        if not isinstance(self.beside, Messengers) or self.beside.tokens is not None:
            return macs
        (h, w), before = map(self.beside.config.windows, (h, before[0]), (w, before[1]))
        return macs + (layer.cost(h, w, before) if isinstance(layer, MBConv) else layer.cost(h, w))
