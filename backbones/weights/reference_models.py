"""Reference models: those of timm, torchvision or transformers from which weights are converted.

The libraries are imported only to compare outputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
    build = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}.get(source)
    if build is None:
        known = ", ".join(LIBRARIES)
        raise WeightsError(
            f"--check: no library builds {source!r} (only: {known}); give stored inputs and logits "
            "of the source model, --check IO.safetensors"
        )
    try:
        return build(spec, None if state is None else dict(state)).eval()
    except ImportError as error:
        raise WeightsError(f"--check: {source} is not installed ({error}); install it") from None
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


def difference(ours: nn.Module, theirs: nn.Module, image: Tensor) -> tuple[float, float]:
    """(largest absolute difference, largest logit of theirs) on one input."""
    with torch.no_grad():
        found, wanted = ours.eval()(image), theirs.eval()(image)
    if found.shape != wanted.shape:
        return float("inf"), 1.0
    return float((found - wanted).abs().amax()), float(wanted.abs().amax())
