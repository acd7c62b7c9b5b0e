"""ViT, DeiT III, registers, MLP-Mixer: timm's and torchvision's models in this process, their files
in and out, class tokens and positions where the files have them."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import error, images, randomise, state_hash

import backbones
from backbones import convert, weights
from backbones.files.detect_source import source_of
from backbones.files.storage import WeightsError
from backbones.weights import Adapt
from backbones.weights.infer_spec import infer
from backbones.weights.reference_models import reference_model
from backbones.weights.resize import positions

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

_BODY = "/1.dim=24/1.heads=3/1.depth=2/num_classes=5/img_size="
SMALL = {  # source of the names and a narrow backbone
    "vit": ("vit", "vit_tiny_patch16_224" + _BODY),
    "deit3": ("vit", "deit3_small_patch16_224/layer_scale=0.1" + _BODY),
    "registers": ("vit", "vit_tiny_patch16_224/1.tokens=5" + _BODY),
    "registers without positions": (
        "vit", "vit_tiny_patch16_224/1.tokens=5/token_position=false" + _BODY,
    ),
    "scales": ("vit", "vit_tiny_patch16_224/layer_scale=0.1" + _BODY),
    "torchvision": ("vit_torchvision", "vit_base_patch16_224" + _BODY),
    "mixer": (
        "mixer", "mixer_s32_224/1=token_mlp:size=2,shift=false,hidden=12/1.dim=24/1.depth=2/"
        "num_classes=5/img_size=",
    ),
}  # fmt: skip
SIZES = {"torchvision": ["64", "96"], "mixer": ["64"]}  # as they are built; others may be oblong


def spec_of(family: str, size: str = "64"):
    return backbones.parse(SMALL[family][1] + size)


def altered(family: str, change: str) -> str:
    """The same as notation, with other fields."""
    name, *fields = f"{SMALL[family][1]}64/{change}".rstrip("/").split("/")
    return "/".join([name, *{field.partition("=")[0]: field for field in fields}.values()])


def pair(family: str, size: str = "64", seed: int = 1):
    """(ours with the weights of the library's model, the library's), all numbers drawn anew."""
    source, spec = SMALL[family][0], spec_of(family, size)
    theirs = randomise(reference_model(source, spec, None), seed)
    ours = weights.load(spec, theirs.state_dict(), source).model.eval()
    return ours, theirs


def far(ours, theirs, x) -> float:
    """Largest error of logits and of the gradient of the image, of the largest of theirs."""
    found = []
    for model in (ours, theirs):
        image = x.clone().requires_grad_()
        logits = model(image)
        factors = images(*logits.shape, seed=9).to(logits)
        found.append((logits.detach(), *torch.autograd.grad((logits * factors).sum(), image)))
    return max(
        error(a, b) / max(1.0, float(b.abs().amax())) for a, b in zip(*found, strict=True)
    )  # fmt: skip


EXACT = 1e-12  # float64


@pytest.mark.parametrize(
    ("family", "size"),
    [(family, size) for family in SMALL for size in SIZES.get(family, ["64", "48x80"])],
)
def test_equals_the_library(family, size):
    """Logits, the gradient of the image, and the map of `features`, in float64."""
    ours, theirs = (model.double() for model in pair(family, size))
    x = images(2, 3, *ours.spec.img_size).double()
    assert far(ours, theirs, x) <= EXACT
    if hasattr(theirs, "forward_intermediates"):
        with torch.no_grad():
            (wanted,) = theirs.forward_intermediates(x, indices=1, intermediates_only=True)
            (found,) = ours.features(x)
        assert error(found, wanted) <= EXACT * float(wanted.abs().amax())


@pytest.mark.parametrize(
    ("name", "theirs", "size"),
    [
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224", 224),
        ("deit3_small_patch16_224", "deit3_small_patch16_224", 224),
        ("vit_base_patch32_224", "vit_base_patch32_224", 224),
        ("mixer_s32_224", "mixer_s32_224", 224),
        ("vit_base_patch16_224", "vit_b_16", 224),
    ],
)
@pytest.mark.slow
def test_named_models_equal_the_librarys(name, theirs, size):
    """The whole of it: the variant is known by its tensors, and its logits are theirs."""
    library = torchvision.models if theirs == "vit_b_16" else timm
    model = getattr(library, theirs)() if library is not timm else timm.create_model(theirs)
    loaded = weights.load(None, randomise(model, 1).state_dict()).model.eval()
    assert loaded.spec.stages == backbones.parse(name).stages
    assert loaded.spec.img_size == (size, size)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    x = images(1, 3, size, size)
    with torch.no_grad():
        wanted = model(x)
        assert error(loaded(x), wanted) <= 1e-5 * max(1.0, float(wanted.abs().amax()))


# -- mistakes ----------------------------------------------------------------------------------


def positions_transposed(state):
    name = next(name for name in ("stem.position", "stages.0.blocks.0.mixer.weight")
                if name in state)  # fmt: skip
    grid = state[name] if state[name].ndim == 4 else state[name].unflatten(-1, (2, 2))
    state[name] = grid.transpose(-1, -2).reshape(state[name].shape)


def registers_first(state):
    for name in ("stages.0.beside.tokens", "stages.0.beside.position"):
        if name in state:
            state[name] = state[name].roll(1, dims=1)


def scales_exchanged(state):
    for j in range(2):
        first, second = (f"stages.0.blocks.{j}.scale{k}.gamma" for k in (1, 2))
        state[first], state[second] = state[second], state[first]


def matrices_exchanged(state):
    """Values before keys in the one matrix of queries, keys and values."""
    for name in [name for name in state if ".qkv." in name]:
        q, k, v = state[name].chunk(3)
        state[name] = torch.cat([q, v, k])


def tokens_transposed(state):
    """The channels of the MLP over tokens read by columns."""
    for name in [name for name in state if name.endswith("mixer.weight")]:
        state[name] = state[name].flip(2)


@pytest.mark.parametrize(
    ("family", "mistake"),
    [
        ("vit", positions_transposed), ("vit", matrices_exchanged),
        ("registers", registers_first), ("deit3", scales_exchanged),
        ("torchvision", matrices_exchanged), ("mixer", tokens_transposed),
        ("mixer", positions_transposed),
    ],
)  # fmt: skip
def test_a_wrong_order_is_seen(family, mistake):
    ours, theirs = pair(family)
    x, state = images(2, 3, 64, 64), {k: v.clone() for k, v in ours.state_dict().items()}
    assert far(ours, theirs, x) <= 1e-5
    mistake(state)
    ours.load_state_dict(state)
    assert far(ours, theirs, x) > 1e-3


@pytest.mark.parametrize(
    ("family", "change"),
    [("vit", "pool=mean"), ("vit", "1.heads=2"), ("vit", "eps=1e-3"),
     ("mixer", "norm_after_pool=true"), ("mixer", "mlp=gelu_tanh"), ("deit3", "mlp=relu6")],
)  # fmt: skip
def test_another_model_of_equal_shapes_is_seen(family, change):
    _, theirs = pair(family)
    other = weights.load(altered(family, change), theirs.state_dict(), SMALL[family][0]).model
    assert far(other.eval(), theirs, images(2, 3, 64, 64)) > 1e-4


# -- their files -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SMALL)
def test_round_trip(family):
    """Ours -> their names -> their model, which misses nothing, and back: the same bits."""
    ours, theirs = pair(family)
    state, written = theirs.state_dict(), weights.export(ours, SMALL[family][0])
    assert source_of(written) == SMALL[family][0]
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in state.items())
    again = weights.load(ours.spec, written).model
    assert state_hash(again) == state_hash(ours)


@pytest.mark.parametrize("family", SMALL)
def test_the_spec_is_that_of_the_file(family):
    """All but the heads, which no tensor tells: these are asked for by name."""
    ours, theirs = pair(family)
    told = {} if family == "mixer" else {"heads": [3]}
    spec = infer(theirs.state_dict(), SMALL[family][0], **told)
    assert (spec.layer_scale is None) == (ours.spec.layer_scale is None)
    untold = {name: getattr(spec, name) for name in ("name", "drop_path", "layer_scale")}
    assert spec == dataclasses.replace(ours.spec, **untold)
    if told:
        with pytest.raises(WeightsError, match=r"--heads \(or --spec"):
            weights.load(None, theirs)


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("vit_tiny_patch16_384", "vit", "vit_tiny_patch16_384"),
        ("deit_tiny_patch16_224", "vit", "vit_tiny_patch16_224"),
        ("deit_tiny_patch16_224/img_size=160", "vit", "vit_tiny_patch16_224"),
        ("vit_small_patch32_224", "vit_torchvision", "vit_small_patch32_224"),
        ("deit3_medium_patch16_224", "vit", "deit3_medium_patch16_224"),
        ("mixer_s16_224", "mixer", "mixer_s16_224"),
    ],
)
def test_a_variant_is_known_by_its_sizes(name, source, found):
    """DeiT's are ViT's of equal sizes; the image size is that of the positions."""
    with torch.device("meta"):
        model = backbones.create(name, num_classes=7)
        spec = infer(weights.export(model, source), source)
    assert (spec.name, spec.num_classes, spec.img_size) == (found, 7, model.spec.img_size)
    assert spec.stages == model.spec.stages


@pytest.mark.parametrize(("change", "field"), [
    ("layer_scale=0.1", "layer_scale"), ("layer_scale=0.1/1.tokens=5", "layer_scale"),
    ("1.tokens=5/token_position=false", "token_position"),
    ("patch_size=4/img_size=32", "token_position"),
])  # fmt: skip
def test_scales_and_registers_of_a_named_width(change, field):
    """A variant of ViT's with scales is no ViT without them, of which all tensors would be."""
    with torch.device("meta"):
        model = backbones.create(f"vit_tiny_patch16_224/{change}")
        state = weights.export(model, "vit")
        spec = infer(state, "vit", heads=[3])
        assert spec.name.startswith("like ") and spec.stages == model.spec.stages
        assert (spec.patch_size, spec.img_size) == (model.spec.patch_size, model.spec.img_size)
        assert (getattr(spec, field) in (None, False)) == (
            getattr(model.spec, field) in (None, False)
        )
    with pytest.raises(WeightsError, match="--heads"):
        infer(state, "vit")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_older_names_of_torchvision(prefix):
    """mlp.linear_1 and mlp.linear_2, which its own model reads, too."""
    ours, theirs = pair("torchvision")
    old = {
        prefix + key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for key, tensor in theirs.state_dict().items()
    }
    assert not any(".mlp.0." in key for key in old)
    again = weights.load(ours.spec, old, prefix=prefix).model
    assert state_hash(again) == state_hash(ours)


def test_names_of_the_authors():
    """DeiT III's gamma_1 and gamma_2, which timm calls ls1 and ls2."""
    ours, theirs = pair("deit3")
    old = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", k): t for k, t in theirs.state_dict().items()}
    assert "blocks.1.gamma_2" in old
    assert state_hash(weights.load(ours.spec, old).model) == state_hash(ours)
    ours.load_state_dict(weights.load(ours.spec, old).model.state_dict())
    assert far(ours, reference_model("vit", ours.spec, old), images(1, 3, 64, 64)) <= 1e-5


@pytest.mark.parametrize("family", SMALL)
def test_convert_checks_against_the_library(family, tmp_path, capsys):
    source, text = SMALL[family]
    ours, theirs = pair(family)
    file, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file({key: t.contiguous().clone() for key, t in theirs.state_dict().items()}, file)
    for told in (["--spec", text + "64"], ["--heads", "3"] if family != "mixer" else []):
        assert convert.main([str(file), "--to", str(out), "--check", *told]) == 0
        text_out = capsys.readouterr().out
        assert f"names of {source}" in text_out and "check: equal" in text_out
        assert state_hash(weights.load(None, out).model) == state_hash(ours)
        assert state_hash(backbones.create(text + "64", weights=out)) == state_hash(ours)
    back = tmp_path / "back.safetensors"
    assert convert.main([str(out), "--to", str(back), "--as", source]) == 0
    assert all(torch.equal(t, load_file(file)[k]) for k, t in load_file(back).items())


@pytest.mark.parametrize(
    ("family", "change", "target", "asked"),
    [
        ("vit", "1=full:qk_scale=0.5", "vit", r"stage 1 is full:qk_scale=0\.5; vit would"),
        ("vit", "1=window:size=2,position=none/1.tokens=0/pool=mean", "vit", "no variant vit_"),
        ("vit", "1=full+window:size=2,position=none", "vit", "stage 1 is window"),
        ("vit", "eps=1e-5", "vit", "eps is 1e-05; vit would run it as 1e-06"),
        ("vit", "eps=1e-5", "vit_torchvision", "eps is 1e-05; vit_torchvision would"),
        ("vit", "pool=mean", "vit_torchvision", "pool is mean"),
        ("registers", "", "vit_torchvision", "5 tokens beside the map; vit_torchvision has one"),
        ("deit3", "", "vit_torchvision", "vit_torchvision has nothing of the kind"),
        ("vit", "token_position=false", "vit_torchvision", "no variant vit_"),
        ("vit", "", "mixer", "mixer has nothing of the kind"),
    ],
)
def test_what_a_library_would_run_otherwise_is_refused(family, change, target, asked):
    """Names that fit may be computed in another way."""
    with pytest.raises(WeightsError, match=asked):
        weights.export(backbones.create(altered(family, change)), target)


# -- class tokens ------------------------------------------------------------------------------


def distilled():
    """DeiT with a second token, whose head is averaged with that of the class token."""
    from timm.models.deit import VisionTransformerDistilled

    return randomise(VisionTransformerDistilled(
        img_size=64, embed_dim=24, depth=2, num_heads=3, num_classes=5,
    ), 1)  # fmt: skip


def test_distilled_weights_are_refused_with_a_way_out():
    """Their logits are a mean of two heads; without the second they are those of the first."""
    model = distilled()
    state = model.state_dict()
    two = SMALL["vit"][1].replace("/1.dim", "/1.tokens=2/1.dim") + "64"
    for spec in (SMALL["vit"][1] + "64", two, None):
        with pytest.raises(WeightsError, match=r"head_dist\.\*.*1\.tokens=2") as info:
            weights.load(spec, state)
        assert "\n" not in str(info.value)
    ours, report = weights.load(two, state, drop=["head_dist.*"])
    assert [row["from"] for row in report if row["status"] == "loaded"].count(
        "cls_token and dist_token"
    ) == 1
    assert weights.load(None, state, drop=["head_dist.*"], heads=[3]).model.spec.stages == (
        ours.spec.stages
    )
    model.set_distilled_training(True)
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        wanted, _ = model.train()(x)
        assert error(ours.eval()(x), wanted) <= 1e-5


@pytest.mark.parametrize("family", ["vit", "torchvision", "registers", "deit3"])
def test_a_failed_load_names_the_tensor_and_changes_nothing(family):
    """A NaN, another shape, another kind, nothing: in the class token and in the positions."""
    ours, theirs = pair(family)
    state, before = dict(theirs.state_dict()), state_hash(ours)
    for key in [key for key in state if "token" in key or "pos_embed" in key or "norm1" in key]:
        good = state[key]
        broken = {"not finite": good.clone(), "has shape": torch.cat([good, good])}
        broken["not finite"].view(-1)[-1] = float("nan")
        for said, tensor in broken.items():
            with pytest.raises(WeightsError) as info:
                weights.load(ours, {**state, key: tensor})
            assert key in str(info.value) and said in str(info.value)
            assert "\n" not in str(info.value)
        with pytest.raises(WeightsError):
            weights.load(ours, {k: t for k, t in state.items() if k != key}, SMALL[family][0])
    assert state_hash(ours) == before
    with pytest.raises(WeightsError, match=r"no rule for blocks\.0\.gate"):
        weights.load(ours, {**state, "blocks.0.gate": torch.ones(1)})


# -- another image size ------------------------------------------------------------------------


def resized(position, tokens, old, new, **how):
    """Positions (1, tokens + h w, c), those of the map interpolated: main.py of DeiT."""
    own, of_map = position[:, :tokens], position[:, tokens:]
    picture = of_map.reshape(1, *old, -1).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, new, mode="bicubic", align_corners=False, **how)
    return torch.cat([own, picture.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize("size", ["96", "32x80"])
@pytest.mark.parametrize("way", ["bicubic", "timm"])
@pytest.mark.parametrize("family", ["vit", "deit3", "registers"])
def test_another_size_is_asked_for(family, way, size):
    """Adapt(resize=...): positions of the map resized as the authors do, or as timm, whose own
    model then has the same ones; those of the tokens stay."""
    _, theirs = pair(family)
    spec = spec_of(family, size)
    with pytest.raises(WeightsError, match="another image size is resized by how=Adapt"):
        weights.load(spec, theirs.state_dict())
    ours, report = weights.load(spec, theirs.state_dict(), how=Adapt(resize=way))
    statuses = {row["tensor"]: row["status"] for row in report}
    assert [name for name, status in statuses.items() if status == "resized"] == ["stem.position"]
    tokens = 0 if family == "deit3" else spec.stages[0].tokens
    state = theirs.state_dict()
    grid = spec.stem_grid(spec.img_size)
    if way == "timm":
        from timm.layers import resample_abs_pos_embed

        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"], grid, num_prefix_tokens=tokens
        )
    else:
        state["pos_embed"] = resized(state["pos_embed"], tokens, (4, 4), grid)
    peer = reference_model("vit", spec, state)
    assert far(ours.eval(), peer, images(1, 3, *spec.img_size)) <= 1e-5


def test_the_model_resizes_as_it_runs():
    """Images of another size: the positions of Adapt(resize="bicubic"), without asking."""
    ours, theirs = pair("vit")
    built = weights.load(
        spec_of("vit", "96x48"), theirs.state_dict(), how=Adapt(resize="bicubic")
    ).model.eval()
    x = images(2, 3, 96, 48)
    with torch.no_grad():
        assert error(ours(x), built(x)) <= 1e-6


@pytest.mark.parametrize(("family", "said"), [("vit", True), ("deit3", True), ("vit", False)])
def test_positions_of_oblong_maps(family, said):
    """10x12 positions and a class token are as many as 11x11: the size tells them."""
    spec = spec_of(family, "160x192")
    _, theirs = pair(family, "160x192")
    state = theirs.state_dict()
    assert len(state["pos_embed"][0]) == (120 if family == "deit3" else 121)
    if said:
        found = infer(state, "vit", heads=[3], img_size=(160, 192))
        assert found.img_size == (160, 192)
        assert found.token_position == (family == "vit")
    square = spec_of(family, "176")
    if said:  # to 11x11, whose class token has its own position
        how = Adapt(resize="bicubic", grid=(10, 12))
        model = weights.load(square, state, how=how).model
        wanted = positions(
            weights.load(spec, state).model.stem.position, (11, 11)
        )
        assert error(model.stem.position, wanted) == 0
    else:
        with pytest.raises(WeightsError):
            weights.load(square, state)


def test_a_map_that_is_no_square_is_asked_for():
    _, theirs = pair("vit", "32x80")
    with pytest.raises(WeightsError, match="no square map; give --source-img-size"):
        weights.load(None, theirs, heads=[3])
    loaded = weights.load(None, theirs, heads=[3], img_size=(32, 80)).model
    assert loaded.spec.img_size == (32, 80)


def test_the_command_resizes(tmp_path, capsys):
    """--img-size, --num-classes and --in-channels of a file whose positions tell its size."""
    _, theirs = pair("vit")
    file, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file({key: t.contiguous().clone() for key, t in theirs.state_dict().items()}, file)
    argv = [str(file), "--to", str(out), "--heads", "3", "--img-size", "96x80", "--check",
            "--num-classes", "2", "--in-channels", "1", "--format", "json"]  # fmt: skip
    assert convert.main(argv) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    status = {row["tensor"]: row["status"] for row in rows if row["tensor"]}
    assert {name for name, s in status.items() if s == "resized"} == {
        "stem.position", "stem.conv.weight",
    }  # fmt: skip
    assert {name for name, s in status.items() if s == "fresh"} == {"head.weight", "head.bias"}
    new = weights.load(None, out).model
    assert new.stem.position.shape[2:] == (6, 5) and new.spec.in_channels == 1
    assert torch.equal(new.stages[0].beside.position, theirs.pos_embed[:, :1])


# -- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fresh"),
    [
        ("1=full+window:size=3,position=none", r"stages\.0\.blocks\.1\.mixer\."),
        ("1=full+window:size=3", r"stages\.0\.blocks\.1\.mixer\."),
        ("1.tokens=3", r"stages\.0\.beside\."),
        ("token_position=false", None),
        ("1.tokens=0/pool=mean", None),
        ("position=none", None),
        ("position=absolute_stages", r"stages\.0\.position"),
        ("1.depth=3", r"stages\.0\.blocks\.2\."),
        ("num_classes=3", r"head\."),
        ("img_size=96", r"stem\.position"),
    ],
)
@pytest.mark.parametrize("source", ["vit", "vit_torchvision"])
def test_what_differs_starts_fresh(source, change, fresh):
    """A mixer exchanged, other tokens, other positions: the rest is the file's."""
    ours, _ = pair("vit")
    state = weights.export(ours, source)
    model, report = weights.load(altered("vit", change), state, partial="replaced")
    new = {row["tensor"] for row in report if row["status"] == "fresh"}
    assert bool(new) == (fresh is not None)
    assert all(re.match(fresh, name) for name in new)
    loaded = {row["tensor"] for row in report if row["status"] == "loaded"}
    assert loaded | new == model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], ours.state_dict()[name]) for name in loaded)


def test_fitting_takes_what_fits():
    """DeiT III's blocks in a ViT: its layer scales and positions have no place."""
    deit3, _ = pair("deit3")
    state = weights.export(deit3, "vit")
    model, report = weights.load(SMALL["vit"][1] + "64", state, partial="fitting")
    left = {row["from"] for row in report if row["status"] == "left out"}
    assert left == {f"blocks.{j}.ls{k}.gamma" for j in (0, 1) for k in (1, 2)}
    fresh = {row["tensor"] for row in report if row["status"] == "fresh"}
    assert fresh == {"stages.0.beside.position"}
    assert torch.equal(model.stem.position, deit3.stem.position)
