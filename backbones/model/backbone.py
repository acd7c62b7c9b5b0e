"""The model class of every spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from attention.execution import backends
from attention.execution.dispatch import Executable
from backbones.model.decay import is_position, matcher
from backbones.model.stage import Stage
from backbones.model.unread import join_graph
from backbones.parts.head import TanhLayer, make_head, make_pre_head
from backbones.parts.layout import nchw, nhwc
from backbones.parts.macs import Macs
from backbones.parts.stem import make_stem
from backbones.specs.spec import BackboneSpec
from transom.errors import SpecError


class HierarchicalBackbone(nn.Module):
    """A stem and 1 to 5 stages, each halving the map of the stage before.

    Source: Swin Transformer (Liu et al. 2021, arXiv 2103.14030), section 3.1; the spec says which
    parts are another paper's.

    Images are (b, in_channels, H, W) with any H, W >= 1.  The map of stage i has
    ceil(H / (patch_size * 2**i)) rows and ceil(W / (patch_size * 2**i)) columns.

    Args:
        spec: the backbone; windows larger than their map are shrunk for its img_size.

    Example:
        >>> import backbones, torch
        >>> model = backbones.HierarchicalBackbone(backbones.parse("swin_t/stages=2"))
        >>> [tuple(level.shape) for level in model.features(torch.zeros(1, 3, 30, 33))]
        [(1, 96, 8, 9), (1, 192, 4, 5)]
    """

    _backend = "auto"

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec = spec.resolve()
        depth = sum(stage.depth for stage in spec.stages)
        rates = [spec.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.stem = make_stem(spec)
        self.stages = nn.Sequential()
        inputs = spec.stem_width if spec.first_downsample else None
        for i, stage in enumerate(spec.stages):
            stage_rates, rates = rates[: stage.depth], rates[stage.depth :]
            self.stages.append(Stage(spec, i, inputs=inputs, drop_path=stage_rates))
            inputs = stage.dim
        dims = [stage.dim for stage in spec.stages]
        self.out_norms: nn.ModuleList | None = None
        if spec.out_norms and not spec.stage_norms:
            self.out_norms = nn.ModuleList(nn.LayerNorm(dim, eps=spec.eps) for dim in dims)
        own_norm = spec.final_norm and not spec.stage_norms  # else the last stage ends with it
        self.norm = nn.LayerNorm(dims[-1], eps=spec.eps) if own_norm else nn.Identity()
        self.pre_head, self.head = make_pre_head(spec, dims[-1]), make_head(spec, dims[-1])

    def features(self, x: Tensor) -> list[Tensor]:
        """One map per stage, finest first; normed when the spec has out_norms.

        Under DistributedDataParallel, parameters that only `forward` reads get gradients of zero.

        Args:
            x: images (b, in_channels, H, W), any height and width.

        Returns:
            One map (b, dim, h, w) per stage, with the (h, w) of ``spec.grids((H, W))``.

        Raises:
            SpecError: x is not a batch of images with `in_channels` channels.

        Example:
            >>> import backbones, torch
            >>> model = backbones.create("pale_t/stages=2")
            >>> [tuple(level.shape) for level in model.features(torch.zeros(1, 3, 32, 32))]
            [(1, 64, 8, 8), (1, 128, 4, 4)]
        """
        levels = self._run_stages(self.stem(x))
        maps = [self._level(i, level) for i, (level, _) in enumerate(levels)]
        after = (self.norm, self.pre_head, self.head)
        maps[-1] = join_graph(maps[-1], [p for part in after for p in part.parameters()])
        return maps

    def _run_stages(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The map (b, c, h, w) of every stage, halved after the first, and the tokens beside it
        that go on, a map too."""
        tokens: Tensor | None = None
        for stage in cast("list[Stage]", self.stages):
            out = stage(x) if tokens is None else stage(x, tokens)
            x, tokens = out if stage.hands_on else (out, None)
            yield x, tokens

    def _level(self, i: int, x: Tensor) -> Tensor:
        """Map of stage i (b, c, h, w) with its norm of out_norms, if the spec has them."""
        return x if self.out_norms is None else nchw(self.out_norms[i](nhwc(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head pools: the map of the last stage, normed unless norm_after_pool.

        With pool=token it is the class token, or the messengers of the last stage, as a map.

        Args:
            x: images (b, in_channels, H, W), any height and width.

        Returns:
            (b, dim of the last stage, h, w); h = w = 1 for a class token.

        Raises:
            SpecError: x is not a batch of images with `in_channels` channels.

        Example:
            >>> import backbones, torch
            >>> model = backbones.create("swin_t/stages=2")
            >>> model.forward_features(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 192, 4, 4])
        """
        *_, last = self._run_stages(self.stem(x))
        return self._normed(self._to_pool(*last))

    def _to_pool(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The map that the head pools: that of the last stage, or the tokens beside it."""
        return tokens if self.spec.pool == "token" and tokens is not None else x

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.spec.norm_after_pool else nchw(self.norm(nhwc(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        """What the classifier takes, (b, c), of a map (b, c, h, w) of `forward_features`."""
        pooled = nhwc(x).mean((1, 2))  # (b, c)
        if self.spec.norm_after_pool:
            pooled = self.norm(pooled)
        return self.pre_head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images, or their pooled features when num_classes is 0.

        Under DistributedDataParallel, norms that only `features` reads get gradients of zero.

        Args:
            x: images (b, in_channels, H, W), any height and width.

        Returns:
            (b, num_classes), or (b, dim of the last stage).

        Raises:
            SpecError: x is not a batch of images with `in_channels` channels.

        Example:
            >>> import backbones, torch
            >>> model = backbones.create("swin_t/stages=2", num_classes=0)
            >>> model(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 192])
        """
        pooled = self._pooled(self.forward_features(x))  # (b, c)
        unread = [] if self.out_norms is None else [*self.out_norms.parameters()]
        if self.spec.pool == "token":  # what in the last block changes the map alone
            unread += self.stages[-1].parameters()
        return self.head(join_graph(pooled, unread))  # (b, num_classes)

    def set_grad_checkpointing(self, enable: bool = True, per: str = "block") -> None:
        """Trades time for memory in training: activations are computed again in backward.

        Args:
            enable: False keeps all activations, as a new model does.
            per: block keeps the input of every block, stage only the input of every stage.

        Raises:
            SpecError: per is neither.

        Example:
            >>> import backbones
            >>> model = backbones.create("swin_t/stages=2")
            >>> model.set_grad_checkpointing(per="stage")
            >>> model.stages[0].checkpointing
            'stage'
        """
        if per not in ("block", "stage"):
            raise SpecError(f"set_grad_checkpointing: per={per!r} is neither 'block' nor 'stage'")
        for stage in cast("list[Stage]", self.stages):
            stage.checkpointing = per if enable else None

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the authors do not decay.

        These are bias tables, log-CPB, logit scales and absolute positions.  timm's optimizers
        call this method and leave out parameters with one axis (norms, biases) by themselves;
        `backbones.rates.groups` applies it to a backbone inside another module.

        Returns:
            A set of names of `named_parameters`.

        Example:
            >>> import backbones
            >>> model = backbones.create("swin_t/stages=2/1.depth=1/2.depth=1")
            >>> min(model.no_weight_decay())
            'stages.0.blocks.0.mixer.branch.bias.table'
        """
        return {name for name, _ in self.named_parameters() if is_position(name)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer-wise learning rates: the stem, then every block.

        Args:
            coarse: every stage is one layer.

        Returns:
            Patterns of parameter names by layer, as `timm.optim` reads them.

        Example:
            >>> import backbones
            >>> list(backbones.create("swin_t/stages=2").group_matcher())
            ['stem', 'blocks']
        """
        return matcher(coarse)

    @property
    def num_features(self) -> int:
        """Channels of the last stage, which the head takes."""
        return self.out_channels[len(self.stages) - 1]  # timm may prune stages

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the map of every stage that the spec has.

        Example:
            >>> import backbones
            >>> model = backbones.create("swin_t/stages=2")
            >>> model.out_channels, model.strides, model.num_features
            ((96, 192), (4, 8), 192)
        """
        return tuple(stage.dim for stage in self.spec.stages)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image a side that one token of every stage stands for."""
        return tuple(self.spec.patch_size * 2**i for i in range(len(self.spec.stages)))

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """A dict per stage, as timm's FeatureInfo takes them: channels, stride and module.

        Example:
            >>> import backbones
            >>> backbones.create("swin_t/stages=2").feature_info[1]
            {'num_chs': 192, 'reduction': 8, 'module': 'stages.1'}
        """
        return [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{i}"}
            for i, (channels, stride) in enumerate(
                zip(self.out_channels, self.strides, strict=True)
            )
        ]

    @property
    def backend(self) -> str:
        """Name of the backend that computes every stage and mixer; it can be assigned.

        auto chooses among reference, cpu and kernel.  `attention.backend(name)` names one for a
        while, and `backbones.backend_of(model, x)` tells which one runs.

        Raises:
            SpecError: the assigned name is no backend.

        Example:
            >>> import backbones
            >>> model = backbones.create("swin_t/stages=2")
            >>> model.backend
            'auto'
            >>> model.backend = "reference"
        """
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend = backends.checked(name, "backend")
        for part in self.modules():
            if isinstance(part, Executable):
                part.backend = name

    def cost(self, h: int, w: int) -> list[Macs]:
        """Exact multiply-adds of every part for one image.

        Args:
            h: height of the image in pixels.
            w: width of the image in pixels.

        Returns:
            A `Macs` (module, column, macs, padding) per convolution, linear layer or product.

        Example:
            >>> import backbones
            >>> model = backbones.create("swin_t/stages=2")
            >>> model.cost(32, 32)[0]
            Macs(module='stem', column='resample', macs=294912, padding=0)
        """
        grids, before = self.spec.grids((h, w)), self.spec.stem_grid((h, w))
        parts = [Macs("stem", "resample", self.stem.cost(*before))]
        stages = cast("list[Stage]", self.stages)
        for i, (stage, grid) in enumerate(zip(stages, grids, strict=True)):
            own = stage.cost(*grid, before=before)
            parts += [p._replace(module=f"stages.{i}.{p.module}") for p in own]
            before = grid
        if isinstance(self.pre_head, TanhLayer):
            parts.append(Macs("pre_head", "head", self.pre_head.cost()))
        if self.spec.num_classes:
            parts.append(Macs("head", "head", self.spec.stages[-1].dim * self.spec.num_classes))
        return parts
