"""Reference models: those of timm, torchvision or transformers from which weights are converted.

The libraries are imported only to compare outputs.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from attention.configs.reduced import SRAConfig
from attention.configs.windows import TokenMLPConfig
from backbones.files.storage import WeightsError
from backbones.specs.spec import BackboneSpec
from backbones.weights.resize import Size, extent_of
from transom.errors import cause_of, one_line

LIBRARIES = ("timm", "torchvision", "transformers")


def reference_model(
    source: str, spec: BackboneSpec, state: Mapping[str, Tensor] | None
) -> nn.Module:
    """The model of another library with weights under that library's names, in eval mode.

    spec: before `resolve`, with nominal windows.  state: None for a random initialisation.  Raises
    WeightsError for a library that is not installed and for what it cannot build or load.
    """
    build = BUILDERS.get(source)
    if build is None:
        known = ", ".join(BUILDERS)
        raise WeightsError(
            f"--check: no library builds {source!r} (only: {known}); give stored inputs and logits "
            "of the source model, --check IO.safetensors"
        )
    try:
        return build(spec, None if state is None else dict(state)).eval()
    except ImportError as error:
        name = LIBRARY_OF.get(source, source)
        raise WeightsError(f"--check: {name} is not installed ({error}); install it") from None
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        cause = one_line(cause_of(error))
        raise WeightsError(f"--check: {source} cannot build this model: {cause}") from None


def _nominal_window(spec: BackboneSpec) -> Size:
    """The window that all stages share before any shrinks."""
    return max(extent_of(stage.mixers[0]) for stage in spec.stages)


def _pretrained(spec: BackboneSpec) -> list[int]:
    found = [getattr(stage.mixers[0], "pretrained_window", None) for stage in spec.stages]
    return [size[0] if size else 0 for size in found]


def _body(spec: BackboneSpec) -> tuple[int, list[int], list[int], float]:
    """(dim, depths, heads, MLP ratio), which these libraries grow by doubling."""
    stages = spec.stages
    return (
        stages[0].dim, [stage.depth for stage in stages], [stage.heads for stage in stages],
        stages[0].mlp_ratio,
    )  # fmt: skip


def _timm(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    dim, depths, heads, ratio = _body(spec)
    fields: dict[str, Any] = {
        "img_size": spec.img_size, "patch_size": spec.patch_size, "in_chans": spec.in_channels,
        "num_classes": spec.num_classes, "embed_dim": dim, "depths": depths, "num_heads": heads,
        "window_size": _nominal_window(spec), "mlp_ratio": ratio,
    }  # fmt: skip
    v2 = spec.norm == "res_post"
    model: nn.Module = (
        SwinTransformerV2(**fields, pretrained_window_sizes=tuple(_pretrained(spec)))
        if v2
        else SwinTransformer(**fields)
    )
    if state is not None:
        model.load_state_dict(state)
    return model


def _pvt_v2(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from timm.models import pvt_v2

    model = pvt_v2.PyramidVisionTransformerV2(
        **_pyramid(spec), linear=all(mixer.pool == (7, 7) for mixer in _reduced(spec))
    )
    if state is not None:
        model.load_state_dict(pvt_v2.checkpoint_filter_fn(state, model))
    return model


def _twins(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from timm.models.twins import Twins

    fields = _pyramid(spec) | {"img_size": spec.img_size, "patch_size": spec.patch_size}
    if all(len(stage.mixers) == 2 for stage in spec.stages):  # SVT
        fields["wss"] = [extent_of(stage.mixers[0])[0] for stage in spec.stages]
    model: nn.Module = Twins(**fields)
    if state is not None:
        model.load_state_dict(state)
    return model


def _reduced(spec: BackboneSpec) -> list[SRAConfig]:
    """The last mixer of every stage, which timm's pyramids reduce.  Raises ValueError."""
    found = [stage.mixers[-1] for stage in spec.stages]
    configs = [mixer for mixer in found if isinstance(mixer, SRAConfig)]
    if len(configs) < len(found):
        raise ValueError("a stage without sra")
    return configs


def _pyramid(spec: BackboneSpec) -> dict[str, Any]:
    return {
        "in_chans": spec.in_channels, "num_classes": spec.num_classes,
        "embed_dims": [stage.dim for stage in spec.stages],
        "depths": [stage.depth for stage in spec.stages],
        "num_heads": [stage.heads for stage in spec.stages],
        "mlp_ratios": [stage.mlp_ratio for stage in spec.stages],
        "sr_ratios": [mixer.ratio[0] for mixer in _reduced(spec)],
    }  # fmt: skip


def _vit(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        **_plain(spec), init_values=spec.layer_scale, no_embed_class=not spec.token_position,
        reg_tokens=spec.stages[0].tokens - 1,
    )
    if state is not None:
        authors = re.compile(r"gamma_([12])$")  # in their files, of DeiT III
        model.load_state_dict({authors.sub(r"ls\1.gamma", key): t for key, t in state.items()})
    return model


def _mixer(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    fields, (stage,) = _plain(spec), spec.stages
    config = cast("TokenMLPConfig", stage.mixers[0])
    fields["num_blocks"] = fields.pop("depth")
    del fields["num_heads"]
    between = (config.hidden or 0) / stage.dim, fields.pop("mlp_ratio")
    model: nn.Module = MlpMixer(**fields, mlp_ratio=between)
    if state is not None:
        model.load_state_dict(state)
    return model


def _plain(spec: BackboneSpec) -> dict[str, Any]:
    """Arguments of timm's models of one map, which raise ValueError for several."""
    (stage,) = spec.stages
    return {
        "img_size": spec.img_size, "patch_size": spec.patch_size, "in_chans": spec.in_channels,
        "num_classes": spec.num_classes, "embed_dim": stage.dim, "depth": stage.depth,
        "num_heads": stage.heads, "mlp_ratio": stage.mlp_ratio,
    }  # fmt: skip


def _vit_torchvision(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    (stage,), (h, w) = spec.stages, spec.img_size
    if h != w:
        raise ValueError(f"images of {h}x{w} are not square")
    model: nn.Module = VisionTransformer(
        image_size=h, patch_size=spec.patch_size, num_layers=stage.depth, num_heads=stage.heads,
        hidden_dim=stage.dim, mlp_dim=stage.hidden, num_classes=spec.num_classes,
    )  # fmt: skip
    if state is not None:  # which has the older names, too
        model.load_state_dict(state)
    return model


def _torchvision(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from torchvision.models import swin_transformer as vision

    dim, depths, heads, ratio = _body(spec)
    v2: dict[str, Any] = {}
    if spec.norm == "res_post":
        v2 = {"block": vision.SwinTransformerBlockV2, "downsample_layer": vision.PatchMergingV2}
    model = vision.SwinTransformer(
        patch_size=[spec.patch_size] * 2, embed_dim=dim, depths=depths, num_heads=heads,
        window_size=list(_nominal_window(spec)), mlp_ratio=ratio,
        num_classes=spec.num_classes, **v2,
    )  # fmt: skip
    if state is not None:
        model.load_state_dict(state)
    return model


def _maxvit_timm(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg

    window = _nominal_window(spec)
    config = MaxxVitCfg(
        embed_dim=tuple(stage.dim for stage in spec.stages), depths=_pairs(spec),
        block_type=("M",) * len(spec.stages), stem_width=spec.stem_width, stem_bias=True,
        head_hidden_size=spec.stages[-1].dim,
        conv_cfg=MaxxVitConvCfg(norm_eps=1e-3, padding="same", act_layer="gelu_tanh"),
        transformer_cfg=MaxxVitTransformerCfg(
            dim_head=_head_dim(spec), head_first=False, rel_pos_type="bias_tf", norm_eps=spec.eps,
            window_size=window, grid_size=window, act_layer="gelu_tanh",
        ),
    )  # fmt: skip
    model: nn.Module = MaxxVit(
        config, img_size=spec.img_size, in_chans=spec.in_channels, num_classes=spec.num_classes
    )
    if state is not None:
        model.load_state_dict(state)
    return model


def _maxvit_torchvision(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    model: nn.Module = MaxVit(
        input_size=spec.img_size, stem_channels=spec.stem_width,
        partition_size=_nominal_window(spec)[0],
        block_channels=[stage.dim for stage in spec.stages], block_layers=list(_pairs(spec)),
        head_dim=_head_dim(spec), stochastic_depth_prob=0, num_classes=spec.num_classes,
    )  # fmt: skip
    if state is not None:
        model.load_state_dict(state)
    return model


def _pairs(spec: BackboneSpec) -> tuple[int, ...]:
    """Depths in blocks of theirs, which are two of ours."""
    return tuple(stage.depth // 2 for stage in spec.stages)


def _head_dim(spec: BackboneSpec) -> int:
    return spec.stages[0].dim // spec.stages[0].heads


class _Logits(nn.Module):
    """A model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits  # (b, num_classes)


def _transformers(spec: BackboneSpec, state: dict[str, Any] | None) -> nn.Module:
    # optional, and so not known to a type checker that runs without it
    transformers = importlib.import_module("transformers")
    dim, depths, heads, ratio = _body(spec)
    fields: dict[str, Any] = {
        "image_size": spec.img_size[0], "patch_size": spec.patch_size,
        "num_channels": spec.in_channels, "embed_dim": dim, "depths": depths, "num_heads": heads,
        "window_size": _nominal_window(spec)[0], "mlp_ratio": ratio,
        "num_labels": spec.num_classes,
        "use_absolute_embeddings": spec.position == "absolute", "layer_norm_eps": 1e-5,
    }  # fmt: skip
    cls, config = transformers.SwinForImageClassification, transformers.SwinConfig
    if spec.norm == "res_post":
        cls, config = transformers.Swinv2ForImageClassification, transformers.Swinv2Config
        fields["pretrained_window_sizes"] = _pretrained(spec)
    if state is None:
        return _Logits(cls(config(**fields)))
    # not load_state_dict: only this renames the keys of files that 4.x wrote
    return _Logits(cls.from_pretrained(None, config=config(**fields), state_dict=state))


# by the source of the weights; timm reads the names of PVT v2's authors, and has those of Twins'
BUILDERS: dict[str, Callable[[BackboneSpec, dict[str, Any] | None], nn.Module]] = {
    "timm": _timm, "torchvision": _torchvision, "transformers": _transformers,
    "maxvit_timm": _maxvit_timm, "maxvit_torchvision": _maxvit_torchvision,
    "pvt_v2": _pvt_v2, "pvt_v2_timm": _pvt_v2, "twins": _twins,
    "vit": _vit, "vit_torchvision": _vit_torchvision, "mixer": _mixer,
}  # fmt: skip
LIBRARY_OF = {
    "maxvit_timm": "timm", "maxvit_torchvision": "torchvision",
    "pvt_v2": "timm", "pvt_v2_timm": "timm", "twins": "timm",
    "vit": "timm", "vit_torchvision": "torchvision", "mixer": "timm",
}  # fmt: skip


def difference(ours: nn.Module, theirs: nn.Module, image: Tensor) -> tuple[float, float]:
    """(largest absolute difference, largest logit of theirs) on one input."""
    with torch.no_grad():
        found, wanted = ours.eval()(image), theirs.eval()(image)
    if found.shape != wanted.shape:
        return float("inf"), 1.0
    return float((found - wanted).abs().amax()), float(wanted.abs().amax())
