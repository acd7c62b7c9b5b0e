"""The one model class that builds any spec."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from attention.execution import backends
from attention.execution.dispatch import Executable
from backbones.model.decay import is_position, matcher
from backbones.model.layers import Macs, Stage, Stem, linear, nchw, nhwc
from backbones.model.unread import joined
from backbones.specs.spec import BackboneSpec
from transom.errors import SpecError


class HierarchicalBackbone(nn.Module):
    """A stem and 2 to 5 stages, each halving the map of the one before.

    Images (b, in_channels, H, W) of any H, W >= 1: the map of stage i has
    ceil(H / (patch_size * 2**i)) rows and as many columns by the same rule.
    """

    _backend = "auto"

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec = spec.resolve()
        depth = sum(stage.depth for stage in spec.stages)
        rates = [spec.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.stem = Stem(spec)
        self.stages = nn.Sequential()
        inputs = None
        for stage in spec.stages:
            own, rates = rates[: stage.depth], rates[stage.depth :]
            self.stages.append(Stage(stage, spec, inputs=inputs, drop_path=own))
            inputs = stage.dim
        dims = [stage.dim for stage in spec.stages]
        self.out_norms = nn.ModuleList(map(nn.LayerNorm, dims)) if spec.out_norms else None
        self.norm = nn.LayerNorm(dims[-1]) if spec.final_norm else nn.Identity()
        classes = spec.num_classes
        self.head = linear(dims[-1], classes) if classes else nn.Identity()

    def features(self, x: Tensor) -> list[Tensor]:
        """One NCHW map per stage, finest first; normed when the spec has out_norms.

        Under DistributedDataParallel, what only `forward` reads gets gradients of zero.
        """
        x, maps = self.stem(x), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            maps.append(self._level(i, x))
        maps[-1] = joined(maps[-1], (*self.norm.parameters(), *self.head.parameters()))
        return maps

    def _level(self, i: int, x: Tensor) -> Tensor:
        """Stage i's map as `features` gives it: (b, c, h, w) to (b, c, h, w)."""
        return x if self.out_norms is None else nchw(self.out_norms[i](nhwc(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, num_classes), or the pooled features (b, dim) when num_classes is 0.

        Under DistributedDataParallel, norms that only `features` reads get gradients of zero.
        """
        pooled = self.norm(nhwc(self.stages(self.stem(x)))).mean((1, 2))
        unread = () if self.out_norms is None else self.out_norms.parameters()
        return self.head(joined(pooled, unread))

    def set_grad_checkpointing(self, enable: bool = True, per: str = "block") -> None:
        """Trade time for memory in training: activations inside blocks are computed again.

        per: block keeps every block's input, stage only every stage's.  Raises SpecError for
        another word.
        """
        if per not in ("block", "stage"):
            raise SpecError(f"set_grad_checkpointing: per={per!r} is neither 'block' nor 'stage'")
        for stage in cast("list[Stage]", self.stages):
            stage.checkpointing = per if enable else None

    def no_weight_decay(self) -> set[str]:
        """What the authors leave out: bias tables, log-CPB, logit scales, absolute positions.

        timm's optimizers read it, and leave out by themselves what has one axis: norms, biases.
        `backbones.rates` does so for a backbone inside another module.
        """
        return {name for name, _ in self.named_parameters() if is_position(name)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer-wise learning rates: the stem, then every block, or stage."""
        return matcher(coarse)

    @property
    def backend(self) -> str:
        """Which backend computes every stage and mixer: auto, reference, cpu or kernel.

        To be set; `attention.backend(name)` does so for a while, `backbones.backend_of(model, x)`
        tells which one runs.  Raises SpecError for another name.
        """
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend = backends.checked(name, "backend")
        for part in self.modules():
            if isinstance(part, Executable):
                part.backend = name

    def cost(self, h: int, w: int) -> list[Macs]:
        """Exact multiply-adds of every part, for one image of h x w pixels."""
        grids = self.spec.grids((h, w))
        parts = [Macs("stem", "resample", self.stem.cost(*grids[0]))]
        stages = cast("list[Stage]", self.stages)
        for i, (stage, grid) in enumerate(zip(stages, grids, strict=True)):
            parts += [p._replace(module=f"stages.{i}.{p.module}") for p in stage.cost(*grid)]
        if self.spec.num_classes:
            parts.append(Macs("head", "head", self.spec.stages[-1].dim * self.spec.num_classes))
        return parts
