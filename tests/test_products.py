"""Graphs that torch.compile traces: of which operators they are made, and where of torch's own."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, images, notation, randomise
from torch import nn

import attention
import backbones
from attention import fast, products
from attention.branch import QKV
from backbones.layers import MLP, Merge


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def made(monkeypatch):
    """How often the product of `linear` ran."""
    runs, real = [], products.linear
    monkeypatch.setattr(
        products, "linear", lambda *args, **options: (runs.append(1), real(*args, **options))[1]
    )
    return runs


def short(family):
    """Its first two stages, three blocks."""
    spec = backbones.parse(notation(family, "2.depth=1"))
    return randomise(backbones.create(spec, stages=spec.stages[:2], in_channels=3)).eval()


def compiled(model, backend="aot_eager"):
    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("family", [
    family if family in ("swin", "pale") else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES
])  # fmt: skip
def test_compiled_is_the_plain_map(family, grad, made):
    """By `linear`'s products, in one graph."""
    model, x = short(family), images(2, 3, 61, 100)
    with torch.set_grad_enabled(grad):
        with fast.plain():
            want = model(x)
        made.clear()
        found = compiled(model)(x)
    assert made and (found - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("grad", [False, True])
def test_the_plain_path_is_compiled_as_it_is(grad, made):
    """And is another graph than the one before it."""
    model, x = short("swin"), images(2, 3, 61, 100)
    run = compiled(model)
    with torch.set_grad_enabled(grad):
        run(x)
        assert made
        with fast.plain():
            made.clear()
            assert torch.equal(run(x), model(x)) and not made
        assert torch.equal(run(x), model(x)) and made


@pytest.mark.parametrize("dtype", fast.DTYPES)
@pytest.mark.parametrize("grad", [False, True])
def test_types(dtype, grad, made):
    mlp, x = MLP(32, 48).to(dtype), images(5, 3, 4, 32).to(dtype)
    with torch.set_grad_enabled(grad):
        found = compiled(mlp)(x)
        assert made and torch.equal(found, mlp(x))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def double(mlp):
    mlp.fc1 = Doubled(32, 48)


def hook(mlp):
    mlp.fc1.register_forward_hook(lambda module, args, y: 3 * y)


def hook_before(mlp):
    mlp.fc2.register_forward_pre_hook(lambda module, args: (5 * args[0],))


def parametrize(mlp):
    nn.utils.parametrizations.weight_norm(mlp.fc1)


class Tripled(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            y = f(*args, **(kwargs or {}))
            return 3 * y if f is nn.functional.linear else y


def replace(mlp):
    """By what is no parameter, as pruning leaves it."""
    weight = mlp.fc1.weight.detach().as_subclass(Tripled)
    del mlp.fc1.weight
    mlp.fc1.weight = weight


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("change", [
    double, hook, hook_before, parametrize, replace,
])  # fmt: skip
def test_layers_that_are_others_are_called(change, grad, made):
    """What another class, a hook or a weight of another kind does, a product does not."""
    torch.manual_seed(0)
    mlp, x = MLP(32, 48), images(5, 3, 4, 32)
    usual = mlp(x).detach()
    change(mlp)
    made.clear()
    with torch.set_grad_enabled(grad):
        found, want = compiled(mlp)(x), mlp(x)
    assert not made
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()
    assert change is parametrize or (found - usual).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_hooks_on_every_module_are_called(grad, made):
    mlp, x = MLP(32, 48), images(5, 3, 4, 32)
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, y: 3 * y if type(module) is nn.Linear else None
    )
    try:
        with torch.set_grad_enabled(grad):
            found, want = compiled(mlp)(x), mlp(x)
    finally:
        hook.remove()
    assert not made and torch.equal(found, want)
    assert (found - mlp(x)).abs().max() > 1e-2


def test_weights_of_another_type_are_an_error(made):
    with torch.no_grad(), pytest.raises(Exception, match="dtype"):
        compiled(MLP(32, 48))(images(5, 3, 4, 32).bfloat16())
    assert not made


def test_autocast_is_torchs(made):
    mlp, x = MLP(32, 48), images(5, 3, 4, 32)
    run = compiled(mlp)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            with torch.autocast("cpu", torch.bfloat16):
                assert run(x).dtype is torch.bfloat16
            assert not made
            run(x)
        assert made
        made.clear()


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_graph_runs_without_us(strict, made):
    mixer = attention.create("window:size=4", dim=32, heads=2, index=1).eval()
    with torch.no_grad():
        program = torch.export.export(mixer, (images(1, 7, 9, 32),), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets and not [name for name in targets if "transom" in name]
    assert not made


def test_frozen_weights_are_the_compilers(made):
    """In inference; with gradients nothing is frozen."""
    mlp, x = MLP(32, 48), images(5, 3, 4, 32)
    for grad in (False, True):
        for freezing in (True, False):
            torch._dynamo.reset()
            made.clear()
            with torch.set_grad_enabled(grad), torch._inductor.config.patch(freezing=freezing):
                compiled(mlp)(x)
            assert bool(made) is (grad or not freezing)


@torch.no_grad()
def test_mapped_over_inputs_and_ensembles(made):
    """vmap in a graph is what it is outside, by torch's own product."""
    mlp, x, weights = MLP(32, 48), images(3, 5, 2, 4, 32), images(2, 48, 32)
    want = mlp(x.flatten(0, 1)).view(x.shape)
    made.clear()
    assert (compiled(torch.vmap(mlp))(x) - want).abs().max() <= 1e-5

    def with_weight(weight):
        return torch.func.functional_call(mlp, {"fc1.weight": weight}, (x[0],))

    found = compiled(torch.vmap(with_weight))(weights)
    assert not made
    for i, weight in enumerate(weights):
        mlp.fc1.weight.copy_(weight)
        assert (found[i] - mlp(x[0])).abs().max() <= 1e-5 * found.abs().max()


def qkv(*rows):
    return images(*rows, 4, 3, 2, 8)


OPERANDS = {
    "linear": [
        *((images(*shape), images(48, 32), bias) for shape in ((2, 3, 32), (0, 32))
          for bias in (images(48), None)),
        (images(32, 5).t(), images(32, 48).t(), None),
    ],
    "mlp": [(images(n, 32), images(48, 32), images(48), images(32, 48), images(32))
            for n in (5, 0)],
    "linear_back": [(images(n, 48), images(48, 32)) for n in (5, 0)],
    "attend": [(qkv(6), mask, 0.3, None) for mask in (
        images(1, 1, 4, 4), images(1, 2, 4, 4), images(3, 2, 4, 4), images(6, 1, 4, 4))]
    + [(qkv(0), images(3, 2, 4, 4), 0.3, None)]
    + [(qkv(6), mask, 1.0, images(2)) for mask in (images(3, 2, 4, 4), None)],
}  # fmt: skip
OPERANDS["mlp_learn"] = OPERANDS["mlp"]
OPERANDS["mlp_backward"] = [
    (images(n, 32), images(n, 32), images(48, 32), images(32, 48), images(n, 48)) for n in (5, 0)
]
OPERANDS["attend_backward"] = [
    (images(6, 4, 16), *OPERANDS["attend"][i], learns)
    for i, learns in ((0, False), (0, True), (2, False), (2, True), (5, True), (6, False))
]
LEARN = "linear", "mlp_learn", "attend"


@pytest.mark.parametrize(
    ("name", "learns"), [(name, False) for name in OPERANDS] + [(name, True) for name in LEARN]
)
def test_operators_keep_torchs_rules(name, learns):
    for operands in OPERANDS[name]:
        given = [
            t.detach().requires_grad_(learns) if isinstance(t, torch.Tensor) else t
            for t in operands
        ]
        tests = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
        torch.library.opcheck(
            getattr(torch.ops.transom, name).default, tuple(given),
            test_utils=tests + ["test_autograd_registration"] * learns,
        )  # fmt: skip


def test_merging_takes_its_product(made):
    merge, x = Merge(8, 16, post=False), images(2, 8, 5, 6)
    for grad in (False, True):
        made.clear()
        with torch.set_grad_enabled(grad):
            found = compiled(merge)(x)
            assert made and torch.equal(found, merge(x))


def test_inductor_runs_it(made):
    model = short("swin")
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        want = model(x)
        made.clear()
        found = compiled(model, "inductor")(x)
    assert made and (found - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.skipif(torch.float32 not in products._ONEDNN, reason="weights are not packed here")
def test_a_graph_reads_the_copies_of_a_folded_model(monkeypatch):
    """Whether it was folded before or after, and only while they are of what the weights are."""
    model, x, packed, real = short("swin"), images(1, 3, 64, 64), [], products.linear
    weights = [layer.weight for layer in model.modules() if isinstance(layer, (nn.Linear, QKV))]

    def spied(x, weight, bias, **options):
        packed.append(weight.is_mkldnn)
        return real(x, weight, bias, **options)

    def check(*, reads):
        packed.clear()
        found = run(x)
        assert packed and set(packed) == reads
        with fast.plain():
            want = model(x)
        assert (found - want).abs().max() <= 1e-5 * want.abs().max()

    with torch.no_grad():
        run = compiled(model)
        run(x)
        monkeypatch.setattr(products, "linear", spied)
        check(reads={False})
        model.fold((64, 64))
        check(reads={True})
        torch._dynamo.reset()
        run = compiled(model)
        check(reads={True})
        weights[0].mul_(1.5)
        check(reads={True, False})
        for p in weights:
            p.data = p.data * 1.1
        check(reads={False})
        model.fold((64, 64))
        check(reads={True})
        model.unfold()
        check(reads={False})


@pytest.mark.parametrize("grad", [False, True])
def test_no_scores_are_kept(grad):
    """With a mask our operator attends, without one torch's fused kernel."""
    called = {}

    def backend(graph, _):
        called[graph] = {str(node.target) for node in graph.graph.nodes}
        return graph.forward

    x = images(1, 7, 9, 32)
    for text in ("window:size=4", "window:size=4,position=none,shift=false"):
        mixer = attention.create(text, dim=32, heads=2, index=1)
        with torch.set_grad_enabled(grad):
            torch.compile(mixer, backend=backend, fullgraph=True)(x)
    masked, open_ = ({n for n in names if "attend" in n or "dot_product" in n}
                     for names in called.values())  # fmt: skip
    assert masked == {"transom.attend"}
    assert len(open_) == 1 and "scaled_dot_product_attention" in open_.pop()
