"""Specification of a backbone: immutable plain data, validated on construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from backbones.specs.stage import StageSpec
from transom.errors import SpecError, one_line
from transom.fields import (
    choice,
    option,
    optional,
    read_count,
    read_count_or_zero,
    read_fields,
    read_flag,
    read_number,
    read_size,
    read_text,
)


def _read_rate(value: Any) -> float:
    rate = read_number(value)
    if not 0 <= rate < 1:
        raise ValueError("a rate from 0 to below 1")
    return rate


def _read_eps(value: Any) -> float:
    eps = read_number(value)
    if not 0 < eps <= 1:
        raise ValueError("a number above 0, at most 1")
    return eps


def _read_kernel(value: Any) -> int:
    try:
        kernel = 0 if str(value) == "0" else read_count(value)
    except ValueError:
        kernel = -1
    if kernel > 31 or (kernel and kernel % 2 == 0) or kernel < 0:
        raise ValueError("0 or an odd number up to 31")
    return kernel


MOST_STAGES = 5


def _read_stages(value: Any) -> tuple[StageSpec, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, StageSpec) for v in value):
        raise ValueError("a list of StageSpec")
    return tuple(value)


STEMS = (
    "patch", "overlap", "overlap_same", "two_convs", "conv_relu6", "cross_scale", "conv_bn",
    "conv_bn_even",
)  # fmt: skip
DOWNSAMPLES = (
    "merge", "merge_post", "conv_norm", "conv", "norm_conv", "cross_scale", "patch_norm",
    "mbconv", "mbconv_even",
)  # fmt: skip
MLPS = ("gelu", "relu6", "gelu_tanh", "conv", "relu_conv")
POSITIONS = ("none", "absolute", "absolute_stages", "cpe", "cpe_once")
SMALL_MAPS = ("pad", "shrink_both", "shrink_axis")


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A hierarchical backbone as immutable plain data, each field of which the notation can set.

    Sources: Swin Transformer (arXiv 2103.14030, section 3.1), Swin V2 (arXiv 2111.09883), CSWin
    (arXiv 2107.00652) and Pale (arXiv 2112.14000), where a value names them; cpe after Chu et al.
    2021 (arXiv 2102.10882), drop_path after Huang et al. 2016 (arXiv 1603.09382); shrink_both from
    swin_transformer.py of microsoft/Swin-Transformer, shrink_axis from timm's.

    Args:
        name: the name shown in tables.
        stages: 1 to 5 StageSpec, finest first.
        img_size: (height, width) in pixels at which costs are counted, absolute positions are
            learned and windows are shrunk; the model takes images of any size.
        in_channels: channels of the image.
        num_classes: classes of the head; 0: the model returns pooled features.
        patch_size: stride of the stem in pixels.
        stem: patch (Swin), overlap (CSWin), overlap_same (Pale), two_convs (NAT), conv_relu6
            (Shuffle), cross_scale (CrossFormer), conv_bn or conv_bn_even (MaxViT, with the pads of
            TensorFlow or of torchvision).
        stem_dim: channels between the convolutions of a stem of several; none: half of the first
            stage's.  With conv_bn and with downsample=mbconv, those of the stem's map; none: the
            first stage's.
        patch_norm: a layer norm after the stem.
        downsample: merge (Swin), merge_post (Swin V2), conv_norm (CSWin), conv (Pale),
            norm_conv (Shuffle), cross_scale (CrossFormer), patch_norm (Twins), mbconv or
            mbconv_even (MaxViT, as of conv_bn): these also stand at the start of the first stage,
            which takes half of the stem's stride, and before every second later block.
        downsample_bias: biases of the convolution of conv, conv_norm and patch_norm.
        norm: pre, or res_post with the norms on the residuals (Swin V2).
        norm_layer: layer, or batch.
        eps: added to the variances of the norms of blocks, levels and the final one.
        mlp: two linear layers with gelu, relu6 (Shuffle) or gelu_tanh (MaxViT) between them, or
            with a depthwise 3x3 convolution and gelu: conv (PVT v2), or relu_conv with a ReLU
            before it (its linear variant).
        local: side of a depthwise convolution of a normed residual between mixer and MLP, 7 in
            Shuffle; 0: none.
        layer_scale: the start of a learned factor per channel of every residual, or none.
        position: none, absolute, absolute_stages, learned in every stage (PVT), cpe, a depthwise
            3x3 convolution before every block, or cpe_once, one after the first block of every
            stage (Twins).
        token_position: with absolute positions, those of the tokens beside the map.
        stage_norms: a layer norm at the end of every stage, before the next (PVT v2).
        final_norm: a layer norm before pooling; that of the last stage where stage_norms is true.
        norm_after_pool: the final norm comes after pooling (MaxViT).
        pool: mean of the map, or token: the class token, which is the first token beside the last
            map (ViT), or the mean of its messengers (MSG).
        head: linear, or tanh with a linear layer and tanh before the classifier (MaxViT).
        head_bias: biases of the classifier.
        out_norms: a layer norm on each map of `features`; those of stage_norms, where there are.
        small_maps: what becomes of windows larger than their map: pad, shrink_both, shrink_axis.
        drop_path: rate of stochastic depth in the last block; earlier blocks grow to it from 0.

    Raises:
        SpecError: a field has a value that is not allowed.

    Example:
        >>> from backbones import BackboneSpec, StageSpec
        >>> stages = [StageSpec(dim=dim, heads=2, mixers="axial") for dim in (8, 16)]
        >>> BackboneSpec(stages=stages, patch_size=2).grids((30, 31))
        [(15, 16), (8, 8)]
    """

    name: str = option("custom", read_text, "shown in tables")
    stages: tuple[StageSpec, ...] = option((), _read_stages, "1 to 5, finest first")
    img_size: tuple[int, int] = option(
        (224, 224), read_size, "size it is counted at; absolute positions and shrunken windows"
    )
    in_channels: int = option(3, read_count, "channels of the image")
    num_classes: int = option(1000, read_count_or_zero, "classes of the head; 0: pooled features")
    patch_size: int = option(4, read_count, "stride of the stem")
    stem: str = option(
        "patch", choice(*STEMS),
        "patch: stride-sized kernel (Swin); overlap: 2 x stride - 1, least padding (CSWin); "
        "overlap_same: with padding kernel // 2 (Pale); two_convs: two of 3x3 and stride 2 (NAT); "
        "conv_relu6: two of 3x3 and stride 2 with batch norm and ReLU6, then 1x1 (Shuffle); "
        "cross_scale: kernels of 1, 2, 4 and 8 strides side by side (CrossFormer); "
        "conv_bn: 2 x stride - 1 with batch norm and activation, then 3x3, padded as in "
        "TensorFlow (MaxViT); conv_bn_even: padded on both sides (torchvision)",
    )  # fmt: skip
    stem_dim: int | None = option(
        None, optional(read_count), "channels between a stem's convolutions; none: half"
    )
    patch_norm: bool = option(True, read_flag, "layer norm after the stem")
    downsample: str = option(
        "merge", choice(*DOWNSAMPLES),
        "merge: 2x2, norm, linear (Swin); merge_post: 2x2, linear, norm (Swin V2); "
        "conv_norm: 3x3, norm (CSWin); conv: 3x3 (Pale); norm_conv: norm, 2x2 (Shuffle); "
        "cross_scale: norm, 2x2 beside 4x4 (CrossFormer); "
        "patch_norm: 2x2 convolution, norm (Twins); "
        "mbconv: inverted bottlenecks, between blocks too, padded as in TensorFlow (MaxViT); "
        "mbconv_even: on both sides (torchvision)",
    )  # fmt: skip
    downsample_bias: bool = option(True, read_flag, "biases of the downsampling's convolution")
    norm: str = option("pre", choice("pre", "res_post"), "res_post: on the residual (Swin V2)")
    norm_layer: str = option("layer", choice("layer", "batch"), "norms of blocks")
    eps: float = option(1e-5, _read_eps, "added to the variances of norms")
    mlp: str = option(
        "gelu", choice(*MLPS),
        "between two linear layers: gelu, relu6 (Shuffle), gelu_tanh (MaxViT); conv: depthwise "
        "3x3, gelu (PVT v2); relu_conv: a ReLU before it (its linear variant)",
    )  # fmt: skip
    local: int = option(0, _read_kernel, "depthwise convolution before the MLP; 0: none")
    layer_scale: float | None = option(
        None, optional(read_number), "start of a learned factor of every residual"
    )
    position: str = option(
        "none", choice(*POSITIONS),
        "absolute: learned, interpolated at other sizes; absolute_stages: in every stage (PVT); "
        "cpe: depthwise 3x3 before every block; cpe_once: after the first of every stage (Twins)",
    )  # fmt: skip
    token_position: bool = option(
        True, read_flag, "with absolute positions, those of the tokens beside the map"
    )
    stage_norms: bool = option(False, read_flag, "layer norm at the end of every stage (PVT v2)")
    final_norm: bool = option(True, read_flag, "layer norm before pooling")
    norm_after_pool: bool = option(False, read_flag, "the final norm after pooling (MaxViT)")
    pool: str = option(
        "mean", choice("mean", "token"), "token: the class token, or the mean of the messengers"
    )
    head: str = option(
        "linear", choice("linear", "tanh"), "tanh: a layer with tanh before the classifier (MaxViT)"
    )
    head_bias: bool = option(True, read_flag, "biases of the classifier")
    out_norms: bool = option(False, read_flag, "a layer norm on each level of features()")
    small_maps: str = option(
        "pad",
        choice(*SMALL_MAPS),
        "windows larger than the map: padded, or shrunk on both axes (the authors) or each (timm)",
    )
    drop_path: float = option(0.0, _read_rate, "stochastic depth of the last block, from 0 up")

    def __post_init__(self) -> None:
        read_fields(self, "a backbone")
        for reason in self._refusals():
            raise SpecError(f"{one_line(self.name)}: {reason}")

    def _refusals(self) -> Iterator[str]:
        """Why no backbone has these fields together."""
        stages, stem = self.stages, self.stem
        if not 1 <= len(stages) <= MOST_STAGES:
            yield f"{len(stages)} stages; a backbone has 1 to {MOST_STAGES}"
        if any(not stage.mixers for stage in stages):
            yield "a stage has no mixers"
        if self.first_downsample and self.patch_size % 2:
            yield (
                f"patch_size={self.patch_size}: the first stage halves the map, too, by "
                f"downsample={self.downsample}; take an even one"
            )
        if stem == "cross_scale" and (self.stem_stride % 2 or self.stem_width % 8):
            yield (
                "stem=cross_scale has an even stride and eighths of its width; add patch_size=4 "
                "and a 1.dim that 8 divides"
            )
        if self.downsample == "cross_scale" and any(stage.dim % 2 for stage in stages[1:]):
            yield "downsample=cross_scale halves even widths"
        if stem in ("conv_relu6", "two_convs") and self.stem_stride != 4:
            size = 8 if self.first_downsample else 4
            yield f"stem={stem} has two strides of 2; add patch_size={size}"
        with_tokens = any(stage.tokens or stage.messenger for stage in stages)
        if with_tokens and "conv" in self.mlp:
            yield f"mlp={self.mlp} needs a map, and tokens stand beside it; add mlp=gelu"
        if self.pool == "token" and not (stages[-1].tokens or stages[-1].messenger):
            yield "pool=token reads the last stage, which has no tokens; add pool=mean"
        for number, (stage, after) in enumerate(pairwise(stages), start=1):
            sizes = [each.messenger.size for each in (stage, after) if each.messenger is not None]
            if len(set(sizes)) > 1:
                yield (
                    f"stage {number + 1} goes on with the messengers of stage {number}, whose "
                    "windows have another size; give both one"
                )

    # -- sizes ---------------------------------------------------------------------------

    @property
    def first_downsample(self) -> bool:
        """True if the first stage begins with a downsampling, too."""
        return self.downsample in ("mbconv", "mbconv_even")

    @property
    def stem_stride(self) -> int:
        """Pixels a side that one token of the stem's map stands for."""
        return self.patch_size // 2 if self.first_downsample else self.patch_size

    @property
    def stem_width(self) -> int:
        """Channels of the stem's map."""
        own = self.stem_dim if self.first_downsample else None
        return own or self.stages[0].dim

    def stem_grid(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the stem's map, which is that of the first stage without a downsampling."""
        h, w = (-(-side // self.stem_stride) for side in img_size)
        return h, w

    def grids(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(h, w) of every stage's map in tokens, for images of (height, width) pixels.

        Every stride rounds up.
        """
        h, w = (-(-side // self.patch_size) for side in img_size)
        return [(-(-h // 2**i), -(-w // 2**i)) for i in range(len(self.stages))]

    def pooled_grid(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the map that the head pools: the last stage's, or that of its tokens."""
        grid, last = self.grids(img_size)[-1], self.stages[-1]
        if self.pool == "mean":
            return grid
        return (1, 1) if last.messenger is None else last.messenger.windows(*grid)

    def goes_on(self, i: int) -> bool:
        """True if the messengers of stage i (from 0) go on into the next stage."""
        last = i + 1 == len(self.stages)
        return not last and None not in (self.stages[i].messenger, self.stages[i + 1].messenger)

    def resolve(self, img_size: tuple[int, int] | None = None) -> BackboneSpec:
        """The spec with windows shrunk for images of this size, and small_maps=pad from then on."""
        if self.small_maps == "pad":
            return self
        size = img_size or self.img_size
        stages = []
        for stage, (h, w) in zip(self.stages, self.grids(size), strict=True):
            mixers = tuple(mixer.shrink(h, w, self.small_maps) for mixer in stage.mixers)
            stages.append(replace(stage, mixers=mixers))
        return replace(self, stages=tuple(stages), small_maps="pad", img_size=size)

    # -- text ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data (numbers, text, lists) that `from_dict` reads back to an equal spec.

        Returns:
            A dict of every field; "stages" is a list of dicts, and mixers are in the notation.

        Example:
            >>> from backbones import parse
            >>> parse("swin_t/1=window:size=8+full").to_dict()["stages"][0]["mixers"]
            ['window:size=8', 'full']
        """
        data = _plain(self)
        data["stages"] = [
            {**_plain(stage), "mixers": [str(mixer) for mixer in stage.mixers]}
            for stage in self.stages
        ]
        return data


def _plain(spec: Any) -> dict[str, Any]:
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def fields_of(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]
