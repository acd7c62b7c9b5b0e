"""Spatial reduction, PVT v2 and Twins: the cells of keys, timm's models and their files."""

from __future__ import annotations

import itertools

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import error, images, randomise, state_hash

import attention
import backbones
from attention.geometry.reduced import Reduced, pooled, strided
from backbones import convert, weights
from backbones.model.block import Block
from backbones.model.stage import Stage
from backbones.parts.layout import nchw, nhwc
from backbones.weights.detect_source import source_of
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

    def run(stage, x, again=False):
        x = x + nhwc(stage.cpe(nchw(x)))
        for block in stage.blocks:
            x = block(x)
        return stage.norm(x)

    for stage in ours.stages:
        stage._run_blocks = lambda x, again=False, stage=stage: run(stage, x, again)
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
        stage = Stage(twins.spec.stages[0], backbones.parse("pvt_v2_b0"), inputs=None,
                      drop_path=[0.0, 0.0])  # fmt: skip
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
