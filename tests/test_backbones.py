"""What every backbone holds, on a small model of each family: any size, any batch, exact state."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from tiny import FAMILIES, SOME, create, error, images, notation, randomise, state_hash
from torch import nn

import attention
import backbones
from backbones.model.block import DropPath

ROOT = Path(__file__).resolve().parent.parent
every_family = pytest.mark.parametrize("family", SOME)
PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67]
MODELS = {family: create(family) for family in FAMILIES}


def close(found: torch.Tensor, wanted: torch.Tensor, limit: float) -> bool:
    return error(found, wanted) <= limit * max(float(wanted.detach().abs().amax()), 1e-30)


def test_hybrid_and_families_cover_every_mixer():
    """A mixer that nobody builds here would be untested inside a backbone."""
    used = {
        str(mixer).partition(":")[0]
        for model in MODELS.values()
        for stage in model.spec.stages
        for mixer in stage.mixers
    }
    builtin = {name for name in attention.names() if used & {name} or name in BUILT_IN}
    assert used == builtin


BUILT_IN = {"window", "cosine", "axial", "cross", "pale", "shuffle", "sra", "token_mlp", "full"}


# -- batches ---------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_images_of_a_batch_do_not_meet(family):
    """Alone, in a batch of 8, permuted and duplicated: the same logits."""
    model, x = MODELS[family], images(8, 3, 40, 56)
    whole = model(x)
    alone = torch.cat([model(image[None]) for image in x])
    assert close(alone, whole, 2e-6)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    assert torch.equal(model(x[order]), whole[order])
    assert close(model(x[[2, 2, 2]]), whole[[2, 2, 2]], 2e-6)
    assert not close(model(x.roll(1, 0)), whole, 1e-3)  # the images do differ


@torch.no_grad()
def test_a_batch_statistic_is_seen():
    """Negative control: batch norm left in training mode ties the images of a batch."""
    model, x = create("pale"), images(8, 3, 40, 56)
    model.train()
    assert not close(torch.cat([model(i[None]) for i in x]), model(x), 2e-6)


@every_family
@torch.no_grad()
def test_empty_batch(family):
    model = MODELS[family]
    assert model(torch.zeros(0, 3, 40, 56)).shape == (0, 10)
    assert [tuple(m.shape[:2]) for m in model.features(torch.zeros(0, 3, 40, 56))] == [
        (0, stage.dim) for stage in model.spec.stages
    ]


@every_family
@torch.no_grad()
def test_memory_layouts(family):
    """Channels-last, strided, transposed, expanded and offset images; none is written to.  How far
    float32 itself is from float64 on this processor is the measure of what may differ."""
    model, x = MODELS[family], images(2, 3, 40, 56)
    want = model(x)
    exact = copy.deepcopy(model).double()(x.double())
    limit = 4 * error(want.double(), exact) + 1e-7 * float(want.abs().amax())
    assert limit <= 1e-4 * float(want.abs().amax())
    layouts = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "strided": images(2, 3, 80, 112).copy_(x.repeat_interleave(2, 2).repeat_interleave(2, 3))[
            :, :, ::2, ::2
        ],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "offset": torch.cat([x.flatten()[:5], x.flatten()])[5:].view_as(x),
    }
    for name, laid in layouts.items():
        kept = laid.clone()
        assert torch.equal(laid, x), name
        assert error(model(laid).double(), exact) <= limit, name
        assert torch.equal(laid, kept), name
    expanded = model(x[:1].expand(3, -1, -1, -1)).double()
    assert error(expanded, exact[:1].expand(3, -1)) <= limit


# -- gradients -------------------------------------------------------------------------------

# A constant added to all keys leaves every softmax as it is: the key part of a bias, and in
# pale also the shift of the norm before the keys' pointwise layer; and the last bias of a dynamic
# position bias, which all pairs have.
KEY_BIASES = (
    "k.pointwise.bias", "k.norm.bias", "mixer.k.bias", "norm_scores.bias",
    "mixer.branch.bias.layers.9.bias",
)  # fmt: skip


def gradient_gaps(model: nn.Module, *, dense: bool = False) -> list[str]:
    """Names of the parameters that a random projection of the outputs does not reach.

    In float64, where what is 0 but for rounding is far below 1e-10 of the others.
    """
    model = copy.deepcopy(model).double()
    x = images(2, 3, 61, 83).double()
    outputs = model.features(x) if dense else [model(x)]
    sum((out * images(*out.shape, seed=i)).sum() for i, out in enumerate(outputs)).backward()
    sizes = {}
    for name, parameter in model.named_parameters():
        if name.endswith(KEY_BIASES):
            continue
        grad = torch.zeros(1) if parameter.grad is None else parameter.grad
        if name.endswith("qkv.bias"):
            q, _, v = grad.chunk(3)
            grad = torch.stack([q.abs().amax(), v.abs().amax()]).amin()
        assert grad.isfinite().all(), name
        sizes[name] = float(grad.abs().amax())
    return [name for name, size in sizes.items() if size <= 1e-10 * max(sizes.values())]


@every_family
def test_every_parameter_learns(family):
    """All parameters drawn anew, no dropped paths: a finite gradient that is not 0."""
    assert gradient_gaps(create(family)) == []


@every_family
def test_every_parameter_learns_from_features(family):
    """features() with out_norms: everything but what only forward() uses, norm and head."""
    model = create(family, "out_norms=true")
    names = [name for name, _ in model.named_parameters()]
    gaps = gradient_gaps(model, dense=True)
    after = ("norm.", "pre_head.", "head.")
    assert set(gaps) == {name for name in names if name.startswith(after)}
    logits = gradient_gaps(create(family, "out_norms=true"))
    norms = {name for name in names if name.startswith("out_norms.")}
    levels = 0 if model.spec.stage_norms else len(model.spec.stages)
    assert len(norms) == 2 * levels and set(logits) == norms


@pytest.mark.parametrize("position", ["absolute", "absolute_stages", "cpe"])
def test_positions_learn(position):
    assert gradient_gaps(create("swin", f"position={position}")) == []


def test_a_dead_parameter_is_seen():
    """Negative controls: an MLP left out, and Swin V2's norms at their initial 0."""
    model = create("swin")
    model.stages[1].blocks[0].mlp.register_forward_hook(_zero)
    assert {name.split(".mlp")[0] for name in gradient_gaps(model)} == {
        "stages.1.blocks.0", "stages.1.blocks.0.norm2.weight", "stages.1.blocks.0.norm2.bias",
    }  # fmt: skip
    untrained = backbones.create(notation("swinv2")).eval()
    assert "stages.0.blocks.0.mlp.fc1.weight" in gradient_gaps(untrained)


def _zero(module, inputs, out):
    return out * 0


@every_family
def test_untrained_models_are_finite(family):
    """At initialisation too, and swinv2's blocks start as the identity."""
    model = backbones.create(notation(family)).eval()
    assert model(images(1, 3, 40, 56)).isfinite().all()
    if family == "swinv2":
        x = images(1, 5, 5, 8)
        assert torch.equal(model.stages[0].blocks[1](x), x)


# -- determinism -----------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, "tests")
import torch
import backbones
from tiny import FAMILIES, images, notation, state_hash
torch.set_num_threads(1)
for family in FAMILIES:
    torch.manual_seed(int(sys.argv[1]))
    model = backbones.create(notation(family), drop_path=0.5)
    x = images(2, 3, 40, 56)
    model.train()(x).square().sum().backward()
    grads = sum(float(p.grad.double().sum()) for p in model.parameters() if p.grad is not None)
    model.eval()
    print(family, state_hash(model), float(model(x).double().sum()), grads)
"""


def run(seed: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed)], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_fresh_processes_agree():
    """One seed twice, bit for bit: weights, outputs, gradients, dropped paths; another differs."""
    first = run(1)
    assert len(first) == len(FAMILIES)
    assert first == run(1)
    assert all(a != b for a, b in zip(first, run(2), strict=True))


# -- sizes -----------------------------------------------------------------------------------


def check_size(family: str, h: int, w: int) -> None:
    model = MODELS[family]
    x = images(1, 3, h, w)
    with torch.no_grad():
        maps, logits = model.features(x), model(x)
    for found, stage, stride in zip(maps, model.spec.stages, model.strides, strict=True):
        assert found.shape == (1, stage.dim, -(-h // stride), -(-w // stride))
        assert found.isfinite().all()
    assert logits.shape == (1, 10) and logits.isfinite().all()


side = st.one_of(st.integers(1, 70), st.sampled_from(PRIMES))


@every_family
@settings(max_examples=30)
@given(h=side, w=side)
@example(h=1, w=1)
@example(h=1, w=67)
@example(h=70, w=1)
@example(h=61, w=59)
def test_any_size(family, h, w):
    """Sides from 1 pixel, primes among them: every map has ceil(side / stride) rows and columns."""
    check_size(family, h, w)


@pytest.mark.slow
@every_family
@settings(max_examples=125)
@given(h=st.integers(32, 512), w=st.integers(32, 512))
def test_any_size_to_512(family, h, w):
    """Over the families, 1,000 sizes."""
    check_size(family, h, w)


# The spec's own arithmetic, apart from the model.
@given(
    h=st.integers(1, 10**6), w=st.integers(1, 10**6), patch=st.integers(1, 32),
    stages=st.integers(2, 5),
)  # fmt: skip
def test_grids_round_up_once(h, w, patch, stages):
    """Rounding up stage by stage is rounding up once."""
    table = [{"dim": 4, "heads": 1, "mixers": ["full"]}] * stages
    spec = backbones.from_dict({"stages": table, "patch_size": patch})
    steps = [(-(-h // patch), -(-w // patch))]
    for _ in range(stages - 1):
        steps.append(((steps[-1][0] + 1) // 2, (steps[-1][1] + 1) // 2))
    assert spec.grids((h, w)) == steps


@pytest.mark.parametrize(
    "edits",
    [
        ["patch_size=2"], ["patch_size=3"], ["patch_size=16"], ["patch_size=1", "stem=overlap"],
        ["stem=overlap", "patch_size=3"], ["stem=overlap_same", "patch_size=5"],
        ["stem=overlap", "patch_size=4"], ["stem=overlap_same", "patch_size=2"],
        ["downsample=merge_post"], ["downsample=conv_norm"], ["downsample=conv"],
    ],
    ids="/".join,
)  # fmt: skip
@torch.no_grad()
def test_stems_and_downsampling_round_up(edits):
    """Every stem and every downsampling, at sides around the stride: ceil, exactly."""
    model = create("swin", *edits)
    stride = model.spec.patch_size
    for h in (1, stride - 1, stride, stride + 1, 31):
        if h < 1:
            continue
        maps = model.features(images(1, 3, h, 37))
        sizes = [(-(-h // stride // 2**i), -(-37 // stride // 2**i)) for i in range(4)]
        assert [tuple(m.shape[2:]) for m in maps] == [
            (-(-h // (stride * 2**i)), -(-37 // (stride * 2**i))) for i in range(4)
        ], sizes


@pytest.mark.parametrize("stages", [2, 3, 5])
@torch.no_grad()
def test_numbers_of_stages(stages):
    """Two to five stages with odd depths, another number of channels, any MLP ratio."""
    table = [
        {
            "dim": 4 * 2**i, "depth": 2 * i + 1, "heads": 2, "mlp_ratio": [1, 2.5, 0.3][i % 3],
            "mixers": ["window:size=3x5", "cross:size=2x3"],
        }
        for i in range(stages)
    ]  # fmt: skip
    spec = {"stages": table, "in_channels": 5, "num_classes": 7}
    model = randomise(backbones.create(spec)).eval()
    x = images(2, 5, 45, 31)
    assert model(x).shape == (2, 7)
    maps = model.features(x)
    assert [m.shape[1] for m in maps] == [4 * 2**i for i in range(stages)]
    assert model.stages[1].blocks[0].mlp.fc1.out_features == int(8 * 2.5)
    assert close(torch.cat([model(x[:1]), model(x[1:])]), model(x), 2e-6)


@torch.no_grad()
def test_rectangular_windows_are_height_first():
    """A window of 2 rows x 4 columns reaches 4 columns, not 4 rows."""
    model = create("swin", "1=window:size=2x4,shift=false", "1.depth=1")
    x = images(1, 8, 8, 8)
    x2 = x.clone()
    x2[0, 0, 0, 0] += 1  # one channel: a shift of all of them is lost in the norm
    moved = (model.stages[0](x2) - model.stages[0](x)).abs().amax((0, 1)) > 1e-7
    want = torch.zeros(8, 8, dtype=torch.bool)
    want[:2, :4] = True
    assert torch.equal(moved, want)


# -- state -----------------------------------------------------------------------------------


@every_family
def test_state_is_parameters_and_batch_statistics(family):
    """No masks, no index tables: what can be computed is not stored."""
    model = MODELS[family]
    allowed = {name for name, _ in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            allowed |= {f"{name}.{b}" for b in ("running_mean", "running_var")}
            allowed.add(f"{name}.num_batches_tracked")
    assert set(model.state_dict()) == allowed
    batch = ("pale", "hybrid", "shuffletransformer", "maxvit", "dat")
    assert any("running" in name for name in allowed) == (family in batch)


@every_family
@torch.no_grad()
def test_copies_are_equal_and_separate(family):
    """deepcopy, and a clone by state dict through a file that is not pickled code."""
    model, x = MODELS[family], images(1, 3, 40, 56)
    want, before = model(x), state_hash(model)
    deep = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = backbones.create(model.spec).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for clone in (deep, loaded):
        assert torch.equal(clone(x), want)
        for parameter in clone.parameters():
            parameter.zero_()
    assert state_hash(model) == before


@every_family
@torch.no_grad()
def test_dtypes_and_back(family):
    """bfloat16 and back: no NaN, one kind of tensor throughout; float64 near float32."""
    model, x = create(family), images(2, 3, 40, 56)
    want = model(x)
    wide = copy.deepcopy(model).double()(x.double())
    assert wide.dtype == torch.float64
    assert close(want.double(), wide, 1e-5)
    half = copy.deepcopy(model).to(torch.bfloat16)
    for scale in (0.0, 1.0, 1e3, 1e-6):
        out = half(x.bfloat16() * scale)
        assert out.dtype == torch.bfloat16 and out.isfinite().all()
        assert all(
            m.dtype == torch.bfloat16 and m.isfinite().all()
            for m in half.features(x.bfloat16() * scale)
        )
    back = half.to(torch.float32)
    assert {t.dtype for t in back.parameters()} == {torch.float32}
    # (how far bfloat16 may lie is a matter of the mixers; here only that it is the same model)
    assert torch.nn.functional.cosine_similarity(back(x).flatten(), want.flatten(), 0) > 0.9


@every_family
def test_autocast(family):
    """Under bfloat16 autocast: finite, forward and backward."""
    model = create(family)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images(2, 3, 40, 56))
    out.float().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_family
def test_meta_device(family):
    """Built and run without memory: the shapes alone."""
    with torch.device("meta"):
        model = backbones.create(notation(family))
        out = model(torch.zeros(3, 3, 61, 37))
    assert out.is_meta and out.shape == (3, 10)
    assert all(p.is_meta for p in model.parameters())


def test_moving_off_the_meta_device():
    """to_empty and a load give the model back: nothing was made at construction that is lost."""
    for family in FAMILIES:
        model = MODELS[family]
        with torch.device("meta"):
            other = backbones.create(model.spec)
        other = other.to_empty(device="cpu").eval()
        other.load_state_dict(model.state_dict())
        x = images(1, 3, 40, 56)
        assert torch.equal(other(x), model(x))


@every_family
def test_freezing(family):
    """Frozen parameters stay as they are, the others learn."""
    model = create(family)
    model.stem.requires_grad_(False)
    model.stages[0].requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model(images(1, 3, 40, 56)).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("stem.", "stages.0."))
        moved = not torch.equal(parameter, before[name])
        assert moved != frozen or name.endswith(KEY_BIASES), name


# -- stochastic depth ------------------------------------------------------------------------


def test_drop_path_acts_in_training_only():
    """Rates rise from 0 to the given one over all blocks; eval mode and rate 0 leave it out."""
    model = create("swin", "drop_path=0.7")
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.7 * i / 7 for i in range(8)])
    plain, x = create("swin"), images(4, 3, 40, 56)
    assert torch.equal(model(x), plain(x))
    model.train()
    plain.train()
    torch.manual_seed(0)
    first = model(x)
    assert not torch.equal(first, model(x))
    assert torch.equal(plain(x), plain(x))
    torch.manual_seed(0)
    assert torch.equal(first, model(x))


def test_drop_path_leaves_the_local_convolution():
    """A block that drops its mixer and its MLP is its local convolution."""
    block, x = create("swin", "local=3").stages[0].blocks[0].train(), images(4, 5, 6, 8)
    block.drop_path.rate = 1 - 1e-9
    assert torch.equal(block(x), block.local(x))
    assert not torch.equal(block.local(x), x)


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    layer = DropPath(0.25).train()
    torch.manual_seed(0)
    out = layer(torch.ones(4000, 2, 2, 3))
    per_image = out.flatten(1)
    assert ((per_image == 0).all(1) | (per_image == 1 / 0.75).all(1)).all()
    assert abs(float(out.mean()) - 1) < 0.05
    assert layer.eval()(out) is out


# -- fields ----------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_without_classes(family):
    """num_classes=0: the pooled features that the head would have read."""
    model = MODELS[family]
    bare = backbones.create(model.spec, num_classes=0).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    assert set(bare.state_dict()) == set(state)
    bare.load_state_dict(state)
    x = images(2, 3, 40, 56)
    assert bare(x).shape == (2, model.spec.stages[-1].dim)
    assert torch.equal(model.head(bare(x)), model(x))


@torch.no_grad()
def test_out_norms_do_not_touch_the_trunk():
    """The levels are normed on their way out; the next stage and the logits see the plain map."""
    plain, normed = create("swin"), create("swin", "out_norms=true")
    normed.load_state_dict(plain.state_dict(), strict=False)
    x = images(1, 3, 40, 56)
    assert torch.equal(normed(x), plain(x))
    for norm, a, b in zip(normed.out_norms, plain.features(x), normed.features(x), strict=True):
        assert torch.equal(norm(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), b)
        assert not torch.equal(a, b)


@torch.no_grad()
def test_absolute_position():
    """Added as it is at its own size, interpolated at others; a constant one stays constant."""
    model = create("swin", "position=absolute", "img_size=40x56")
    bare = create("swin", "img_size=40x56")
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k != "stem.position"})
    assert model.stem.position.shape == (1, 8, 10, 14)
    x = images(1, 3, 40, 56)
    assert torch.equal(model.stem(x), bare.stem(x) + model.stem.position)
    assert torch.equal(model.stem(x[..., :53]), bare.stem(x[..., :53]) + model.stem.position)
    assert not torch.equal(model(x), bare(x))
    for size in ((64, 64), (1, 1), (23, 131)):
        x = images(1, 3, *size)
        assert model(x).isfinite().all()
        assert model.stem(x).shape == bare.stem(x).shape
        constant = copy.deepcopy(model)
        constant.stem.position.fill_(0.5)
        assert close(constant.stem(x), bare.stem(x) + 0.5, 1e-6)


@torch.no_grad()
def test_conditional_position_comes_before_every_block():
    model = create("pale")
    bare = copy.deepcopy(model)
    block, x = bare.stages[0].blocks[1], images(1, 6, 7, 8)
    conv, block.cpe = block.cpe, None
    want = block(x + conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    assert close(model.stages[0].blocks[1](x), want, 1e-6)


@torch.no_grad()
def test_norm_before_and_after():
    """x + f(norm(x)) and x + norm(f(x)), written out."""
    for norm in ("pre", "res_post"):
        block = create("swin", f"norm={norm}").stages[0].blocks[1]
        x = images(1, 6, 7, 8)
        y = x
        for n, f in ((block.norm1, block.mixer), (block.norm2, block.mlp)):
            y = y + (f(n(y)) if norm == "pre" else n(f(y)))
        assert torch.equal(block(x), y)


@torch.no_grad()
def test_norms_on_the_residual_start_at_zero():
    """As Swin V2's authors initialise them: every new block is the identity; others start at 1."""
    for norm, start in (("res_post", 0), ("pre", 1)):
        for stage in backbones.create(notation("swin", f"norm={norm}")).stages:
            for block in stage.blocks:
                for layer in (block.norm1, block.norm2):
                    assert bool((layer.weight == start).all() and (layer.bias == 0).all())
                x = images(1, 3, 3, stage.spec.dim)
                assert torch.equal(block(x), x) == (norm == "res_post")


# -- checkpointing ---------------------------------------------------------------------------


def test_checkpointing_is_switched_on_and_off():
    model = create("swin")
    for enable, per, wanted in (
        (True, "block", "block"), (True, "stage", "stage"), (False, "stage", None),
    ):  # fmt: skip
        model.set_grad_checkpointing(enable, per)
        assert [stage.checkpointing for stage in model.stages] == [wanted] * 4


# -- small maps ------------------------------------------------------------------------------


def windows(spec) -> list[str]:
    return [stage.pattern() for stage in spec.stages]


def test_small_maps_of_the_authors():
    """Window 16 at 256: the last stage gets 8 and no shift; so at 512 nothing happens."""
    text = "swinv2_t_w8/1=window:size=16/2=window:size=16/3=window:size=16/4=window:size=16"
    spec = backbones.parse(text + "/small_maps=shrink_both")
    assert windows(spec.resolve()) == [
        "window:size=16", "window:size=16", "window:size=16,shift=false",
        "window:size=8,shift=false",
    ]  # fmt: skip
    assert windows(spec.resolve((1024, 1024))) == ["window:size=16"] * 4
    assert spec.resolve().small_maps == "pad"
    assert spec.resolve().resolve() == spec.resolve()
    assert backbones.create(spec, num_classes=0).spec == spec.resolve((256, 256)).__class__(
        **{**vars(spec.resolve()), "num_classes": 0}
    )


@pytest.mark.parametrize("mixer", ["window", "cosine", "token_mlp"])
def test_rules_on_a_map_of_one_to_two(mixer):
    """64x128 with window 4: the authors take the shorter side, timm each axis, pad neither."""
    stages = [{"dim": 4 * 2**i, "heads": 1, "mixers": [f"{mixer}:size=4"]} for i in range(4)]
    spec = {"stages": stages, "img_size": (64, 128)}

    def resolved(rule):
        return windows(backbones.from_dict({**spec, "small_maps": rule}).resolve())

    kept = f"{mixer}:size=4"
    assert resolved("pad") == [kept] * 4
    assert resolved("shrink_both") == [
        kept, kept, f"{mixer}:size=4,shift=false", f"{mixer}:size=2,shift=false",
    ]  # fmt: skip
    # maps 16x32, 8x16, 4x8 (shifts along the row only, which one window covers not), 2x4
    assert resolved("shrink_axis") == [kept, kept, kept, f"{mixer}:size=2x4,shift=false"]


@torch.no_grad()
def test_rules_give_different_models():
    """On a 4x8 map, window 4: the authors do not shift, timm and padding shift along the row."""
    outputs = {}
    for rule in ("pad", "shrink_axis", "shrink_both"):
        model = create("swinv2", *(f"{i}=cosine:size=4" for i in (1, 2, 3, 4)), "img_size=64x128",
                       f"small_maps={rule}")  # fmt: skip
        assert model.spec.small_maps == "pad"
        outputs[rule] = model(images(1, 3, 64, 128))
    assert not close(outputs["shrink_both"], outputs["shrink_axis"], 1e-3)
    assert not close(outputs["pad"], outputs["shrink_axis"], 1e-3)


def test_stripe_that_covers_the_map():
    """CSWin's stage whose map equals its stripe attends globally, in one branch."""
    spec = backbones.parse("cswin_t/4=cross:size=7/small_maps=shrink_both")
    assert windows(spec.resolve())[3] == "full:position=lepe"
    assert spec.resolve().stages == backbones.parse("cswin_t").stages
    assert windows(spec.resolve((448, 448)))[3] == "cross"
    pad = backbones.parse("cswin_t/4=cross:size=7")
    assert windows(pad.resolve())[3] == "cross"


@pytest.mark.parametrize("size", [(224, 448), (448, 224)])
def test_a_stripe_that_covers_one_side_alone_stays(size):
    spec = backbones.parse("cswin_t/4=cross:size=7/small_maps=shrink_both")
    assert windows(spec.resolve(size))[3] == "cross"


# -- which block shifts ----------------------------------------------------------------------


def shifts(model, stage: int = 0) -> list[tuple[str, int]]:
    return [(str(b.mixer.config), b.mixer.index) for b in model.stages[stage].blocks]


@torch.no_grad()
def test_blocks_of_an_equal_mixer_alternate():
    """In window+axial every window block stands at an even depth; the second must still shift."""
    model = create("swin", "1=window:size=4+axial", "1.depth=4")
    assert shifts(model) == [
        ("window:size=4", 0), ("axial", 0), ("window:size=4", 1), ("axial", 1),
    ]  # fmt: skip
    cuts = [model.stages[0].blocks[i].mixer.groups(8, 8).rows.shift for i in (0, 2)]
    assert cuts == [0, 2]
    x = images(1, 8, 8, 8)
    plain = copy.deepcopy(model)
    plain.stages[0].blocks[2].mixer.index = 0
    block = model.stages[0].blocks[2].mixer
    assert not torch.equal(block(x), plain.stages[0].blocks[2].mixer(x))


def test_index_counts_equal_configs_only():
    model = create("swin", "1=window:size=4+window:size=2", "1.depth=5")
    assert [i for _, i in shifts(model)] == [0, 0, 1, 1, 2]
    same = create("swin", "1=window:size=4+window:size=4x4", "1.depth=4")
    assert [i for _, i in shifts(same)] == [0, 1, 2, 3]
    assert [i for _, i in shifts(model, 1)] == [0, 1]  # every stage counts anew


# -- cost ------------------------------------------------------------------------------------


@every_family
def test_cost_has_a_row_for_every_part(family):
    """Named as the modules are, on maps that pad too; pads are a share of their module."""
    model = MODELS[family]
    parts = model.cost(61, 83)
    names = {name for name, _ in model.named_modules()}
    assert {part.module for part in parts} <= names
    for module in {part.module for part in parts}:
        own = [part for part in parts if part.module == module]
        assert all(type(part.macs) is int and part.macs >= 0 for part in own)
        assert 0 <= sum(part.padding for part in own) <= sum(part.macs for part in own)
    assert {part.column for part in parts} <= {
        "projection", "mixing", "position", "mlp", "resample", "head",
    }  # fmt: skip


def test_positions_before_a_block_are_counted():
    """Nine multiply-adds a channel and token, in every block."""
    for stage, (h, w) in enumerate([(16, 21), (8, 11), (4, 6), (2, 3)]):
        parts = create("swin", "position=cpe").cost(61, 83)
        dim = create("swin").spec.stages[stage].dim
        own = [part for part in parts if part.module.startswith(f"stages.{stage}.")]
        found = {part.module: part.macs for part in own if part.module.endswith("cpe")}
        assert found == {f"stages.{stage}.blocks.{i}.cpe": 9 * dim * h * w for i in (0, 1)}
