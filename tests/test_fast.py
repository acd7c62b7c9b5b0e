"""The fast path equals the plain one, and is taken only where nobody can tell."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from strategies import draw_case
from tiny import FAMILIES, create, images, notation, randomise
from torch.utils.flop_counter import FlopCounterMode

import attention
import backbones
from analysis import counting
from attention import SpecError, branch, cores, fast, learning, ordering, products, scores
from backbones import weights
from backbones.layers import MLP

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}
SIZES = [(64, 64), (61, 100), (5, 33)]


def relative(found, wanted):
    """Largest difference, as a share of the largest value."""
    assert found.shape == wanted.shape and found.isfinite().all()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


@pytest.fixture
def taken(monkeypatch):
    """How often a fast product ran."""
    runs = []
    real = products.linear

    def spy(*args, **options):
        runs.append(1)
        return real(*args, **options)

    monkeypatch.setattr(products, "linear", spy)
    return runs


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_the_plain_path(family, dtype, taken):
    model, errors = create(family, in_channels=3).to(dtype), []
    for size in SIZES:
        x = images(2, 3, *size).to(dtype)
        kept = x.clone()
        with torch.no_grad():
            maps = model.features(x)
            assert taken
            taken.clear()
            with fast.plain():
                plain = model.features(x)
                exact = copy.deepcopy(model).double().features(x.double())

        assert not taken and torch.equal(x, kept)
        for found, same, wanted in zip(maps, plain, exact, strict=True):
            errors.append((relative(found, wanted), relative(same, wanted)))
            assert errors[-1][0] <= max(LIMITS[dtype], 3 * errors[-1][1])

    found, same = (sum(error) for error in zip(*errors, strict=True))
    assert found <= max(LIMITS[dtype], 1.3 * same)  # blocks add up in half, one map says little


@pytest.mark.parametrize("name", sorted(attention.names()))
def test_small_parts_are_the_same_map(name, monkeypatch):
    """Parts of one group of one image, as on maps that outgrow the cache."""
    rng = random.Random(name)
    for _ in range(15):
        case = draw_case(rng, name)
        mixer = randomise(case.build(), case.seed).double().eval()
        x = images(3, case.h, case.w, case.dim, seed=case.seed).double()
        with torch.no_grad():
            whole = mixer(x)
            with monkeypatch.context() as patch:
                patch.setattr(fast, "CACHE", 1)
                patch.setattr(fast, "ROWS", 1)
                patch.setattr(fast, "MASKS", 1)
                parts = mixer(x)
            with fast.plain():
                plain = mixer(x)
        assert relative(whole, plain) <= 1e-10 and relative(parts, plain) <= 1e-10, case


@pytest.mark.parametrize("name", sorted(attention.names()))
def test_a_bound_on_memory_is_kept(name, monkeypatch):
    """What a product gives takes no more than the bound, a padded map, or a group's q, k and v."""
    mixer = randomise(attention.create(name, dim=32, heads=4, index=1), 0).eval()
    x, sizes, real = images(3, 29, 31, 32), [], products.linear

    def spy(*args, **options):
        y = real(*args, **options)
        sizes.append(y.nbytes)
        return y

    monkeypatch.setattr(products, "linear", spy)
    with torch.no_grad():
        want, free = mixer(x), max(sizes, default=0)
        sizes.clear()
        with fast.bounded(1 / 64):
            found = mixer(x)
    assert relative(found, want) <= 1e-5
    if name not in ("token_mlp", "pale", "full"):  # none wider than a map; one group
        group = x[0].nbytes if name in ("axial", "cross") else 0
        assert max(sizes) <= max(2**14, 1.4 * x.nbytes, 3 * group) < free


@pytest.mark.parametrize("name", sorted(attention.names()))
def test_no_part_copies_the_whole_map(name, monkeypatch):
    """index_select copies what is not contiguous, as often as there are parts."""
    mixer, seen = randomise(attention.create(name, dim=32, heads=4)), []
    real = ordering.Order.take

    def take(self, tokens, places):
        seen.append(tokens.is_contiguous())
        return real(self, tokens, places)

    monkeypatch.setattr(ordering.Order, "take", take)
    with torch.no_grad(), fast.bounded(1e-6):
        mixer(images(2, 32, 13, 15).permute(0, 2, 3, 1))
    assert all(seen) and (len(seen) > 2 or name in ("token_mlp", "full"))


@pytest.mark.parametrize("index", [0, 1])
def test_token_mixing_takes_a_bound_of_rows(index, monkeypatch):
    """Few images, few rows of windows: no copy of a map that outgrows the cache."""
    mixer, seen = randomise(attention.create("token_mlp:size=7", dim=32, heads=4, index=index)), []
    x, real = images(3, 29, 31, 32), mixer._mix
    monkeypatch.setattr(mixer, "_mix", lambda x, groups: (seen.append(x.shape), real(x, groups))[1])
    with torch.no_grad():
        want = mixer(x)
        assert seen == [x.shape]
        seen.clear()
        with fast.bounded(1e-6):
            found = mixer(x)
        assert {shape[0] for shape in seen} == {1} and max(shape[1] for shape in seen) == 7
        assert sum(shape[1] for shape in seen) == 3 * 29 and relative(found, want) <= 1e-5
        seen.clear()
        with fast.plain():
            mixer(x)
    mixer(x)
    assert seen == 2 * [x.shape]  # with gradients, too


def test_a_bound_is_for_every_layer_and_image(monkeypatch):
    model, widest = create("swin", in_channels=3), []
    monkeypatch.setattr(fast, "slices", lambda rows, step: widest.append(step) or (
        slice(i, min(i + step, rows)) for i in range(0, rows, step)))  # fmt: skip
    x = images(4, 3, 64, 64)
    with torch.no_grad():
        want, free = model.features(x), min(widest)
        widest.clear()
        with fast.bounded(1e-6):
            found = model.features(x)
    assert max(widest) == 1 < free
    assert all(relative(a, b) <= 1e-5 for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("device", ["cuda" if torch.cuda.is_available() else "stand-in"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bound_holds_on_other_devices(family, device, taken, monkeypatch):
    """There the fast path is taken for a bound alone, and in inference only."""
    model, x = create(family, in_channels=3), images(2, 3, 61, 100)
    if device == "cuda":
        model, x = model.to(device), x.to(device)
    else:
        asked = fast._bound.get
        monkeypatch.setattr(fast, "_on_cpu", lambda x: False)
        monkeypatch.setattr(products, "_onednn", lambda x: False)
        monkeypatch.delattr(cores, "spread")  # threads are for the cores of a CPU
        monkeypatch.setattr(
            fast, "_bounds", lambda x, m: asked() is not None and not fast.learns(x, m)
        )
    with torch.no_grad():
        want = model.features(x)
        assert not taken
        with fast.bounded(1 / 64):
            found = model.features(x)
    assert taken and all(relative(a, b) <= 1e-5 for a, b in zip(found, want, strict=True))
    taken.clear()
    with fast.bounded(1 / 64):
        model.features(x)[0].sum().backward()
    assert not taken


@pytest.mark.parametrize("size", [0, -1, float("nan")])
def test_a_bound_of_nothing_is_refused(size):
    with pytest.raises(ValueError, match="MiB"), fast.bounded(size):
        pass


@pytest.mark.parametrize("again, own, numbers, times", [
    (True, True, 4, 1), (True, True, 1000, 2), (True, False, 1000, 1), (False, True, 4, 2),
    (False, False, 4, 1),
])  # fmt: skip
def test_a_forward_keeps_what_is_asked_for_again(again, own, numbers, times, monkeypatch):
    """The masks of all blocks side by side would outweigh the maps of one image."""
    monkeypatch.setattr(fast, "KEPT", 64)
    made = []

    def make():
        made.append(1)
        return torch.zeros(numbers)

    with fast.forward(again=again):
        for _ in range(2):
            assert len(fast.remember("key", make, own=own)) == numbers
    assert len(made) == times


def gradients(module, x, grad):
    x = x.clone().requires_grad_()
    parameters = list(module.parameters())
    out = module(x)
    found = torch.autograd.grad(out, [x, *parameters], grad, allow_unused=True)
    return [out.detach(), *found]


@pytest.mark.parametrize("name", sorted(attention.names()))
def test_gradients_equal_the_plain_path(name, monkeypatch, taken):
    monkeypatch.setattr(learning, "HIDDEN", 1)
    monkeypatch.setattr(scores, "SCORES", 1)
    rng = random.Random(name)
    for _ in range(15):
        case = draw_case(rng, name)
        mixer = randomise(case.build(), case.seed).double().train(bool(case.seed % 2))
        x = images(2, case.h, case.w, case.dim, seed=case.seed).double()
        grad = images(*x.shape, seed=1).double()
        found = gradients(mixer, x, grad)
        with fast.plain():
            wanted = gradients(mixer, x, grad)
        largest = max(float(g.abs().max()) for g in wanted if g is not None)
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            if other is not None:
                assert float((one - other).abs().max()) <= 1e-9 * largest, case
    assert len(taken) > 15 or name == "token_mlp"


@pytest.mark.parametrize("masked", [True, False])
def test_gradients_of_cosine_scores(masked):
    """Of queries and keys that are 0, too short to be stretched to their length, or long."""
    qkv = images(6, 5, 3, 2, 4).double()
    for i, length in enumerate((0.0, 1e-14, 0.9e-12, 1.1e-12)):
        qkv[:, i, :2] *= length / qkv[:, i, :2].norm(dim=-1, keepdim=True)
    mask = images(3, 2, 5, 5).double().requires_grad_() if masked else None
    gain = torch.tensor([0.3, 7.0]).double().requires_grad_()
    leaves = [t for t in (qkv.requires_grad_(), gain, mask) if t is not None]
    grad = images(6, 5, 8, seed=1).double()
    found, wanted = (
        torch.autograd.grad(attend(qkv, mask, 1.0, gain), leaves, grad)
        for attend in (scores.attend, scores._plain_attend)
    )
    assert float(wanted[0].abs().max()) > 1e10  # of the shortest
    for one, other in zip(found, wanted, strict=True):
        assert ((one - other).abs() <= 1e-9 * other.abs() + 1e-12).all()


@pytest.mark.parametrize("at_home", [True, False])
def test_gradients_by_either_product(at_home, monkeypatch):
    monkeypatch.setattr(products, "_MKL_AT_HOME", at_home)
    grad, weight = images(7, 6)[:, ::2], images(3, 5)
    want, out = grad.double() @ weight.double(), torch.empty(7, 5)
    assert relative(products.back(grad, weight).double(), want) <= 1e-6
    assert products.back(grad, weight, out=out) is out and relative(out.double(), want) <= 1e-6


def test_gradients_in_batches():
    net, x = create("swinv2"), images(1, 3, 32, 32).requires_grad_()
    out = net(x)
    grads = images(3, *out.shape, seed=1)
    together = torch.autograd.grad(out, x, grads, retain_graph=True, is_grads_batched=True)[0]
    for grad, found in zip(grads, together, strict=True):
        wanted = torch.autograd.grad(out, x, grad, retain_graph=True)[0]
        assert relative(found, wanted) <= 1e-4


@pytest.mark.parametrize("b", [0, 1, 3])
def test_tokens_are_selected(b):
    x, index = images(b, 6, 4), torch.tensor([5, 0, 0, 3])
    for t in (x, x[..., ::2], x.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(ordering.select(t, index), t[:, index])


@pytest.mark.parametrize("numbers", [1, 13, 1000])
def test_gradients_of_an_mlp_are_summed_over_its_parts(numbers, monkeypatch):
    monkeypatch.setattr(learning, "HIDDEN", 8 * numbers)
    mlp, x, grad = MLP(4, 6).double(), images(2, 3, 4).double(), images(2, 3, 4, seed=1).double()
    found = gradients(mlp, x, grad)
    with fast.plain():
        wanted = gradients(mlp, x, grad)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()


@pytest.mark.parametrize(
    "module, shape",
    [
        (lambda: MLP(4, 6), (2, 3, 4)),
        (lambda: attention.create("window:size=2", dim=4, heads=2, index=1), (1, 3, 4, 4)),
        (lambda: attention.create("cosine:size=2x3", dim=4, heads=2), (1, 3, 3, 4)),
    ],
)  # fmt: skip
def test_first_and_second_derivatives(module, shape):
    net = randomise(module(), 0).double()
    x = images(*shape).double().requires_grad_()
    assert torch.autograd.gradcheck(net, (x,)) and torch.autograd.gradgradcheck(net, (x,))


def test_training_keeps_no_scores():
    """What autograd keeps of a window mixer is smaller than its scores are."""
    mixer = attention.create("window:size=16", dim=8, heads=4)
    x = images(2, 16, 16, 8)
    sizes = []

    def pack(t):
        sizes.append(t.numel())
        return t

    for path, wanted in ((fast.plain, True), (torch.enable_grad, False)):
        sizes.clear()
        with path(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            mixer(x)
        assert any(n >= 2 * 4 * 256 * 256 for n in sizes) == wanted


@pytest.mark.parametrize("how", ["hook", "counter", "autocast", "fake", "half"])
def test_the_plain_path_where_somebody_looks(how, taken):
    model = create("swin")
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        if how == "hook":
            seen = []
            model.stages[0].blocks[0].mlp.fc1.register_forward_hook(lambda *a: seen.append(1))
            model.stages[0].blocks[0].mlp(images(1, 4, 4, 8))
            assert seen
        elif how == "counter":
            with FlopCounterMode(display=False) as counter:
                model(x)
            assert counter.get_total_flops() == 2 * counting.count(model, 32).macs
        elif how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                model(x)
        elif how == "fake":
            model.to("meta")(x.to("meta"))
        else:
            model.half()(x.half())
    assert not taken


def test_a_foreign_layer_is_called(taken):
    """Adapters, quantised and parametrised layers stand where a linear layer was."""

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    mlp = MLP(4, 8)
    mlp.fc2 = Doubled(8, 4)
    x = images(2, 3, 4)
    with torch.no_grad():
        assert torch.equal(mlp(x), mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x))))
    assert not taken


def test_planted_mistakes_are_seen(monkeypatch):
    """The comparisons above fail with one line wrong."""
    mixer = randomise(attention.create("window:size=4", dim=8, heads=2, index=1), 0).double()
    x, grad = images(1, 8, 8, 8).double(), images(1, 8, 8, 8, seed=1).double()
    with fast.plain():
        wanted = gradients(mixer, x, grad)
    real = attention.groups.Groups.order
    with monkeypatch.context() as patch:
        patch.setattr(
            attention.groups.Groups, "order", lambda *a: tuple(t.roll(1) for t in real(*a))
        )
        with torch.no_grad():
            assert relative(mixer(x), wanted[0]) > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(learning._Move, "backward", lambda ctx, grad: (grad, None, None))
        assert relative(gradients(mixer, x, grad)[1], wanted[1]) > 1e-3


@pytest.mark.parametrize("per", [None, "block", "stage"])
def test_tables_of_places_are_made_once_a_stage_in_training(monkeypatch, per):
    """Once for every cut of the map; where blocks run again in backward, again.  The biases,
    which learn, are made by each block."""
    model = create("swinv2", "3.depth=6", in_channels=3).train()
    model.set_grad_checkpointing(per is not None, **({"per": per} if per else {}))
    made, position, groups = [], attention.position, attention.groups.Groups

    def spied(name, real):
        return lambda *args, **options: (made.append(name), real(*args, **options))[1]

    for owner, name in (
        (ordering, "order"), (learning, "order"), (position, "relative_index"),
        (position, "log_steps"), (groups, "parted"), (branch.Branch, "mask"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, spied(name, getattr(owner, name)))
    out = model(images(1, 3, 128, 128))  # windows shift in stages 1 and 2 and cover 3 and 4
    once = {"order": 6, "relative_index": 4, "log_steps": 4, "parted": 6, "mask": 12}
    assert {name: made.count(name) for name in once} == once
    out.sum().backward()
    assert (len(made) > sum(once.values())) == (per is not None)


def test_tables_are_told_apart():
    """Blocks of one stage whose cuts are equal and whose tables are not."""
    mixers = "cosine:size=4,pretrained_window=7+cosine:size=4+window:size=4+window:size=4x3"
    model = create("swinv2", f"1={mixers}", "1.depth=8", in_channels=3).double()
    x, grad = images(2, 3, 64, 64).double(), images(2, 10).double()
    with fast.plain():
        wanted = gradients(model, x, grad)
    for one, other in zip(gradients(model, x, grad), wanted, strict=True):
        assert relative(one, other) <= 1e-10
    with torch.no_grad():
        assert relative(model(x), wanted[0]) <= 1e-10
        assert relative(model.fold((64, 64))(x), wanted[0]) <= 1e-10


# -- folded ------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """What is made from parameters and sizes, by what makes it."""
    makers = []
    for owner, name in ((ordering, "order"), (products, "pack"), (branch.Branch, "mask")):
        real = getattr(owner, name)

        def spy(*args, real=real, name=name, **options):
            makers.append(name)
            return real(*args, **options)

        monkeypatch.setattr(owner, name, spy)
    return makers


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_is_the_same_map(family, dtype, made):
    """At its size nothing is made again, at another everything."""
    model = create(family, in_channels=3).to(dtype)
    wanted = {}
    for size in SIZES:
        with torch.no_grad():  # which is the plain one's, shown above
            wanted[size] = model.features(images(3, 3, *size).to(dtype))
    assert not model.folded
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert model.fold(SIZES[0]).folded
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(before) == set(model.state_dict())
    for size, maps in wanted.items():
        made.clear()
        with torch.no_grad():
            found = model.features(images(3, 3, *size).to(dtype))
        no_groups = family == "swinmlp"
        assert bool(made) == (size != SIZES[0] and not no_groups), (size, made)
        for one, other in zip(found, maps, strict=True):
            assert relative(one, other) <= LIMITS[dtype]
    assert model.folded


@pytest.mark.parametrize("name", ["swin", "swinv2", "pale"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train().eval(),
        lambda model: randomise(model, 5),
        lambda model: model.load_state_dict({k: v / 2 for k, v in model.state_dict().items()}),
        lambda model: model.double().float(),
        lambda model: weights.load(model, randomise(copy.deepcopy(model), 6).state_dict()),
        lambda model: model.unfold(),
        lambda model: copy.deepcopy(model),
    ],
    ids=["train", "in place", "load_state_dict", "cast", "weights.load", "unfold", "copy"],
)
def test_what_undoes_folding(name, change):
    """And nothing stale is used afterwards."""
    model = create(name, in_channels=3).fold((64, 64))
    x = images(2, 3, 64, 64)
    changed = change(model)
    model = changed if isinstance(changed, torch.nn.Module) else model
    assert not model.folded
    with torch.no_grad():
        found = model.eval()(x)
        with fast.plain():
            assert relative(found, model(x)) <= 1e-4  # what is stale is wrong by its own size


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_sees_each_tensor_change(family):
    """Any parameter or running statistic, alone and in place."""
    spec = backbones.parse(notation(family, "1.depth=2", "2.depth=1"))
    model = randomise(backbones.create(spec, stages=spec.stages[:2])).eval()
    x = images(2, 3, 64, 64)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            model.fold((64, 64))
            tensor.mul_(1.5)
            with fast.plain():
                wanted = model(x)
            assert relative(model(x), wanted) <= 1e-5, name


def test_a_folded_model_trains_frozen_parts_and_counts_as_ever():
    """Gradients, counters and exports see the model that is not folded."""
    model = create("swin", in_channels=3)
    plain = copy.deepcopy(model)
    x = images(1, 3, 64, 64)
    model.fold((64, 64))
    with pytest.raises(SpecError, match=r"fold: the model is in training; call eval\(\) first"):
        copy.deepcopy(model).train().fold()
    grad = images(1, 10)
    for one, other in zip(gradients(model, x, grad), gradients(plain, x, grad), strict=True):
        assert torch.equal(one, other)
    hooks = [m.stages[0].register_forward_hook(lambda *_: None) for m in (model, plain)]
    for block in (*model.stages[1].blocks, *plain.stages[1].blocks):
        hooks.append(block.mixer.branch.register_forward_hook(lambda *_: None))
    for one, other in zip(gradients(model, x, grad), gradients(plain, x, grad), strict=True):
        assert torch.equal(one, other)  # the plain path, where a kept bias would not learn
    for hook in hooks:
        hook.remove()
    with fast.plain(), torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert counting.count(model, (64, 64)).macs == counting.count(plain, (64, 64)).macs
    assert model.folded
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad(), fast.plain():
        assert torch.equal(exported(x), plain(x))
