"""Tokens beside the map: the mixers that take them, blocks, stages and whole backbones, against
slow definitions (naive_tokens.py, and the forward of ViT written out here)."""

import copy
import math
import random

import naive
import naive_tokens
import pytest
import tiny
import torch
import torch.nn.functional as F
from strategies import Case, draw_case
from torch.utils.flop_counter import FlopCounterMode

import attention
import backbones
from analysis.models.influence import randomise
from attention.execution import chunks, dispatch
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec

TAKING = ("full", "sra", "messenger")  # the mixers that take tokens
over_takers = pytest.mark.parametrize("name", TAKING)


def seeded(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def drawn(name, seed, side=17, **options):
    """A case on a map of at most side x side, its mixer's tokens, and a batch of 0 to 2 images."""
    rng = random.Random(f"tokens {name} {seed}")
    case = draw_case(rng, name, side=side, **options)
    mixer = attention.create(case.text, dim=case.dim, heads=case.heads)
    tokens = naive_tokens.beside(mixer, case.h, case.w) or rng.choice([1, 1, 2, 5])
    return case, tokens, rng.choice([0, 1, 2, 2])


def inputs(case, tokens, batch=2, dtype=torch.float64):
    own = seeded(batch, tokens, case.dim, seed=case.seed + 2, dtype=dtype)
    return case.input(batch, dtype), own


def largest(found, wanted):
    """The largest difference of two pairs of map and tokens."""
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and a.isfinite().all()
    return max(float((a - b).abs().max()) if a.numel() else 0.0
               for a, b in zip(found, wanted, strict=True))  # fmt: skip


# -- mixers ----------------------------------------------------------------------------------


def test_what_takes_tokens():
    takers = {name for name in attention.names() if attention.parse(name).takes_tokens}
    assert takers == set(TAKING)


@over_takers
@torch.no_grad()
def test_values(name):
    """Map and tokens are those of the definition, on maps of any size."""
    seen = []
    for seed in range(40):
        case, tokens, batch = drawn(name, seed)
        mixer, given = case.build(hot=seed % 2 == 1), inputs(case, tokens, batch)
        assert largest(mixer(*given), naive_tokens.forward(mixer, *given)) <= 1e-10, case
        seen.append((case, mixer.config, batch))
    assert {batch for *_, batch in seen} == {0, 1, 2}
    assert {config.scores for _, config, _ in seen} == {"dot", "cosine"}
    if name == "sra":
        assert sum(config.pool is not None for _, config, _ in seen) >= 5
        assert sum(config.ratio != (1, 1) for _, config, _ in seen) >= 20
    else:
        positions = {config.position for _, config, _ in seen} - {"bias"}
        assert positions == {"none", "log_cpb", "lepe", "dpb"}
    if name == "messenger":
        assert sum(c.h % f.size[0] > 0 or c.w % f.size[1] > 0 for c, f, _ in seen) >= 20


@over_takers
def test_gradients(name):
    """Of the map, the tokens and every parameter."""
    for seed in range(6):
        case, tokens, _ = drawn(name, seed, side=6)
        mixer, given = case.build(), inputs(case, tokens)
        of = [*(t.requires_grad_() for t in given), *mixer.parameters()]
        weights = [seeded(*t.shape, seed=3) for t in given]
        found, wanted = (
            torch.autograd.grad(
                sum((y * c).sum() for y, c in zip(out, weights, strict=True)), of,
                materialize_grads=True,
            )
            for out in (mixer(*given), naive_tokens.forward(mixer, *given))
        )  # fmt: skip
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).abs().max() <= 1e-9 * max(1.0, float(b.abs().max())), case


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("full:position=lepe", 2), ("sra:ratio=2", 2), ("messenger:size=2,region=1", 2)],
)
def test_gradcheck(text, tokens):
    """The gradients are right by finite differences."""
    case = Case(text, 4, 2, 0, 2, 3, seed=4)
    mixer, given = case.build(), inputs(case, tokens, batch=1)
    given = [t.requires_grad_() for t in (*given, *mixer.parameters()) if t.numel() <= 64]
    assert torch.autograd.gradcheck(lambda x, own, *_: mixer(x, own), given)


@over_takers
@torch.no_grad()
def test_any_strides(name):
    """The strides of map and tokens change nothing, and neither is written to."""
    for seed in range(8):
        case, tokens, _ = drawn(name, seed, side=9)
        mixer, (x, own) = case.build(), inputs(case, tokens)
        wanted = mixer(x, own)
        for view in (
            own.transpose(1, 2).contiguous().transpose(1, 2),
            own.repeat_interleave(2, 1)[:, ::2],
            torch.cat([own, own], dim=2)[..., case.dim :],
        ):
            kept, columns = view.clone(), x.transpose(1, 2).contiguous().transpose(1, 2)
            assert not view.is_contiguous() or 1 in view.shape or view.storage_offset()
            assert largest(mixer(columns, view), wanted) <= 1e-12
            assert torch.equal(view, kept) and torch.equal(columns, x)
        one = own[:1].expand(2, -1, -1)  # as the learned tokens of a backbone come
        assert largest(mixer(x, one), mixer(x, one.contiguous())) <= 1e-12


@over_takers
@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 4e-2), (torch.float32, 1e-5)])
@torch.no_grad()
def test_lower_precision(name, dtype, limit):
    for seed in range(8):
        case, tokens, _ = drawn(name, seed, side=9, head_dims=(8, 16), qk_scale=None)
        mixer, given = case.build(dtype), inputs(case, tokens, dtype=dtype)
        found = mixer(*given)
        assert [y.dtype for y in found] == [dtype, dtype]
        wanted = naive_tokens.forward(copy.deepcopy(mixer).double(), *(t.double() for t in given))
        error = largest([y.double() for y in found], wanted)
        assert error <= limit * max(float(y.abs().max()) for y in wanted), case


@over_takers
def test_no_images(name):
    """A batch of none, and its gradient of zero."""
    for seed in range(4):
        case, tokens, _ = drawn(name, seed, side=9)
        mixer, given = case.build(), [t.requires_grad_() for t in inputs(case, tokens, batch=0)]
        out = mixer(*given)
        assert [y.shape for y in out] == [t.shape for t in given]
        sum(y.sum() for y in out).backward()
        assert all(p.grad is None or not p.grad.any() for p in mixer.parameters())


@over_takers
def test_cost_is_what_runs(name):
    """On meta: torch's counter has 2 for a multiply-add.  And every part is the definition's."""
    for seed in range(24):
        case, tokens, _ = drawn(name, seed, side=13)
        mixer = case.build(torch.float32).to("meta")
        x = torch.empty(1, case.h, case.w, case.dim, device="meta")
        own = torch.empty(1, tokens, case.dim, device="meta")
        with FlopCounterMode(display=False) as counter:
            out = mixer(x, own)
        assert [y.shape for y in out] == [x.shape, own.shape]
        assert {y.device.type for y in out} == {"meta"}
        found = mixer.cost(case.h, case.w, tokens)
        assert counter.get_total_flops() == 2 * found.total, case
        assert tuple(found) == naive_tokens.cost(mixer, case.h, case.w, tokens), case
        assert mixer.cost(case.h, case.w) == mixer.cost(case.h, case.w, 0)


@pytest.mark.parametrize("name", ["full", "sra"])
@torch.no_grad()
def test_tokens_have_no_order(name):
    """Class tokens and registers are a set; none of them is a call with the map alone."""
    for seed in range(8):
        case, _, _ = drawn(name, seed, side=9)
        mixer, (x, own) = case.build(), inputs(case, 5)
        order = torch.tensor([3, 0, 4, 1, 2])
        on_map, beside = mixer(x, own)
        assert largest(mixer(x, own[:, order]), (on_map, beside[:, order])) <= 1e-12
        alone, none = mixer(x, own[:, :0])
        assert none.shape == (2, 0, case.dim) and (alone - mixer(x)).abs().max() <= 1e-12
        assert (on_map - alone).abs().max() > 1e-3


@over_takers
@torch.no_grad()
def test_image_by_image(name, monkeypatch):
    """The cpu backend takes map and tokens of a few images at a time."""
    monkeypatch.setattr(chunks, "IMAGES", 1)
    for seed in range(8):
        case, tokens, _ = drawn(name, seed, side=9)
        mixer, given = case.build(), inputs(case, tokens, batch=3)
        with attention.backend("cpu"):
            found = mixer(*given)
        with attention.backend("reference"):
            assert largest(found, mixer(*given)) <= 1e-12


@torch.no_grad()
def test_windows_without_messengers():
    """Called with the map alone, messenger is windows that are never shifted."""
    for index, position in ((0, "bias"), (1, "log_cpb")):
        options = f"size=3x2,position={position}"
        mixer = Case(f"messenger:region=2,{options}", 8, 2, index, 7, 5, seed=1).build()
        windows = attention.create(f"window:shift=false,{options}", dim=8, heads=2).double()
        names = set(windows.state_dict())
        windows.load_state_dict({key: mixer.state_dict()[key] for key in names})
        x = seeded(2, 7, 5, 8)
        assert torch.equal(mixer(x), windows(x))
        more = ["messenger_bias"] if position == "bias" else []
        assert sorted({*mixer.state_dict()} - names) == more


@torch.no_grad()
def test_exchange():
    """Channels of the messengers of a region change places; what is outside the map is zeros."""
    seen = set()
    for seed in range(60):
        case, tokens, batch = drawn("messenger", seed)
        mixer = case.build()
        own = seeded(batch, tokens, case.dim, seed=seed)
        found = mixer.exchange(own, case.h, case.w)
        assert torch.equal(found, naive_tokens.exchange(mixer, own, case.h, case.w)), case
        sides, region = mixer.config.windows(case.h, case.w), mixer.config.region
        whole = all(n % region == 0 for n in sides)
        seen.add((region, whole))
        if whole:
            assert torch.equal(mixer.exchange(found, case.h, case.w), own)
    assert seen >= {(1, True), (2, True), (2, False), (3, False)}
    full = attention.create("full", dim=8, heads=2)
    assert full.exchange(own, 3, 3) is own


# -- blocks, stages and backbones --------------------------------------------------------------


def normed(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return unit * norm.weight + norm.bias


def mlp(block, x):
    x = F.linear(x, block.mlp.fc1.weight, block.mlp.fc1.bias)
    x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return F.linear(x, block.mlp.fc2.weight, block.mlp.fc2.bias)


def mixed(block, x, own):
    """What the mixer adds to the map (b, h, w, c) and to the tokens beside it (b, t, c)."""
    if naive.kind_of(block.mixer) not in TAKING:
        return naive.forward(block.mixer, x), None
    return naive_tokens.forward(block.mixer, x, own)


def through(block, x, own):
    """One block, by its formulas: map and tokens."""
    post = block.post
    scales = [getattr(scale, "gamma", 1) for scale in (block.scale1, block.scale2)]
    inner = (x, own) if post else (normed(block.norm1, x), normed(block.norm1, own))
    added = mixed(block, *inner)
    if post:
        added = tuple(None if y is None else normed(block.norm1, y) for y in added)
    x = x + scales[0] * added[0]
    if added[1] is not None:  # else the mixer takes no tokens, and they skip it
        own = own + scales[0] * added[1]
        if naive.kind_of(block.mixer) == "messenger":
            own = naive_tokens.exchange(block.mixer, own, *x.shape[1:3])
    if post:
        return tuple(y + scales[1] * normed(block.norm2, mlp(block, y)) for y in (x, own))
    return tuple(y + scales[1] * mlp(block, normed(block.norm2, y)) for y in (x, own))


@pytest.mark.parametrize("norm", ["pre", "res_post"])
@torch.no_grad()
def test_tokens_skip_the_mixers_that_take_none(norm):
    """full+window: tokens attend in the even blocks, and pass every MLP."""
    stage = StageSpec(dim=8, depth=2, heads=2, mixers="full+window:size=3", tokens=2)
    spec = BackboneSpec(stages=(stage,), norm=norm, layer_scale=0.5, img_size=(20, 28))
    blocks = randomise(backbones.HierarchicalBackbone(spec)).double().stages[0].blocks
    x, own = seeded(2, 5, 7, 8), seeded(2, 2, 8, seed=1)
    for block in blocks:
        assert largest(block(x, own), through(block, x, own)) <= 1e-10
    on_map, beside = blocks[1](x, own)
    assert torch.allclose(on_map, blocks[1](x), rtol=0, atol=1e-12)
    other = blocks[1](seeded(2, 5, 7, 8, seed=5), own)[1]
    assert torch.allclose(beside, other, rtol=0, atol=1e-12) and (beside - own).abs().max() > 1e-3
    assert (blocks[0](x, own)[0] - blocks[0](x)).abs().max() > 1e-3


def interpolated(position, size, mode):
    if position.shape[2:] == size:
        return position
    return F.interpolate(position, size, mode=mode, align_corners=False)


def vit(model, images):
    """The forward of ViT: patches, tokens and positions, blocks, norm, pool, head."""
    p, spec = model.state_dict(), model.spec
    (stage,), side = spec.stages, spec.patch_size
    x = F.conv2d(images, p["stem.conv.weight"], p["stem.conv.bias"], stride=side)
    size = x.shape[2:]
    x = (x + interpolated(p["stem.position"], size, "bicubic")).flatten(2).mT  # (b, h w, c)
    first = p["stages.0.beside.tokens"]
    if spec.token_position:
        first = first + p["stages.0.beside.position"]
    x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)
    for i in range(stage.depth):
        def linear(name, x, i=i):
            name = f"stages.0.blocks.{i}.{name}"
            return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

        block = model.stages[0].blocks[i]
        qkv = linear("mixer.qkv", normed(block.norm1, x)).unflatten(2, (3, stage.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, heads, l, d) each
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        x = x + linear("mixer.proj", (weights @ v).transpose(1, 2).flatten(2))
        x = x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", normed(block.norm2, x))))
    x = normed(model.norm, x)
    pooled = x[:, 0] if spec.pool == "token" else x[:, stage.tokens :].mean(1)
    return F.linear(pooled, p["head.weight"], p["head.bias"])


@pytest.mark.parametrize("edits", [
    "1.tokens=1", "1.tokens=3", "1.tokens=3/token_position=false", "1.tokens=2/pool=mean",
])  # fmt: skip
@torch.no_grad()
def test_vit(edits):
    """A class token and registers, on the map of the spec and on another."""
    model = tiny.create("vit", *edits.split("/")).double()
    for h, w in ((64, 64), (40, 48)):
        images = seeded(2, 3, h, w)
        torch.testing.assert_close(model(images), vit(model, images), rtol=0, atol=1e-10)


def begun(stage, x, before):
    """The tokens beside the map at the start of a stage."""
    b, h, w, _ = x.shape
    beside = stage.beside
    if stage.spec.messenger is None:
        own = beside.tokens if beside.position is None else beside.tokens + beside.position
        return own.expand(b, -1, -1)
    if before is not None:  # a map of messengers, halved as the map
        return stage.downsample(before).flatten(2).mT
    (gh, gw), region = stage.spec.messenger.size, stage.spec.messenger.region
    rows, cols = math.ceil(h / gh), math.ceil(w / gw)
    own = [(i % region) * region + j % region for i in range(rows) for j in range(cols)]
    return beside.tokens[:, own].expand(b, -1, -1)


def backbone(model, images):
    """Levels and logits; downsampling and stem are the model's, which have tests of their own."""
    spec, levels, messengers = model.spec, [], None
    x, own = model.stem(images), None
    for stage in model.stages:
        x = stage.downsample(x)
        if stage.position is not None:
            x = x + interpolated(stage.position, x.shape[2:], "bilinear")
        x = x.permute(0, 2, 3, 1)
        own = begun(stage, x, messengers) if stage.beside is not None else None
        for block in stage.blocks:
            x, own = (block(x), None) if own is None else through(block, x, own)
        if spec.stage_norms:
            x, own = normed(stage.norm, x), None if own is None else normed(stage.norm, own)
        messengers = None
        if (config := stage.spec.messenger) is not None:
            sides = [math.ceil(n / g) for n, g in zip(x.shape[1:3], config.size, strict=True)]
            messengers = own.mT.unflatten(2, sides)
        x = x.permute(0, 3, 1, 2)
        levels.append(x)
    pooled = x.flatten(2).mT  # (b, l, c)
    if spec.pool == "token":
        pooled = own[:, :1] if config is None else own
    if not spec.stage_norms:
        pooled = normed(model.norm, pooled)
    return levels, F.linear(pooled.mean(1), model.head.weight, model.head.bias)


def of_all_kinds(**fields):
    """Tokens that skip a mixer and end with their stage, keys that are reduced, and messengers
    that end before the head and begin again."""
    stages = (
        StageSpec(dim=8, depth=2, heads=2, mixers="full+window:size=3", tokens=2),
        StageSpec(dim=8, depth=2, heads=2, mixers="messenger:size=2,region=2"),
        StageSpec(dim=16, depth=2, heads=2, mixers="messenger:size=2,region=1+window:size=3"),
        StageSpec(dim=16, depth=1, heads=2, mixers="sra:ratio=2", tokens=3),
    )
    spec = BackboneSpec(stages=stages, img_size=(64, 64), num_classes=10, **fields)
    return randomise(backbones.HierarchicalBackbone(spec))


MODELS = {
    "pvt": lambda: tiny.create("pvt1"),
    "msg": lambda: tiny.create("msg"),
    "msg, mean of the map": lambda: tiny.create("msg", "pool=mean"),
    "absolute": lambda: of_all_kinds(position="absolute", pool="token"),
    "in stages": lambda: of_all_kinds(
        position="absolute_stages", pool="token", stage_norms=True, token_position=False,
    ),
    "post": lambda: of_all_kinds(norm="res_post", layer_scale=0.5),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_backbones(kind):
    """Every level and the logits, on the image of the spec and on one that no window divides."""
    model = MODELS[kind]().double()
    for h, w in ((64, 64), (44, 71)):
        images = seeded(2, 3, h, w)
        levels, logits = backbone(model, images)
        for found, wanted in zip(model.features(images), levels, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(model(images), logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_cost_of_backbones(kind):
    """Stated multiply-adds are those that run, of tokens too."""
    model = MODELS[kind]().to("meta")
    for h, w in ((64, 64), (44, 71)):
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, h, w, device="meta"))
        assert counter.get_total_flops() == 2 * sum(part.macs for part in model.cost(h, w))


@pytest.mark.parametrize(
    ("text", "tokens", "said"),
    [
        ("full", (3, 2, 8), r"full takes tokens \(2, t, 8\) beside this map; given \(3, 2, 8\)"),
        ("sra", (2, 2, 9), r"sra takes tokens .* given \(2, 2, 9\)"),
        ("full", (2, 1, 1, 8), r"full takes tokens"),
        ("full", None, r"full takes tokens .* given NoneType"),
        ("window", (2, 2, 8), r"window takes no tokens beside its map"),
        ("messenger:size=3,region=2", (2, 3, 8), r"3 messengers for a map of 4 windows"),
    ],
)
def test_other_tokens_are_refused_in_one_line(text, tokens, said):
    mixer = attention.create(text, dim=8, heads=2)
    with pytest.raises(attention.SpecError, match=said) as caught:
        mixer(torch.zeros(2, 4, 5, 8), None if tokens is None else torch.zeros(tokens))
    assert "\n" not in str(caught.value)


def test_no_kernel_takes_tokens(monkeypatch):
    """One that would run on the map alone is refused where it is asked for, and passed over where
    backends are chosen by measurement."""
    mixer = attention.create("full", dim=8, heads=2).eval()
    monkeypatch.setattr(type(mixer), "kernel_refusal", lambda self, x: None)
    x, tokens = torch.zeros(1, 3, 4, 8), (torch.zeros(1, 2, 8),)
    with attention.backend("kernel"), pytest.raises(ValueError, match="tokens beside the map"):
        mixer(x, *tokens)
    monkeypatch.setattr(dispatch, "TRIED_ON", ("cpu",))
    choice = dispatch._on_gpu(mixer, x, tokens)
    assert (choice.name, choice.reason) == ("reference", "there are tokens beside the map")
