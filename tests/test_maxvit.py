"""MaxViT beside timm's and torchvision's own models, and the parts that it brought along."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from test_golden import build, errors
from tiny import create, error, images, randomise
from torch import nn

import backbones
from analysis.papers import dense_heads
from backbones import convert, weights
from backbones.export import one_graph
from backbones.names.key_rules import find_back
from backbones.parts.head import TanhLayer
from backbones.parts.mbconv import MBConv
from backbones.parts.mlp import DropPath
from backbones.specs import variants
from backbones.weights import Adapt, reference_models
from training.objectives.simmim import MaskedImages
from transom.errors import SpecError

pytest.importorskip("timm")
pytest.importorskip("torchvision")

SMALL = "stages=2/1.dim=16/2.dim=32/1.heads=2/2.heads=4/num_classes=7/1.depth=4/2.depth=6"
MIXERS = {
    "maxvit_timm": ["shuffle:size={}"] * 2,
    "maxvit_torchvision": [
        "shuffle:size={},qk_scale=0.25",
        f"shuffle:size={{}},qk_scale={32**-0.5}",
    ],
}
STEMS = {"maxvit_timm": "stem_dim=8", "maxvit_torchvision": "stem_dim=16"}
VARIANTS = {"maxvit_timm": "maxvit_t", "maxvit_torchvision": "maxvit_t_torchvision"}


def small(source: str, *edits: str, size: str = "3"):
    """The spec of a small model that a library builds, too."""
    one, two = (mixer.format(size) for mixer in MIXERS[source])
    text = "/".join([VARIANTS[source], SMALL, STEMS[source], f"1={one}", f"2={two}", *edits])
    return backbones.parse(text)


def pair(spec, source: str, seed: int = 0):
    """(ours, theirs) in float64 with the same weights, every one drawn anew."""
    theirs = randomise(reference_models.reference_model(source, spec, None), seed).double().eval()
    ours = weights.load(spec, theirs.state_dict(), source).model
    return ours.double().eval(), theirs


# -- the libraries' models ---------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("size", "window"), [
    ((48, 48), "3"), ((48, 72), "3"), ((47, 72), "3"), ((32, 48), "2x3"), ((24, 24), "3"),
])  # fmt: skip
def test_equals_timm_in_float64(size, window):
    """Also where the stem's pads stand on both sides: an odd image."""
    ours, theirs = pair(small("maxvit_timm", size=window), "maxvit_timm")
    x = images(2, 3, *size).double()
    assert error(ours(x), theirs(x)) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("size", ["48", "72", "47"])  # theirs cuts square maps only
def test_equals_torchvision_in_float64(size):
    spec = small("maxvit_torchvision", f"img_size={size}")
    ours, theirs = pair(spec, "maxvit_torchvision")
    x = images(2, 3, *spec.img_size).double()
    assert error(ours(x), theirs(x)) < 1e-12


def test_training_steps_equal_timms():
    """Batch statistics and gradients, in training mode."""
    ours, theirs = pair(small("maxvit_timm"), "maxvit_timm")
    x, logits = images(3, 3, 48, 48).double(), []
    for model in (ours, theirs):
        logits.append(model.train()(x))
        logits[-1].square().sum().backward()
    assert error(*logits) < 1e-11
    moved = weights.convert(ours, {n: p.grad for n, p in theirs.named_parameters()} | {
        name: b for name, b in theirs.state_dict().items() if "running" in name or "num_b" in name
    }, "maxvit_timm")  # fmt: skip
    for name, parameter in ours.named_parameters():
        assert error(parameter.grad, moved[name]) < 1e-9, name
    # timm's momentum is 0.1, the authors' 0.01: of one batch a tenth of the way
    start = randomise(reference_models.reference_model("maxvit_timm", ours.spec, None), 0)
    began = start.state_dict()["stem.norm1.running_mean"].double()
    ten_times = 10 * (ours.state_dict()["stem.norm1.running_mean"] - began)
    assert error(ten_times, theirs.state_dict()["stem.norm1.running_mean"] - began) < 1e-12


@pytest.mark.parametrize("source", MIXERS)
def test_names_there_and_back(source):
    """Bit by bit; timm's spec is told by the shapes, torchvision's scale only by its variant."""
    spec = small(source, "img_size=48")
    theirs = randomise(reference_models.reference_model(source, spec, None), 3).state_dict()
    if source == "maxvit_timm":
        ours = weights.load(None, theirs).model
        assert ours.spec.stages == spec.stages
        back = weights.export(ours, source)
        assert all(torch.equal(back[key], value) for key, value in theirs.items())
    else:
        with pytest.raises(weights.WeightsError, match="give --spec NOTATION"):
            weights.load(None, theirs)
        back = {}
        ours = weights.load(spec, theirs).model
        for name, tensor in ours.state_dict().items():
            back[find_back(source, name)[1]] = tensor
        assert {key for key in theirs if not key.endswith("_index")} == back.keys()
        assert all(torch.equal(theirs[key], value) for key, value in back.items())


@pytest.mark.parametrize("source", MIXERS)
def test_convert_checks_against_the_library(source, tmp_path, capsys):
    spec = small(source, "img_size=48")
    state = randomise(reference_models.reference_model(source, spec, None), 1).state_dict()
    file, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file(state, file)
    text = "/".join([VARIANTS[source], *spec.name.split("/")[1:]])
    assert convert.main([str(file), "--spec", text, "--to", str(out), "--check"]) == 0
    told = capsys.readouterr().out
    assert "check: equal" in told and f"names of {source}" in told
    text = text.replace("img_size=48", "img_size=40")
    with pytest.raises(weights.WeightsError, match=r"--check: .*divisible"):
        convert.main([str(file), "--spec", text, "--to", str(out), "--check"])


def test_convert_prepares_fine_tuning(tmp_path, capsys):
    """A larger image with larger windows: every table is resized, and a new head starts fresh."""
    file, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    theirs = reference_models.reference_model("maxvit_timm", small("maxvit_timm"), None)
    save_file(theirs.state_dict(), file)
    asked = [str(file), "--to", str(out), "--img-size", "64", "--window", "4", "--num-classes", "3"]
    assert convert.main(asked) == 0
    told = capsys.readouterr().out
    assert "10 resized, 2 fresh" in told and "shuffle:size=4" in told and "img_size=64" in told


@torch.no_grad()
def test_a_larger_window_is_resized_as_timm_does():
    """Tables of 3x3 windows for 4x4, by timm's own loading."""
    from timm.models.maxxvit import checkpoint_filter_fn

    spec, large = small("maxvit_timm"), small("maxvit_timm", "img_size=64", size="4")
    state = randomise(reference_models.reference_model("maxvit_timm", spec, None), 2).state_dict()
    theirs = reference_models.reference_model("maxvit_timm", large, None)
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))
    ours = weights.load(large, state, "maxvit_timm", how=Adapt(resize="timm")).model.eval()
    x = images(1, 3, 64, 64)
    assert error(ours(x), theirs.eval()(x)) < 1e-5


# -- mistakes that load without complaint ------------------------------------------------------


def narrow_norms(model) -> None:
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-5


def gates_open(model) -> None:
    for part in model.modules():
        if isinstance(part, MBConv):
            part.excite.register_forward_hook(lambda _, __, out: torch.full_like(out, 30.0))


def tanh_left_out(model) -> None:
    model.pre_head.register_forward_hook(lambda layer, given, _: layer.fc(given[0]))


@pytest.mark.parametrize("mistake", [narrow_norms, gates_open, tanh_left_out])
def test_golden_outputs_tell_mistakes(mistake):
    model, io = build("maxvit/tf_sq64_w4")
    assert max(errors(model, io).values()) <= 1
    mistake(model)
    assert errors(model, io)["logits"] > 2


# -- numbers -----------------------------------------------------------------------------------

# timm's model counted by torch, in which two products with one-hot matrices make a bias table
COUNTED = {
    "maxvit_t": 5551836656, "maxvit_s": 11589125352, "maxvit_b": 23922314520,
    "maxvit_l": 43519736864,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_macs_are_timms_without_one_hot_products(name):
    row, side = variants.get(name), 7
    steps = 2 * side - 1
    one_hot = side**2 * steps**2 + side**4 * steps
    heads = sum(stage.heads * stage.depth for stage in row.spec.stages)
    assert row.macs + heads * one_hot == COUNTED[name]


def test_detectors_have_no_layer_before_a_classifier():
    model = dense_heads.backbone("maxvit_t", True)
    assert not [name for name, _ in model.named_parameters() if "head" in name]


# -- parts -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (5, 6), (7, 3)])
def test_averages_of_a_shortcut_leave_pads_out(size):
    """An odd map: TensorFlow's average is that of what is inside."""
    layer = create("maxvit").stages[1].downsample
    inside = layer._averaged(torch.ones(1, 8, *size))
    assert inside.shape[2:] == tuple(-(-side // 2) for side in size)
    assert torch.equal(inside, torch.ones_like(inside))


@torch.no_grad()
def test_one_graph_takes_odd_and_even_maps():
    """Pads of a free size are computed, not decided once."""
    layer = create("maxvit").stages[1].downsample
    free = {n: torch.export.Dim(name, min=2, max=64) for n, name in ((2, "h"), (3, "w"))}
    with one_graph():
        graph = torch.export.export(
            layer, (images(1, 8, 8, 9),), dynamic_shapes=(free,),
            prefer_deferred_runtime_asserts_over_guards=True,
        ).module()  # fmt: skip
    for size in ((8, 9), (7, 8), (3, 3), (10, 12)):
        x = images(1, 8, *size)
        assert error(graph(x), layer(x)) < 1e-6


def test_a_bottleneck_stands_before_every_second_later_block():
    model = create("maxvit", "3.depth=5")
    for stage in model.stages:
        assert isinstance(stage.downsample, MBConv)
        found = [i for i, block in enumerate(stage.blocks) if block.conv is not None]
        assert found == list(range(2, len(stage.blocks), 2))
    assert all(block.conv is None for block in create("swin", "3.depth=5").stages[2].blocks)


def test_bottlenecks_drop_their_paths():
    """With the rate of the block that they stand before; the shortcut stays."""
    model = create("maxvit", "drop_path=0.8")
    rates = {name: part.rate for name, part in model.named_modules() if isinstance(part, DropPath)}
    assert rates["stages.3.downsample.drop_path"] == rates["stages.3.blocks.0.drop_path"] > 0
    assert rates["stages.0.blocks.2.conv.drop_path"] == rates["stages.0.blocks.2.drop_path"] > 0
    layer = model.stages[3].downsample.train()
    layer.drop_path.rate = 0.999
    x = images(2, 16, 4, 6)
    assert torch.equal(layer(x), layer.shortcut(layer._averaged(x)))


@torch.no_grad()
@pytest.mark.parametrize("stem", ["patch", "overlap", "conv_bn", "conv_bn_even"])
@pytest.mark.parametrize("downsample", ["mbconv", "mbconv_even", "merge"])
@pytest.mark.parametrize("size", [(1, 1), (33, 46), (64, 7)])
def test_grids_are_right_with_a_downsampling_in_the_first_stage(stem, downsample, size):
    model = create("swin", f"stem={stem}", f"downsample={downsample}", "stem_dim=12", "2.depth=3")
    x = images(1, 3, *size)
    assert tuple(model.stem(x).shape[2:]) == model.spec.stem_grid(size)
    maps = model.features(x)
    assert [tuple(level.shape[2:]) for level in maps] == model.spec.grids(size)


def test_strides_that_cannot_be_are_refused():
    for text, way_out in (
        ("swin_t/downsample=mbconv/patch_size=5", "take an even one"),
        ("swin_t/downsample=mbconv/stem=conv_relu6", "add patch_size=8"),
    ):
        with pytest.raises(SpecError, match=way_out):
            backbones.parse(text)


@torch.no_grad()
def test_the_norm_comes_after_pooling():
    """The head takes tanh of a layer of the normed mean; forward_features is not normed."""
    model, x = create("maxvit"), images(2, 3, 40, 56)
    last = model.features(x)[-1]
    assert torch.equal(model.forward_features(x), last)
    assert isinstance(model.pre_head, TanhLayer)
    pooled = torch.tanh(model.pre_head.fc(model.norm(last.mean((2, 3)))))
    torch.testing.assert_close(model(x), model.head(pooled))
    bare = backbones.create(model.spec, head_bias=False)
    assert bare.head.bias is None


@torch.no_grad()
def test_timms_interface_pools_before_the_norm():
    from backbones.timm_models import TimmBackbone

    text = "maxvit_t/stages=2/1=shuffle:size=3/2=shuffle:size=3"
    model, x = randomise(TimmBackbone(text), 0).eval(), images(1, 3, 48, 48)
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))
    plain = backbones.create(text).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), model(x))
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    assert model(x).shape == (1, 5)
    model.reset_classifier(0)
    assert torch.equal(model(x), before)


@torch.no_grad()
def test_patches_are_hidden_behind_a_finer_stem():
    """SimMIM's cells of 16 pixels are 8x8 tokens of a stem's map that the first stage halves."""
    model = MaskedImages(create("maxvit"), cell=16, seed=0)
    hidden = torch.tensor([[[True, False, False], [False, False, True]]])
    model._hidden = hidden
    found = model.encoder.stem(images(1, 3, 32, 48))  # (1, 12, 16, 24)
    masked = (found == model.mask_token[:, None, None]).all(1)
    assert torch.equal(masked, hidden.repeat_interleave(8, 1).repeat_interleave(8, 2))
