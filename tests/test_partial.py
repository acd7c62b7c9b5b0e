"""Weights into anything they fit: one stage exchanged and the rest kept, whatever fits, names
dropped and exchanged, models of other libraries as sources."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file
from test_peers import small_torchvision, theirs
from tiny import create, images, notation, randomise, state_hash

import backbones
from backbones import convert, weights
from backbones.files.storage import WeightsError
from backbones.specs.notation import parse
from backbones.weights.partial import dropped, renamed, replaced
from backbones.weights.resize import Adapt
from transom.errors import SpecError

timm = pytest.importorskip("timm")


def swin_timm(**fields):
    from timm.models.swin_transformer import SwinTransformer

    small = {
        "embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "num_classes": 10,
        "img_size": 128, "window_size": 4,
    }  # fmt: skip
    return SwinTransformer(**{**small, **fields})


OURS = "swin_t/num_classes=10/img_size=128/3.depth=2/small_maps=shrink_axis" + "".join(
    f"/{i}.dim={8 * 2**i}/{i}.heads={2 ** (i - 1)}/{i}=window:size=4" for i in range(1, 5)
)


def stages(model, x, count: int):
    """The maps of the first stages."""
    maps = []
    with torch.no_grad():
        x = model.eval().stem(x)
        for stage in model.stages[:count]:
            maps.append(x := stage(x))
    return maps


def by_status(report):
    found: dict = {}
    for row in report:
        found.setdefault(row["status"], set()).add(row["tensor"] or row["from"])
    return found


# -- what differs is replaced ------------------------------------------------------------------


@pytest.mark.parametrize("library", ["timm", "torchvision", "state dict", "ours", "file"])
def test_one_stage_exchanged(library, tmp_path):
    """timm's or torchvision's Swin in a hybrid: the maps of the stages before are the source's to
    the bit, norms and MLPs of the exchanged stage are kept, its mixers alone start fresh."""
    pytest.importorskip("torchvision")
    text = OURS
    if library == "torchvision":
        peer = randomise(small_torchvision("swin", (128, 128), 4))
        text = notation_of(weights.load(None, peer, img_size=(128, 128)).model)
    else:
        peer = randomise(swin_timm())
    given = peer
    if library == "state dict":
        given = peer.state_dict()
    elif library == "ours":
        given = weights.load(text, peer).model
    elif library == "file":
        given = tmp_path / "theirs.safetensors"
        save_file(theirs(peer), given)
    whole = weights.load(text, peer).model
    hybrid, report = weights.load(text.replace("/3=window:size=4", "/3=pale:size=2"), given,
                                  partial="replaced")  # fmt: skip
    x = images(1, 3, 128, 128)
    for found, wanted in zip(stages(hybrid, x, 2), stages(whole, x, 2), strict=True):
        assert torch.equal(found, wanted)
    status = by_status(report)
    assert status.keys() <= {"loaded", "fresh", "left out"}
    assert all(re.match(r"stages\.2\.blocks\.[01]\.mixer\.", name) for name in status["fresh"])
    assert "stages.2.blocks.0.mixer.proj.weight" in status["fresh"]  # of equal shape, not equal use
    state, kept = hybrid.state_dict(), whole.state_dict()
    assert status["loaded"] | status["fresh"] == state.keys()
    for name in status["loaded"]:
        assert torch.equal(state[name], kept[name]), name


def notation_of(model):
    from backbones.specs.writing import to_notation

    text = to_notation(model.spec)
    for i in range(1, 5):  # written out, to be replaced
        if f"/{i}=" not in text:
            text += f"/{i}=window:size=4"
    return re.sub(r"/(\d)=window:size=4[^/]*", r"/\1=window:size=4", text)


def test_into_a_model_that_exists():
    """What starts fresh stays as the model has it; a failure changes nothing."""
    hybrid = create("hybrid")
    swin = create("swin", seed=3)
    before = dict(hybrid.state_dict())
    before = {name: tensor.clone() for name, tensor in before.items()}
    report = weights.load(hybrid, swin, partial="replaced").report
    status = by_status(report)
    for name in status["fresh"]:
        assert torch.equal(hybrid.state_dict()[name], before[name])
    digest = state_hash(hybrid)
    state = {k: v for k, v in swin.state_dict().items() if k != "stages.1.downsample.norm.weight"}
    spec_known = weights.export(small_swin(), "swin")
    for lacking in ("layers.0.downsample.norm.weight", "patch_embed.norm.bias"):
        state = {k: v for k, v in spec_known.items() if k != lacking}
        with pytest.raises(WeightsError, match="nothing for"):
            weights.load(hybrid, state, partial="replaced")
    state = {**spec_known, "norm.weight": spec_known["norm.weight"] * float("nan")}
    with pytest.raises(WeightsError, match="not finite"):
        weights.load(hybrid, state, partial="replaced")
    state = {**spec_known, "layers.0.blocks.0.gate": torch.ones(3)}
    with pytest.raises(WeightsError, match="no rule for layers"):
        weights.load(hybrid, state, partial="replaced")
    assert state_hash(hybrid) == digest


def small_swin():
    last = "4=window:size=2,shift=false"
    return create("swin", *(f"{i}=window:size=2" for i in range(1, 4)), last)


@pytest.mark.parametrize(
    ("edit", "places"),
    [
        ("2=pale:size=3", [r"stages\.1\.blocks\.[01]\.mixer\."]),
        ("2.depth=3", [r"stages\.1\.blocks\.2\."]),
        ("2.heads=4", [r"stages\.1\.blocks\.[01]\.mixer\."]),
        ("2.mlp_ratio=2", [r"stages\.1\.blocks\.[01]\.mlp\."]),
        ("2.dim=24", [r"stages\.1\.", r"stages\.2\.downsample\."]),
        ("num_classes=7", [r"head\."]),
        ("in_channels=4", [r"stem\."]),
        ("patch_size=8", [r"stem\."]),
        ("downsample=conv", [r"stages\.[123]\.downsample\."]),
        ("norm=res_post", [r"stages\.\d\.blocks\.\d\.norm[12]\."]),
        ("norm_layer=batch", [r"stages\.\d\.blocks\.\d\.norm[12]\."]),
        ("mlp=relu6", [r"stages\.\d\.blocks\.\d\.mlp\."]),
        ("local=3", [r"stages\.\d\.blocks\.\d\.local\."]),
        ("stem=conv_relu6", [r"stem\."]),
        ("stem=cross_scale", [r"stem\."]),
        ("downsample=cross_scale", [r"stages\.[123]\.downsample\."]),
        ("downsample=norm_conv", [r"stages\.[123]\.downsample\."]),
        ("stem=conv_bn", [r"stem\."]),
        ("downsample=mbconv", [r"stem\.", r"stages\.[0123]\.downsample\."]),
        ("head=tanh", [r"pre_head\."]),
        ("head_bias=false", []),
        ("norm_after_pool=true", []),
        ("out_norms=true", [r"out_norms\."]),
        ("final_norm=false", []),
        ("position=cpe", [r"stages\.\d\.blocks\.\d\.cpe\."]),
        ("position=cpe_once", [r"stages\.\d\.cpe\."]),
        ("stage_norms=true", [r"stages\.\d\.norm\."]),
        ("downsample=patch_norm", [r"stages\.[123]\.downsample\."]),
        ("position=absolute", [r"stem\.position"]),
        ("2=window:size=7+pale:size=3", [r"stages\.1\.blocks\.1\.mixer\."]),
        ("2=window:size=4", [r"stages\.1\.blocks\.[01]\.mixer\."]),
    ],
)
def test_what_differs_starts_fresh(edit, places):
    """And nothing else does: of every field of a spec."""
    swin = create("swin", seed=3)
    model, report = weights.load(notation("swin", edit), swin, partial="replaced")
    status = by_status(report)
    fresh = status.get("fresh", set())
    for place in places:
        assert any(re.match(place, name) for name in fresh), place
    assert all(any(re.match(place, name) for place in places) for name in fresh)
    state, old = model.state_dict(), swin.state_dict()
    assert status["loaded"] | fresh == state.keys()
    assert all(torch.equal(state[name], old[name]) for name in status["loaded"])


def test_fewer_stages():
    swin = create("swin", seed=3)
    three = notation("swin").replace("swin_t", "swin_t/stages=3")
    three = "/".join(part for part in three.split("/") if not part.startswith("4."))
    model, report = weights.load(three, swin, partial="replaced")
    assert by_status(report)["fresh"] == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    x = images(1, 3, 64, 64)
    for found, wanted in zip(stages(model, x, 3), stages(swin, x, 3), strict=True):
        assert torch.equal(found, wanted)


def test_windows_of_another_size_are_resized_if_asked():
    """With resize, a window of another size is the same mixer with another table."""
    swin = create("swin", *(f"{i}=window:size=2" for i in range(1, 5)), seed=3)
    asked = notation("swin", *(f"{i}=window:size=4" for i in range(1, 4)), "4=full")
    report = weights.load(asked, swin, partial="replaced", how=Adapt(resize="bicubic")).report
    status = by_status(report)
    assert len(status["resized"]) == 6 and all("bias.table" in name for name in status["resized"])
    assert all(name.startswith("stages.3.blocks.") for name in status["fresh"])


@pytest.mark.parametrize(
    ("family", "edit", "status"),
    [
        ("cswin", "1=cross:size=4", "loaded"),  # no tensor of stripes knows their width
        ("swin", "1=window:size=4,shift=false", "resized"),
        ("swinmlp", "1=token_mlp:size=4", "fresh"),  # whose weights are of one size of windows
        ("swin", "1=window:size=4,qkv_bias=false", "fresh"),
    ],
)
def test_which_windows_of_another_size_are_one_mixer(family, edit, status):
    """Attention without a table, or with one that can be resized; no other option may differ."""
    source = create(family, seed=3)
    loaded = weights.load(
        notation(family, edit), source, partial="replaced", how=Adapt(resize="bicubic")
    )
    found = by_status(loaded.report)
    assert any(name.startswith("stages.0.blocks.0.mixer.") for name in found[status])
    assert (status == "fresh") == ("fresh" in found)


def test_swin_v2_whose_shapes_tell_no_window():
    """What shapes do not tell is as in the backbone that is asked for."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    peer = randomise(SwinTransformerV2(
        embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], num_classes=10, img_size=128,
        window_size=4,
    ))  # fmt: skip
    whole = weights.load(
        None, peer, window=[(4, 4)], pretrained_window=[None], img_size=(128, 128)
    ).model
    spec = whole.spec.to_dict()
    spec["stages"][2]["mixers"] = ["pale:size=2"]
    hybrid, report = weights.load(spec, peer.state_dict(), partial="replaced")
    assert all(name.startswith("stages.2.blocks.") for name in by_status(report)["fresh"])
    x = images(1, 3, 128, 128)
    for found, wanted in zip(stages(hybrid, x, 2), stages(whole, x, 2), strict=True):
        assert torch.equal(found, wanted)


def test_equal_shapes_are_not_equal_mixers():
    """Windows and shuffled windows have tensors of the same names and shapes."""
    found = replaced(parse("swin_t/3=shuffle:size=7"), parse("swin_t"), Adapt())
    assert found == tuple(f"stages.2.blocks.{j}.mixer." for j in range(6))
    assert replaced(parse("swin_t"), parse("swin_t"), Adapt()) == ()


# -- whatever fits -----------------------------------------------------------------------------


def test_fitting():
    """By name and shape, the rest stays; something must fit, and be finite."""
    swin, hybrid = create("swin", seed=3), create("hybrid")
    before = {name: tensor.clone() for name, tensor in hybrid.state_dict().items()}
    report = weights.load(hybrid, swin.state_dict(), partial="fitting").report
    status, old = by_status(report), swin.state_dict()
    for name, tensor in hybrid.state_dict().items():
        fits = name in old and old[name].shape == tensor.shape
        assert torch.equal(tensor, old[name] if fits else before[name]), name
        assert name in status["loaded" if fits else "fresh"]
    with pytest.raises(WeightsError, match="nothing in the weights"):
        weights.load(hybrid, {"a.b": torch.zeros(3)}, "transom", partial="fitting")
    bad = {**old, "norm.weight": old["norm.weight"] * float("nan")}
    with pytest.raises(WeightsError, match=r"norm\.weight is not finite"):
        weights.load(hybrid, bad, partial="fitting")


def test_no_keyword_is_swallowed():
    model, state = create("swin"), create("swin").state_dict()
    for wrong in ({"strict": False}, {"patial": "fitting"}, {"device": "cpu"}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            weights.load(model, state, **wrong)
    with pytest.raises(SpecError, match=r"partial=True; .*replaced, fitting"):
        weights.load(model, state, partial=True)
    with pytest.raises(SpecError, match="window: the backbone is given"):
        weights.load(model, state, window=[(7, 7)])


# -- names -------------------------------------------------------------------------------------


def test_dropped_names():
    state = {"a.weight": torch.ones(1), "a.bias": torch.ones(2), "b.weight": torch.ones(3)}
    kept, left = dropped(state, ["a.*"], "")
    assert list(kept) == ["b.weight"] and list(left) == ["a.weight", "a.bias"]
    under = {f"model.{key}": tensor for key, tensor in state.items()}
    kept, left = dropped(under, ["model.b.weight", "a.bias"], "model.")
    assert list(kept) == ["model.a.weight"] and set(left) == {"model.a.bias", "model.b.weight"}
    with pytest.raises(WeightsError, match=r"--drop a\.weigh: .*did you mean a\.weight"):
        dropped(state, ["a.weigh"], "")
    swin = create("swin", seed=3)
    odd = dict(swin.state_dict()) | {"projector.weight": torch.ones(3, 3)}
    with pytest.raises(WeightsError, match="projector"):
        weights.load(create("swin"), odd)
    loaded = weights.load(create("swin"), odd, drop=["projector.*"])
    assert by_status(loaded.report)["left out"] == {"projector.weight"}
    assert state_hash(loaded.model) == state_hash(swin)
    inside = {f"encoder.{key}": tensor for key, tensor in odd.items()}
    inside |= {"decoder.weight": torch.ones(2)}  # which is outside, and left out anyhow
    for names in (["projector.*"], ["encoder.projector.weight"], ["projector.*", "decoder.*"]):
        loaded = weights.load(create("swin"), inside, drop=names)
        left = {"encoder.projector.weight", "decoder.weight"}
        assert by_status(loaded.report)["left out"] == left
        assert state_hash(loaded.model) == state_hash(swin)
    both = inside | {f"teacher.{key}": t for key, t in create("swin").state_dict().items()}
    with pytest.raises(WeightsError, match="--prefix"):
        weights.load(create("swin"), both, drop=["projector.*"])
    loaded = weights.load(create("swin"), both, drop=["projector.*", "teacher.*"])
    assert state_hash(loaded.model) == state_hash(swin)


@pytest.mark.parametrize(
    ("pairs", "name", "wanted"),
    [
        ({"attn.core": "attn"}, "layers.0.attn.core.qkv", "layers.0.attn.qkv"),
        ({"core": ""}, "layers.0.attn.core.qkv", "layers.0.attn.qkv"),
        ({"model.": ""}, "model.layers.model.x", "layers.model.x"),
        ({"model": "net"}, "model.layers.model.x", "net.layers.net.x"),
        ({"": "x"}, "a", None),
        ({"lay": "x"}, "layers.0", None),
        ({"a": "b", "b": "c"}, "a.x", "c.x"),
    ],
)
def test_renamed(pairs, name, wanted):
    if wanted is None:
        with pytest.raises(WeightsError, match="stands in no name"):
            renamed({name: 1}, pairs)
    else:
        assert renamed({name: 1}, pairs) == {wanted: 1}
    with pytest.raises(WeightsError, match="two names become one"):
        renamed({"a.x": 1, "b.x": 2}, {"a": "b"})


def test_renamed_weights_load():
    swin = create("swin", seed=3)
    odd = {name.replace(".mixer.", ".token_mixer."): t for name, t in swin.state_dict().items()}
    loaded = weights.load(create("swin"), odd, rename={"token_mixer": "mixer"}).model
    assert state_hash(loaded) == state_hash(swin)


# -- hints -------------------------------------------------------------------------------------


def hinted(model, state, **fields) -> str:
    with pytest.raises(WeightsError) as info:
        weights.load(model, state, **fields)
    return str(info.value)


def test_hints_have_been_tried():
    """An option is named where it helps, and only there."""
    swin = create("swin", *(f"{i}=window:size=2" for i in range(1, 5)))
    state = swin.state_dict()
    wider = create("swin", *(f"{i}=window:size=4" for i in range(1, 5)))
    assert "Adapt(resize='bicubic')" in hinted(wider, state)
    weights.load(wider, state, how=Adapt(resize="bicubic"))
    heads = create("swin", "1.heads=4", *(f"{i}=window:size=2" for i in range(1, 5)))
    text = hinted(heads, state)
    assert "bias.table" in text and "Adapt" not in text
    odd = dict(state)
    for name in [name for name in state if name.endswith("bias.table")]:
        odd[name] = torch.zeros(15, state[name].shape[1])  # of no square window
    assert "Adapt" not in hinted(swin, odd)
    grey = create("swin", "in_channels=1", *(f"{i}=window:size=2" for i in range(1, 5)))
    assert "Adapt(new_inputs=True)" in hinted(grey, state)
    weights.load(grey, state, how=Adapt(new_inputs=True))
    lacking = {k: v for k, v in state.items() if not k.startswith("stages.2.")}
    assert "--partial fitting" in hinted(swin, lacking)
    assert "--partial" not in hinted(swin, {"x.y": torch.zeros(3)}, source="transom")
    stemless = {k: v for k, v in weights.export(small_swin(), "timm").items() if "patch" not in k}
    assert "most are --source timm's" in hinted(None, stemless)
    assert "--source" not in hinted(None, {"x.y": torch.zeros(3)})


# -- the command -------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    """--partial, --drop and --rename; the file that is written holds the hybrid."""
    peer = randomise(swin_timm())
    state = {key.replace("attn.", "attn.core."): value for key, value in peer.state_dict().items()}
    state["projector.weight"] = torch.ones(3)
    path, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    hybrid = OURS.replace("/3=window:size=4", "/3=pale:size=2")
    argv = [path, "--to", out, "--spec", hybrid, "--partial", "replaced", "--drop", "projector.*",
            "--rename", "attn.core=attn"]  # fmt: skip
    assert convert.main([str(arg) for arg in argv]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\d+ loaded, 0 resized, \d+ fresh, \d+ left out", text)
    loaded = weights.load(None, out).model
    assert "pale" in str(loaded.spec.stages[2].mixers[0])
    x = images(1, 3, 128, 128)
    whole = weights.load(OURS, peer).model
    for found, wanted in zip(stages(loaded, x, 2), stages(whole, x, 2), strict=True):
        assert torch.equal(found, wanted)
    for more, asked in (
        (["--partial", "replaced"], "give it by --spec"),
        (["--spec", hybrid, "--partial", "replaced", "--check"], "--check goes with whole"),
        (["--spec", hybrid, "--partial", "fitting", "--num-classes", "3"], "--num-classes goes"),
    ):
        with pytest.raises(WeightsError, match=asked):
            convert.main([str(arg) for arg in (path, "--to", out, *more)])
    with pytest.raises(SystemExit):
        convert.main([str(path), "--to", str(out), "--rename", "attn"])
    assert "expected OLD=NEW" in capsys.readouterr().err


def test_transformers_models_are_sources():
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    config = transformers.SwinConfig(
        image_size=128, window_size=4, embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8],
        num_labels=10, layer_norm_eps=1e-5,
    )  # fmt: skip
    peer = randomise(transformers.SwinForImageClassification(config))
    ours = weights.load(OURS, peer).model.eval()
    x = images(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.allclose(ours(x), peer(x).logits, atol=1e-4)


def test_features_only_models_are_sources():
    """timm's wrapper writes layers_0. for layers.0., and has neither norm nor head."""
    peer = timm.create_model("swin_tiny_patch4_window7_224", features_only=True)
    assert "layers_0.blocks.0.attn.qkv.weight" in peer.state_dict()
    body = backbones.create("swin_t/num_classes=0/final_norm=false")
    weights.load(body, peer)
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        found, wanted = body.eval().features(x), peer.eval()(x)
    for ours, theirs_ in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs_.permute(0, 3, 1, 2), atol=1e-4)
