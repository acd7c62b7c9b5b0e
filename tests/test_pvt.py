"""Spatial reduction, PVT and Twins: the cells of keys, models of timm and transformers, and their
files."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import error, images, randomise, state_hash

import attention
import backbones
from attention.geometry.reduced import Reduced, pooled, strided
from backbones import convert, weights
from backbones.files.detect_source import source_of
from backbones.files.storage import WeightsError
from backbones.model.block import Block
from backbones.model.stage import Stage
from backbones.parts.layout import nchw, nhwc
from backbones.weights import Adapt
from backbones.weights.infer_spec import infer
from backbones.weights.reference_models import reference_model

# -- the cells of the keys ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "ratio"), list(itertools.product((1, 2, 5, 6, 7, 16), (1, 2, 3, 7)))
)
def test_cells_are_neighbours_and_whole(length, ratio):
    """Dropped: floor(length / ratio) whole cells, or one that is padded; padded: the others too."""
    dropped, padded = (strided(length, ratio, pad=pad) for pad in (False, True))
    assert dropped.n == max(length // ratio, 1)
    assert padded.n == -(-length // ratio)
    for axis in (dropped, padded):
        tokens = [token for first, last in axis.cells() for token in range(first, last)]
        assert tokens == list(range(axis.used))
        assert all(last - first <= ratio for first, last in axis.cells())
        assert axis.read == axis.n * ratio <= axis.padded
    assert padded.used == length
    assert dropped.used == (length // ratio * ratio if length >= ratio else length)


@pytest.mark.parametrize(
    ("length", "n"), list(itertools.product((1, 2, 5, 7, 9, 30), (1, 2, 3, 7)))
)
def test_pooled_cells_are_those_of_torch(length, n):
    """Cells of adaptive pooling, read from its gradient."""
    x = torch.ones(1, 1, length, requires_grad=True)
    cells = pooled(length, n).cells()
    assert len(cells) == n
    for i, (first, last) in enumerate(cells):
        (grad,) = torch.autograd.grad(torch.nn.functional.adaptive_avg_pool1d(x, n)[0, 0, i], x)
        assert grad[0, 0].nonzero().flatten().tolist() == list(range(first, last))


def test_pads_are_counted_in_the_cells_alone():
    """3x3 cells on 7x2: the remainder of the rows is in no cell, a column of pads is in two."""
    keys = Reduced(strided(7, 3, pad=False), strided(2, 3, pad=False))
    assert (keys.n, keys.tokens, keys.pairs, keys.pads) == (2, 14, 28, 6)
    assert keys.pad(torch.zeros(1, 7, 2, 1)).shape == (1, 7, 3, 1)
    seen = keys.region((6, 1))
    assert seen[:6].all() and seen[6].tolist() == [False, True]


def test_options():
    config = attention.parse("sra:ratio=8x4,remainder=pad")
    assert config.ratio == (8, 4) and str(attention.parse("sra:ratio=2")) == "sra"
    for text in ("sra:pool=7,ratio=4", "sra:pool=7,remainder=pad"):
        with pytest.raises(attention.SpecError, match="give one of them"):
            attention.parse(text)
    with pytest.raises(attention.SpecError, match="no option 'position'"):
        attention.parse("sra:position=bias")
    names = {name for name, _ in attention.create("sra:ratio=1", dim=8, heads=2).named_parameters()}
    assert not any(name.startswith(("reduction", "norm")) for name in names)


# -- timm's models -----------------------------------------------------------------------------

_SVT = "window:size=7,shift=false,position=none+sra:ratio="
SMALL = {  # source of the names and a narrow backbone of the family
    "pvt_v2": ("pvt_v2_timm", "pvt_v2_b0/1.dim=8/2.dim=16/3.dim=20/4.dim=24/4.heads=4"),
    "pvt_v2_li": (
        "pvt_v2_timm",
        "pvt_v2_b2_li/1.dim=8/2.dim=16/3.dim=20/4.dim=24/4.heads=4/1.depth=1/3.depth=2/4.depth=1",
    ),
    "svt": ("twins", "twins_svt_s/1.dim=8/2.dim=16/3.dim=24/4.dim=32/3.depth=2"),
    "pcpvt": ("twins", "twins_pcpvt_s/1.dim=8/2.dim=16/3.dim=20/4.dim=24/4.heads=4/3.depth=2"),
}
SIZES = {  # PVT v2's convolutions pad as ours; Twins' patches need sides that 32 divides
    "pvt_v2_timm": [(64, 64), (73, 90)],
    "twins": [(64, 64), (96, 160)],
}


def pair(family: str, *, seed: int = 1):
    """(ours with the weights of timm's model, timm's model), all numbers drawn anew."""
    source, text = SMALL[family]
    spec = backbones.parse(text + "/num_classes=10/img_size=64")
    theirs = randomise(reference_model(source, spec, None), seed).eval()
    ours = backbones.create(spec).eval()
    weights.load(ours, theirs.state_dict(), source=source)
    return ours, theirs


@torch.no_grad()
def distance(ours, theirs, x) -> float:
    wanted = theirs(x)
    return error(ours(x), wanted) / max(1.0, float(wanted.abs().amax()))


@pytest.mark.parametrize("family", SMALL)
def test_equals_timm(family):
    ours, theirs = pair(family)
    for size in SIZES[SMALL[family][0]]:
        assert distance(ours, theirs, images(2, 3, *size)) <= 5e-6, size


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("pvt_v2_b0", "pvt_v2_b0"), ("pvt_v2_b2_li", "pvt_v2_b2_li"),
     ("twins_svt_s", "twins_svt_small"), ("twins_pcpvt_s", "twins_pcpvt_small")],
)  # fmt: skip
def test_named_models_equal_timms(name, theirs):
    """The variant is known by its tensors; at two sizes, no map of which windows of 7 divide."""
    model = randomise(timm.create_model(theirs), 1).eval()
    state = model.state_dict()
    loaded = weights.load(None, state)
    assert loaded.model.spec.name == name
    ours = loaded.model.eval()
    for size in ((64, 64), (64, 96)):
        assert distance(ours, model, images(1, 3, *size)) <= 5e-6


def padded_remainder(ours):
    """Zeros complete the last cells instead of leaving them out."""
    for module in ours.modules():
        if hasattr(module, "reduction"):
            keys = module.keys
            module.keys = lambda h, w, keys=keys: Reduced(
                *(strided(a.length, a.ratio, pad=True) for a in keys(h, w))
            )
    return ours


def kv_swapped(ours):
    for module in ours.modules():
        if hasattr(module, "kv"):
            for p in module.kv.parameters():
                p.data = torch.cat(p.chunk(2)[::-1])
    return ours


def cpe_first(ours):
    """Positions before the first block of a stage instead of after it."""

    def run(stage, x):
        x = x + nhwc(stage.cpe(nchw(x)))
        for block in stage.blocks:
            x = block(x)
        return (stage.norm(x),)

    for stage in ours.stages:
        stage._run_blocks = lambda x, again=False, stage=stage: run(stage, x)
    return ours


def gelu_alone(ours):
    """The linear variant without the ReLU before its convolution."""
    for module in ours.modules():
        if hasattr(module, "_before"):
            module._before = lambda x: x
    return ours


@pytest.mark.parametrize(
    ("family", "size", "wrong"),
    [
        ("pvt_v2", (80, 112), padded_remainder),
        ("pvt_v2", (64, 64), kv_swapped), ("pcpvt", (64, 64), kv_swapped),
        ("svt", (64, 64), cpe_first), ("pcpvt", (64, 64), cpe_first),
        ("pvt_v2_li", (64, 64), gelu_alone),
    ],
)  # fmt: skip
def test_a_mistake_is_seen(family, size, wrong):
    ours, theirs = pair(family)
    x = images(1, 3, *size)
    assert distance(ours, theirs, x) <= 5e-6
    assert distance(wrong(ours), theirs, x) > 1e-3


# -- their files -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SMALL)
def test_round_trip(family):
    ours, theirs = pair(family)
    state = theirs.state_dict()
    written = weights.export(ours, SMALL[family][0])
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("family", ["pvt_v2", "pvt_v2_li"])
def test_names_of_the_authors(family):
    """The remapping of timm, which reads the authors' files, reads ours."""
    from timm.models.pvt_v2 import checkpoint_filter_fn

    ours, theirs = pair(family)
    written = weights.export(ours, "pvt_v2")
    assert "block2.0.mlp.dwconv.dwconv.weight" in written and "norm4.bias" in written
    remapped = checkpoint_filter_fn(written, theirs)
    state = theirs.state_dict()
    assert remapped.keys() == state.keys()
    assert all(torch.equal(remapped[key], tensor) for key, tensor in state.items())
    again = weights.load(ours.spec, written).model
    assert state_hash(again) == state_hash(ours)


@pytest.mark.parametrize("source", ["pvt_v2", "pvt_v2_timm", "twins"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_source_is_known_by_its_keys(source, prefix):
    ours, _ = pair("svt" if source == "twins" else "pvt_v2")
    state = {prefix + key: t for key, t in weights.export(ours, source).items()}
    assert source_of(weights.read_weights(state).state) == source


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li", "twins_svt_s", "twins_pcpvt_s"])
def test_a_variant_is_known_by_its_sizes(name):
    with torch.device("meta"):
        model = backbones.create(name, num_classes=7)
        source = "twins" if "twins" in name else "pvt_v2"
        spec = infer(weights.export(model, source), source)
    assert (spec.name, spec.num_classes) == (name, 7)


@pytest.mark.parametrize("family", SMALL)
def test_convert_checks_against_timm(family, tmp_path, capsys):
    source, text = SMALL[family]
    ours, theirs = pair(family)
    file, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file({key: t.contiguous().clone() for key, t in theirs.state_dict().items()}, file)
    spec = f"{text}/num_classes=10/img_size=64"
    argv = [str(file), "--to", str(out), "--spec", spec, "--check"]
    assert convert.main(argv) == 0
    text = capsys.readouterr().out
    assert f"names of {source}" in text and "check: equal" in text
    assert state_hash(weights.load(None, out).model) == state_hash(ours)


# -- the first version -------------------------------------------------------------------------

PVT = "pvt_tiny/1.dim=8/2.dim=16/3.dim=20/4.dim=24/4.heads=4/1.depth=1/3.depth=2/num_classes=5"
TRANSFORMERS = (  # their names to those of the authors, blocks from 0 and stages from 0
    (r"^pvt\.encoder\.patch_embeddings\.(\d)\.position_embeddings$", "pos_embed{}"),
    (r"^pvt\.encoder\.patch_embeddings\.(\d)\.cls_token$", "cls_token"),
    (r"^pvt\.encoder\.patch_embeddings\.(\d)\.projection", "patch_embed{}.proj"),
    (r"^pvt\.encoder\.patch_embeddings\.(\d)\.layer_norm", "patch_embed{}.norm"),
    (r"^pvt\.encoder\.block\.(\d)", "block{}"),
    (r"^pvt\.encoder\.layer_norm", "norm"), (r"^classifier", "head"),
    (r"layer_norm_(\d)", r"norm\1"), (r"mlp\.dense(\d)", r"mlp.fc\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"attention\.self\.sequence_reduction", "attn.sr"),
    (r"attention\.self\.layer_norm", "attn.norm"), (r"attention\.self\.query", "attn.q"),
)


def in_authors_names(state):
    """Weights of transformers' PVT, whose keys and values are two matrices."""
    out = {}
    for key, tensor in state.items():
        for pattern, name in TRANSFORMERS:
            if match := re.search(pattern, key):
                stage = str(int(match[1]) + 1) if "{}" in name else ""
                key = key.replace(match[0], match.expand(name.replace("{}", stage)))
        out[key] = tensor
    for key in [key for key in out if ".self.key." in key]:
        values = out.pop(key.replace(".key.", ".value."))
        joined = key.replace("attention.self.key", "attn.kv")
        out[joined] = torch.cat([out.pop(key), values])
    return out


def first_version(size: int, seed: int = 1):
    """(weights in the authors' names, transformers' model of images of this size), float64."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    spec = backbones.parse(PVT)
    model = transformers.PvtForImageClassification(transformers.PvtConfig(
        image_size=size, hidden_sizes=[s.dim for s in spec.stages], num_labels=5,
        depths=[s.depth for s in spec.stages], num_attention_heads=[s.heads for s in spec.stages],
    ))  # fmt: skip
    for name, part in model.named_modules():  # of all norms they take one eps, the authors two
        if isinstance(part, torch.nn.LayerNorm) and ("patch" in name or "self" in name):
            part.eps = 1e-5
    randomise(model, seed).double()
    return in_authors_names(model.state_dict()), model


def resize_positions(model, old, new):
    """Positions of every stage for images of another size, as `_get_pos_embed` of the authors'
    pvt.py interpolates them; that of the class token stays."""
    for i, part in enumerate(model.pvt.encoder.patch_embeddings):
        position = part.position_embeddings.data
        first, of_map = position.split([int(i == 3), position.shape[1] - int(i == 3)], dim=1)
        grids = [[side // (4 * 2**i) for side in size] for size in (old, new)]
        picture = of_map.reshape(1, *grids[0], -1).permute(0, 3, 1, 2)
        picture = F.interpolate(picture, grids[1], mode="bilinear")
        of_map = picture.flatten(2).transpose(1, 2)
        part.position_embeddings.data = torch.cat([first, of_map], 1)


def logits_and_gradient(model, x, seed: int = 9):
    image = x.clone().requires_grad_()
    logits = model(image)
    logits = getattr(logits, "logits", logits)
    (grad,) = torch.autograd.grad((logits * images(*logits.shape, seed=seed)).sum(), image)
    return logits.detach(), grad


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 128)])
def test_the_first_version_equals_transformers(size):
    """Logits and the gradient of the image, in float64; at another size than the weights' with
    positions that are resized bilinear, by the model as it runs and by Adapt."""
    state, theirs = first_version(64)
    ours, built = (
        backbones.create(f"{PVT}/img_size={h}x{w}").double().eval() for h, w in ((64, 64), size)
    )
    weights.load(ours, state)
    how = Adapt(resize="bicubic", grid=(16, 16))  # 8x32 positions are as many
    weights.load(built, state, how=how)
    resize_positions(theirs, (64, 64), size)
    wanted = logits_and_gradient(theirs, x := images(2, 3, *size).double())
    for model in (ours, built):
        for found, theirs_ in zip(logits_and_gradient(model, x), wanted, strict=True):
            assert error(found, theirs_) <= 1e-12 * max(1.0, float(theirs_.abs().amax()))


def test_files_of_the_first_version():
    """There and back; the source is known by its keys, the image size by the positions, and the
    class token is the last stage's."""
    state, _ = first_version(64)
    ours = weights.load(PVT + "/img_size=64", state).model.double()
    weights.load(ours, state)
    assert source_of(state) == "pvt"
    written = weights.export(ours, "pvt")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in state.items())
    found = infer(state, "pvt", heads=[1, 2, 5, 4])
    assert found.stages == ours.spec.stages and found.img_size == (64, 64)
    with pytest.raises(WeightsError, match=r"give --heads \(or --spec"):
        infer(state, "pvt")
    with torch.device("meta"):
        for name in ("pvt_tiny", "pvt_large"):
            model = backbones.create(name, num_classes=3)
            assert infer(weights.export(model, "pvt"), "pvt").stages == model.spec.stages
        two = backbones.create(PVT + "/4.tokens=2")
    with pytest.raises(WeightsError, match="2 tokens beside the map; pvt has one"):
        weights.export(two, "pvt")


def test_oblong_positions_of_the_first_version():
    """224x288 pixels: the last map and its class token, 7x9 and 1, are as many as 8x8."""
    spec = backbones.parse(PVT + "/img_size=224x288")
    ours = randomise(backbones.create(spec), 1)
    state = weights.export(ours, "pvt")
    assert state["pos_embed4"].shape[1] == 64
    assert state_hash(weights.load(spec, state).model) == state_hash(ours)
    square = weights.load(PVT, state, how=Adapt(resize="bicubic", grid=(56, 72))).model
    for name in ("stages.0.position", "stages.3.position"):
        wanted = F.interpolate(ours.get_parameter(name), square.get_parameter(name).shape[2:],
                               mode="bilinear")  # fmt: skip
        assert error(square.get_parameter(name), wanted) <= 1e-6
    assert torch.equal(square.stages[3].beside.position, ours.stages[3].beside.position)


def test_a_failed_load_of_the_first_version():
    """A NaN, another shape or nothing, of the class token and of positions: nothing moves."""
    state, _ = first_version(64)
    ours = weights.load(PVT + "/img_size=64", state).model
    before = state_hash(ours)
    for key in ("cls_token", "pos_embed1", "pos_embed4", "block1.0.attn.sr.weight"):
        good = state[key]
        broken = {"not finite": good.clone(), "has shape": torch.cat([good, good])}
        broken["not finite"].view(-1)[0] = float("nan")
        for said, tensor in broken.items():
            with pytest.raises(WeightsError, match=said) as info:
                weights.load(ours, {**state, key: tensor})
            assert key in str(info.value) and "\n" not in str(info.value)
        with pytest.raises(WeightsError, match="nothing for stages"):
            weights.load(ours, {k: t for k, t in state.items() if k != key}, "pvt")
    with pytest.raises(WeightsError, match="another image size is resized by how=Adapt"):
        weights.load(PVT + "/img_size=96", state)
    assert state_hash(ours) == before


@pytest.mark.parametrize(
    ("edit", "fresh"),
    [
        ("4.tokens=0/pool=mean", None), ("4.tokens=2", r"stages\.3\.beside\."),
        ("token_position=false", None), ("position=none", None),
        ("img_size=96", r"stages\.[0123]\.position"),
        ("2=full", r"stages\.1\.blocks\.\d\.mixer\."),
    ],
)
def test_what_differs_from_the_first_version_starts_fresh(edit, fresh):
    model = randomise(backbones.create(PVT + "/img_size=64"), 1)
    fields = {f.partition("=")[0]: f for f in f"{PVT}/img_size=64/{edit}".split("/")[1:]}
    asked = "/".join(["pvt_tiny", *fields.values()])
    other, report = weights.load(asked, weights.export(model, "pvt"), partial="replaced")
    new = {row["tensor"] for row in report if row["status"] == "fresh"}
    assert bool(new) == (fresh is not None) and all(re.match(fresh, name) for name in new)
    loaded = {row["tensor"] for row in report if row["status"] == "loaded"}
    assert loaded | new == other.state_dict().keys()
    assert all(torch.equal(other.state_dict()[n], model.state_dict()[n]) for n in loaded)


# -- the words of the spec ---------------------------------------------------------------------


@pytest.mark.parametrize("edit", ["mlp=conv", "mlp=relu_conv", "stage_norms=true",
                                  "position=cpe_once", "downsample=patch_norm"])  # fmt: skip
def test_any_backbone_takes_the_words(edit):
    """Of a stage each word changes what it says, and nothing of any size."""
    small = "swin_t/1.dim=8/2.dim=16/3.dim=16/4.dim=16/1.heads=2/2.heads=2/3.heads=2/4.heads=2"
    model = randomise(backbones.create(f"{small}/{edit}/num_classes=3"), 1).eval()
    plain = {name for name, _ in backbones.create(small).named_parameters()}
    new = {name for name, _ in model.named_parameters()} - plain
    expected = {
        "mlp=conv": ".mlp.conv.", "mlp=relu_conv": ".mlp.conv.", "stage_norms=true": ".norm.",
        "position=cpe_once": ".cpe.", "downsample=patch_norm": ".downsample.conv.",
    }[edit]  # fmt: skip
    assert new and all(expected in name and name.startswith("stages.") for name in new)
    for size in ((1, 1), (9, 70), (64, 64)):
        assert model(images(2, 3, *size)).shape == (2, 3)


def test_no_norm_is_doubled():
    """The last norm of the stages is the final one, and those of the levels are theirs."""
    model = backbones.create("pvt_v2_b0/out_norms=true/1.depth=1/3.depth=1")
    assert model.spec.final_norm and model.out_norms is None
    assert isinstance(model.norm, torch.nn.Identity)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        levels = model.eval().features(x)
    for level in levels:
        assert level.mean(1).abs().max() < 1e-5
        assert (level.var(1, correction=0) - 1).abs().max() < 1e-2


def test_positions_stand_after_the_first_block(monkeypatch):
    seen = []
    block = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x: seen.append("block") or block(self, x))
    model = backbones.create("twins_pcpvt_s", num_classes=0).eval()
    for stage in model.stages:
        stage.cpe.register_forward_hook(lambda *_: seen.append("cpe"))
    with torch.no_grad():
        model(images(1, 3, 64, 64))
    wanted = [["block", "cpe", *["block"] * (depth - 1)] for depth in (3, 4, 6, 3)]
    assert seen == list(itertools.chain(*wanted))


@pytest.mark.parametrize("per", ["block", "stage"])
def test_checkpointing_gives_the_same_gradients(per):
    """Positions and norms of a stage are inside what runs again, or behind it."""
    found = []
    for again in (False, True):
        model = randomise(backbones.create(SMALL["svt"][1] + "/stage_norms=true"), 1).train()
        if again:
            model.set_grad_checkpointing(per=per)
        model(images(2, 3, 40, 56)).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(found[0][name], grad) for name, grad in found[1].items())


def test_the_convolution_of_an_mlp_goes_image_by_image(monkeypatch):
    """The cpu backend takes no rows of a map, whose tokens need their neighbours."""
    monkeypatch.setattr(attention.execution.chunks, "IMAGES", 1)
    monkeypatch.setattr(attention.execution.chunks, "WIDEST", 1)
    ours, _ = pair("pvt_v2")
    x = images(3, 3, 73, 90)
    with torch.inference_mode():
        whole = ours(x)
        with attention.backend("cpu"):
            assert error(ours(x), whole) <= 2e-6 * max(1.0, float(whole.abs().amax()))


def test_costs_of_the_words():
    """Depthwise 3x3 kernels: 9 multiply-adds a token and channel."""
    with torch.device("meta"):
        twins = backbones.create("twins_svt_s")
        parts = {part.module: part.macs for part in twins.cost(64, 64)}
        assert parts["stages.1.cpe"] == 9 * 8 * 8 * 128
        mixed = replace(backbones.parse("pvt_v2_b0"), stages=twins.spec.stages)
        stage = Stage(mixed, 0, inputs=None, drop_path=[0.0, 0.0])
    mlp = {part.module: part.macs for part in stage.cost(16, 8, (16, 8))}["blocks.0.mlp"]
    assert mlp == 16 * 8 * (2 * 64 * 256 + 9 * 256)


def test_layers_of_learning_rates():
    """Positions learn as the first block of their stage, a stage's norm as its last block."""
    from timm.models import group_parameters

    for what in ("pvt_v2_b0", "twins_svt_s", "twins_svt_s/stage_norms=true"):
        with torch.device("meta"):
            model = backbones.create(what)
        layer = group_parameters(model, model.group_matcher(), reverse=True)
        for i, stage in enumerate(model.spec.stages):
            blocks = [layer[f"stages.{i}.blocks.{j}.norm1.weight"] for j in range(stage.depth)]
            assert len(set(blocks)) == stage.depth
            if model.spec.position == "cpe_once":
                assert layer[f"stages.{i}.cpe.weight"] == blocks[0]
            if model.spec.stage_norms:
                assert layer[f"stages.{i}.norm.weight"] == blocks[-1]
