"""A backbone with the interface of timm's models; `backbones.timm_models` registers it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.config import is_scriptable
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from backbones import timm_keywords
from backbones.model.backbone import HierarchicalBackbone
from backbones.parts.head import make_head
from backbones.specs.construct import edit
from backbones.specs.notation import parse
from transom.errors import SpecError
from transom.fields import read_number, read_size

POOLS = ("avg", "fast", "fastavg", "")  # timm's names of the mean, and none


class TimmBackbone(HierarchicalBackbone):
    """A backbone with the interface of timm's models.

    Args:
        spec: any notation.
        in_chans: channels of the image; by default those of the spec, as for the next three.
        num_classes: classes of the head; 0: pooled features.
        img_size: pixels, a side or (height, width), for which absolute positions are learned and
            windows shrunk; the model takes images of any size.
        drop_path_rate: rate of stochastic depth in the last block.
        drop_rate: dropout of the pooled features, before the classifier.
        global_pool: avg, fast or fastavg for the mean; "" for the map, which needs num_classes=0.
        output_stride: 32 or None; windows do not dilate.
        bn_momentum: momentum of every batch norm (pale has them).
        bn_eps: epsilon of every batch norm.
        device: of the parameters.
        dtype: of the parameters.
        asked: keywords of timm's SwinTransformer, which must ask for what the spec is already.

    Raises:
        SpecError: the request cannot be built or is not offered; the message says what to write
            instead.
        TypeError: timm's SwinTransformer has no such keyword.

    Example:
        >>> import torch
        >>> from backbones.timm_models import TimmBackbone
        >>> model = TimmBackbone("pale_t/stages=2", num_classes=10, drop_rate=0.2)
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    output_fmt = "NCHW"

    def __init__(
        self,
        spec: str = "swin_t",
        *,
        in_chans: int | None = None,
        num_classes: int | None = None,
        img_size: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        output_stride: int | None = None,
        bn_momentum: float | None = None,
        bn_eps: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **asked: Any,
    ) -> None:
        if is_scriptable():
            raise SpecError(
                "scriptable=True: torch.jit.script cannot read the mixers; use torch.compile, or "
                "python -m backbones.export for a file"
            )
        if output_stride not in (None, 32):
            raise SpecError(
                f"output_stride={output_stride}: stages keep their strides (4, 8, 16, 32), since "
                "windows do not dilate; use a decoder without output_stride"
            )
        stated = {
            "in_channels": in_chans, "num_classes": num_classes, "img_size": img_size,
            "drop_path": drop_path_rate,
        }  # fmt: skip
        fields = {key: value for key, value in stated.items() if value is not None}
        resolved = edit(parse(spec), spec, **fields)
        timm_keywords.check(resolved, asked)
        with contextlib.nullcontext() if device is None else torch.device(device):
            super().__init__(resolved)
        self._describe_head(self.spec.num_classes, global_pool)
        self.head_drop = _dropout(drop_rate)
        for norm in (part for part in self.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.momentum = norm.momentum if bn_momentum is None else bn_momentum
            norm.eps = norm.eps if bn_eps is None else bn_eps
        self.to(dtype=dtype)
        self.in_chans = self.spec.in_channels

    def _describe_head(self, num_classes: int, global_pool: str) -> None:
        if global_pool not in POOLS:
            known = ", ".join(map(repr, POOLS))
            raise SpecError(f"global_pool={global_pool!r}: expected one of {known}")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head_hidden_size = self.num_features

    # -- forward -------------------------------------------------------------------------

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (b, num_classes) of a map (b, c, h, w) of `forward_features`.

        pre_logits: returns what the classifier takes.
        """
        x = self.head_drop(self._pooled(x) if self.global_pool else x)  # (b, c), or (b, c, h, w)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)  # (b, c, h, w)
        return self.forward_head(x)  # (b, num_classes)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of chosen stages, and the normed map of the last stage, as timm's models do.

        Args:
            x: images (b, in_channels, H, W).
            indices: stages from 0, or how many of the last; None: all.
            norm: applies the final norm to the last stage's map.  With out_norms every map has
                the norm of its level instead.
            stop_early: leaves out the stages after the last index.
            output_fmt: NCHW.
            intermediates_only: returns the list alone.

        Returns:
            The last map (b, c, h, w), and a list of maps (b, dim, h, w).

        Raises:
            SpecError: output_fmt is not NCHW.

        Example:
            >>> import torch
            >>> from backbones.timm_models import TimmBackbone
            >>> model = TimmBackbone("swin_t/stages=2")
            >>> last, maps = model.forward_intermediates(torch.zeros(1, 3, 32, 32))
            >>> [tuple(level.shape) for level in maps]
            [(1, 96, 8, 8), (1, 192, 4, 4)]
        """
        if output_fmt != "NCHW":
            raise SpecError(f"output_fmt={output_fmt!r}: maps are NCHW")
        take, deepest = feature_take_indices(len(self.stages), indices)
        found, last = [], len(self.stages) - 1
        for i, (level, tokens) in enumerate(self._run_stages(self.stem(x))):
            if i in take:
                final = norm and i == last and self.out_norms is None
                found.append(self._normed(level) if final else self._level(i, level))
            x = level if i < last else self._normed(self._to_pool(level, tokens))
            if stop_early and i == deepest:
                break
        return found if intermediates_only else (x, found)

    # -- editing -------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head.

        With 0 classes the model returns pooled features, or with global_pool='' the map.  Raises
        SpecError for classes without pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if num_classes and not pool:
            raise SpecError("a head needs pooled features: global_pool='' goes with num_classes=0")
        self._describe_head(num_classes, pool)
        like = next(self.parameters())
        self.spec = edit(self.spec, self.spec.name, num_classes=num_classes)
        self.head = make_head(self.spec, self.num_features).to(like.device, like.dtype)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages, and optionally norm and head, that the chosen maps do not need.

        Returns the indices of the chosen stages.
        """
        take, deepest = feature_take_indices(len(self.stages), indices)
        ends = deepest < len(self.stages) - 1
        self.stages = self.stages[: deepest + 1]
        if self.out_norms is not None:
            norms = (norm if i in take else nn.Identity() for i, norm in enumerate(self.out_norms))
            self.out_norms = nn.ModuleList(norms)[: deepest + 1]
        if prune_norm or ends:
            self.norm = nn.Identity()
        if prune_head or ends:
            self.pre_head = self.head = self.head_drop = nn.Identity()
            self._describe_head(0, "")
        return take

    def set_input_size(
        self, img_size: int | Sequence[int] | None = None, patch_size: int | None = None
    ) -> None:
        """Resizes absolute positions, the only parameters that depend on the size of images.

        img_size: pixels, a side or (height, width).  Raises SpecError for another patch_size.
        """
        if patch_size not in (None, self.spec.patch_size):
            raise SpecError(f"patch_size={patch_size}: the stem has {self.spec.patch_size}")
        if img_size is None:
            return
        try:
            size = read_size(img_size)
        except ValueError as error:
            raise SpecError(f"img_size={img_size!r}: expected {error}") from None
        self.spec = edit(self.spec, self.spec.name, img_size=size)
        grids = [self.spec.stem_grid(size), *self.spec.grids(size)]
        modes = ["bicubic", *("bilinear" for _ in self.stages)]
        for part, grid, mode in zip((self.stem, *self.stages), grids, modes, strict=True):
            if part.position is not None:
                moved = F.interpolate(part.position.detach(), grid, mode=mode)
                part.position = nn.Parameter(moved)


def _dropout(rate: Any) -> nn.Module:
    try:
        number = read_number(rate)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise SpecError(f"drop_rate={rate!r}: expected a rate from 0 to below 1")
    return nn.Dropout(number) if number else nn.Identity()
