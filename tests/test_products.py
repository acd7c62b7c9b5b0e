"""Linear layers in graphs that are compiled: which product they are made of, and where not."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, images, notation, randomise
from torch import nn

import attention
import backbones
from attention import fast, products
from attention.branch import QKV


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


@pytest.mark.parametrize("family", [
    family if family in ("swin", "pale") else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES
])  # fmt: skip
def test_compiled_for_inference_is_the_plain_map(family, made):
    """By `linear`'s products, in one graph."""
    model, x = short(family), images(2, 3, 61, 100)
    with torch.no_grad():
        with fast.plain():
            want = model(x)
        made.clear()
        found = compiled(model)(x)
    assert made and (found - want).abs().max() <= 1e-5 * want.abs().max()


def test_bfloat16(made):
    layer, x = nn.Linear(32, 48).bfloat16(), images(5, 32).bfloat16()
    with torch.no_grad():
        found, want = compiled(lambda x: products.layer(layer, x, gelu=True))(x), layer(x)
    assert (found - nn.functional.gelu(want)).abs().max() <= 4e-2 * want.abs().max()
    assert len(made) == (torch.bfloat16 in products._ONEDNN)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(layer):
    layer.register_forward_hook(lambda module, args, y: 3 * y)
    return layer


def on_another(layer):
    layer.register_forward_pre_hook(lambda module, args: (5 * args[0],))
    return layer


@pytest.mark.parametrize("change", [
    lambda layer: layer.double(), hooked, on_another, lambda layer: Doubled(32, 48),
])  # fmt: skip
def test_a_layer_that_is_another_is_called(change, made):
    layer = change(nn.Linear(32, 48))
    x = images(5, 32).to(layer.weight.dtype)
    with torch.no_grad():
        found = compiled(lambda x: products.layer(layer, x))(x)
        assert torch.equal(found, layer(x))
    assert not made


def test_weights_of_other_kinds_are_torchs(made):
    """What a subclass of tensors does, a product of its numbers does not."""
    weight, layer, x = images(48, 32), nn.Linear(32, 48), images(5, 32)
    with torch.no_grad():
        found = compiled(lambda x: products.plain(x, weight, None))(x)
        assert (found - x @ weight.mT).abs().max() <= 1e-5 and not made
        with pytest.raises(Exception, match="dtype"):
            compiled(lambda x: products.layer(layer, x))(x.bfloat16())
    assert not made


def test_training_and_autocast_are_torchs(made):
    layer, x = nn.Linear(32, 48), images(5, 32)
    run = compiled(lambda x: products.layer(layer, x))
    run(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert run(x).dtype is torch.bfloat16
    assert not made
    with torch.no_grad():
        run(x)
    assert made


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_graph_runs_without_us(strict, made):
    mixer = attention.create("window:size=4", dim=32, heads=2, index=1).eval()
    with torch.no_grad():
        program = torch.export.export(mixer, (images(1, 7, 9, 32),), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets and not [name for name in targets if "transom" in name]
    assert not made


def test_frozen_weights_are_the_compilers(made):
    layer, x = nn.Linear(32, 48), images(5, 32)
    with torch.no_grad():
        for freezing in (True, False):
            with torch._inductor.config.patch(freezing=freezing):
                compiled(lambda x: products.layer(layer, x))(x)
            assert bool(made) is not freezing


def test_mapped_over_inputs_and_ensembles(made):
    """vmap in a graph is what it is outside, by torch's own product."""
    layer, other = nn.Linear(32, 48), nn.Linear(32, 48)
    x, weights = images(3, 5, 32), torch.stack([layer.weight, other.weight]).detach()

    def one(x):
        return products.layer(layer, x)

    def with_weight(weight):
        return products.plain(x, weight, None)

    with torch.no_grad():
        found = compiled(torch.vmap(one))(x)
        assert (found - layer(x)).abs().max() <= 1e-5
        found = compiled(torch.vmap(with_weight))(weights)
        assert (found - x @ weights.mT[:, None]).abs().max() <= 1e-5
    assert not made


@pytest.mark.parametrize("gelu", [False, True])
def test_operator_keeps_torchs_rules(gelu):
    layer = nn.Linear(32, 48).requires_grad_(False)
    for x in images(2, 3, 32), images(0, 32), images(32, 5).t():
        torch.library.opcheck(
            torch.ops.transom.linear.default, (x, layer.weight, layer.bias, gelu),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )  # fmt: skip


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


def test_masks_are_as_torchs_fused_kernel_takes_them():
    """Others are added to scores that are kept."""
    mixer, axes = attention.create("window:size=4", dim=32, heads=2, index=1), []

    def backend(graph, _):
        for node in graph.graph.nodes:
            if node.target is nn.functional.scaled_dot_product_attention:
                axes.append(node.kwargs["attn_mask"].meta["example_value"].ndim)
        return graph.forward

    x = images(1, 7, 9, 32)
    run = torch.compile(mixer, backend=backend, fullgraph=True)
    with torch.no_grad():
        run(x)
    run(x)  # with gradients another kernel is chosen, and there is no reason to
    assert axes == [4, 3]
