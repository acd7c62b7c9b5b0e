"""Our feature maps in detectors and segmenters of other libraries: forward and a training step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from tiny import error, images, notation, randomise
from torch import Tensor, nn

import backbones.timm_models  # registers the names
from analysis.papers import dense_heads
from transom.errors import SpecError

SPEC = notation("swin")
RECIPES = (Path(__file__).resolve().parent.parent / "docs" / "recipes.md").read_text()


def recipe(title: str) -> str:
    """The Python of a section of docs/recipes.md, on a small body."""
    section = re.split(r"^## ", RECIPES, flags=re.M)
    (text,) = [part for part in section if part.startswith(title + "\n")]
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    assert code and "not run here" not in text
    return code


def run_recipe(title: str, **swaps: str) -> dict:
    """Runs it as it stands, but with small bodies where a spec can be given."""
    code = recipe(title)
    normed = {'"swin_t/out_norms=true': f'"{SPEC}/out_norms=true'}
    for old, new in {'"transom_swin_t"': f'"transom", spec="{SPEC}"', **normed, **swaps}.items():
        code = code.replace(old, new)
    names: dict = {}
    exec(code, names)
    return names


def assert_trained(part: nn.Module) -> None:
    """Every parameter of the stem and the stages; no decoder reads the head."""
    grads = [p.grad for name, p in part.named_parameters() if "stem" in name or "stages" in name]
    assert grads and all(g is not None and g.isfinite().all() for g in grads)
    assert any(float(g.abs().max()) > 0 for g in grads)


# -- torchvision -------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["torchvision: RetinaNet", "torchvision: Mask R-CNN"])
def test_torchvision_detectors(title):
    """The recipe, then a training step and a forward on images of two sizes."""
    detector = run_recipe(title)["detector"]
    detector.train()
    pictures = [images(3, 96, 128), images(3, 80, 100, seed=1)]
    boxes = torch.tensor([[10.0, 12.0, 60.0, 70.0], [5.0, 5.0, 40.0, 30.0]])
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[:, 12:60, 10:60] = 1
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks},
        {"boxes": boxes[:1], "labels": torch.tensor([1]), "masks": masks[:1, :80, :100]},
    ]
    losses = detector(pictures, targets)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert_trained(detector.backbone.body)
    norms = [p.grad for name, p in detector.named_parameters() if "out_norms" in name]
    assert len(norms) == 2 * len(detector.backbone.body.feature_info.channels())
    assert all(grad is not None for grad in norms)
    with torch.no_grad():
        found = detector.eval()(pictures)
    assert len(found) == 2 and {"boxes", "scores", "labels"} <= set(found[0])


def test_mask_rcnn_is_the_authors():
    """Backbone and heads of the published 48 M, and torchvision's background; the optimizer leaves
    out the 12 tables and the norms, and decays everything else."""
    code = recipe("torchvision: Mask R-CNN").replace("num_classes=5", "num_classes=81")
    names: dict = {}
    with torch.device("meta"):
        exec(code, names)
    detector = names["detector"]
    body = sum(p.numel() for p in detector.backbone.body.parameters())
    layers = dense_heads.layers("Mask R-CNN", [96, 192, 384, 768], [(200, 320)] * 4)
    counted, background = sum(layer.params for layer in layers), 4 * (1024 + 1) + (256 + 1)
    assert (body, counted, background) == (27_520_698, 20_273_904, 4_357)
    assert sum(p.numel() for p in detector.parameters()) == body + counted + background
    last = detector.backbone.body.model.stages[-1].blocks[-1]
    assert last.drop_path.rate == pytest.approx(0.1)
    maps = detector.backbone(torch.empty(1, 3, 64, 64, device="meta"))
    assert [m.shape[1:] for m in maps.values()] == [(256, s, s) for s in (16, 8, 4, 2, 1)]
    free, decayed = ({id(p) for p in group["params"]} for group in sorted(
        names["optimizer"].param_groups, key=lambda group: group["weight_decay"]
    ))  # fmt: skip
    for name, parameter in detector.named_parameters():
        assert (id(parameter) in free) == (name.endswith("table") or "norm" in name), name
    assert len(free) + len(decayed) == len(list(detector.parameters()))


def test_optimizer():
    """The recipe, on a small body: rates fall to the stem, the head has all of it."""
    names = run_recipe("Optimizer")
    groups, body = names["optimizer"].param_groups, names["body"]
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(names["segmenter"]["head"].bias)] == 6e-5
    assert rate[id(body.stem.conv.weight)] == pytest.approx(6e-5 * 0.9**9)
    sum(m.square().mean() for m in body.features(images(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in body.parameters())  # nothing that no map reads


@pytest.mark.parametrize("edits", [(), ("out_norms=true",)])
def test_frozen_stages(edits):
    """The recipe: no gradient for the stem and the first stages, their BN statistics stay; the
    rest trains and its statistics move."""
    spec = notation("pale", *edits)
    net = run_recipe("Frozen stages", **{f'"transom", spec="{SPEC}"': f'"transom", spec="{spec}"'})
    net = net["net"]
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    inner, mark = ("model.", ".") if edits else ("", "_")
    assert any(key.startswith(f"{inner}stages{mark}3.") for key in before)
    sum(m.square().mean() for m in net(images(2, 3, 64, 64))).backward()
    frozen = tuple(f"{inner}{part}." for part in ("stem", f"stages{mark}0", f"stages{mark}1"))
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    for name, value in net.state_dict().items():
        if name in before:
            assert torch.equal(value, before[name]) == name.startswith(frozen), name


# -- segmentation_models_pytorch ---------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet", "Segformer", "DPT"])
def test_smp_decoders(decoder):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, decoder)("tu-transom", spec=SPEC, encoder_weights=None, classes=3)
    loss = model(images(2, 3, 64, 96)).square().mean()
    assert loss.isfinite()
    loss.backward()
    assert_trained(model.encoder)
    with torch.no_grad():
        assert model.eval()(images(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_smp_takes_every_variant_by_name():
    """`tu-transom_swin_t`, other channels and encoder arguments; the recipe itself."""
    pytest.importorskip("segmentation_models_pytorch")
    model = run_recipe("segmentation_models_pytorch")["model"]
    with torch.no_grad():
        assert model.eval()(images(1, 3, 64, 64)).shape == (1, 5, 64, 64)


@pytest.mark.parametrize("decoder", ["PAN", "DeepLabV3"])
def test_smp_decoders_that_dilate_are_refused(decoder):
    """They ask the encoder for another output_stride."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(SpecError, match=r"output_stride=\d+: stages keep their strides"):
        getattr(smp, decoder)("tu-transom", spec=SPEC, encoder_weights=None)


# -- transformers ------------------------------------------------------------------------------


TRANSFORMERS = ["transformers", "transformers: a hybrid"]


@pytest.mark.parametrize("title", TRANSFORMERS)
def test_transformers_upernet_round_trip(title, tmp_path):
    """The recipe, saved and loaded: every tensor and every map of the body bitwise equal, and so
    the logits, once the loaded tensors lie in memory as made ones do; then a training step."""
    pytest.importorskip("transformers")
    own = '"transom_swin_t"'
    names = run_recipe(title, **{'"upernet"': repr(str(tmp_path / "m")), own: own})
    mixers = {type(m).__name__ for m in names["model"].modules()}
    assert ("PaleMixer" in mixers) == (title == TRANSFORMERS[1])
    model, again = names["model"].eval(), names["again"].eval()
    kept, loaded = model.state_dict(), again.state_dict()
    assert set(kept) == set(loaded) and all(torch.equal(loaded[k], kept[k]) for k in kept)
    with torch.no_grad():
        x = images(1, 3, 64, 96)
        maps = model.backbone(x).feature_maps, again.backbone(x).feature_maps
        assert all(map(torch.equal, *maps)) and len(maps[0]) == 4
        first, second = model(x).logits, again(x).logits
        assert first.shape == (1, 4, 64, 96) and error(second, first) <= 1e-5
        assert torch.equal(model(x).logits, first)
        # those of a mapped file start anywhere, and 1x1 convolutions then sum in another order
        for parameter in again.parameters():
            parameter.data = parameter.data.clone()
        assert torch.equal(again(x).logits, first)
    model.train()
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    model(images(2, 3, 64, 64), labels=labels).loss.backward()
    assert_trained(model.backbone)


# -- what they all read ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["swin", "cswin", "pale", "hybrid"])
def test_maps_are_what_every_library_reads(family):
    """NCHW, strides 4 to 32, declared channels; the wrapped net's maps are ours, bit by bit."""
    net = timm.create_model("transom", spec=notation(family), features_only=True)
    net = randomise(net).eval()
    x: Tensor = images(1, 3, 64, 96)
    plain = backbones.create(notation(family)).eval()
    state = {re.sub(r"^stages_", "stages.", key): v for key, v in net.state_dict().items()}
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith(("norm.", "head.")) for key in missing)
    with torch.no_grad():
        maps, wanted = net(x), plain.features(x)
    assert all(map(torch.equal, maps, wanted))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // r, 96 // r)
        for c, r in zip(net.feature_info.channels(), net.feature_info.reduction(), strict=True)
    ]
