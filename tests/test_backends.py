"""One body, three backends: the same numbers, taken only where nobody can tell, never stale."""

from __future__ import annotations

import copy
import doctest
import random

import pytest
import torch
import torch.nn.functional as F
from strategies import draw_case
from tiny import FAMILIES, SOME, create, error, images, notation, randomise
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import attention
import backbones
from analysis.counting.count import count
from attention.execution import backends, cache, chunks, dispatch, torch_private
from attention.execution.dispatch import Executable, observer
from attention.fast import bounded, plain
from backbones import weights
from backbones.parts.mlp import MLP
from transom.errors import SpecError

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}
SIZES = [(64, 64), (61, 100), (5, 33)]


def relative(found, wanted):
    """Largest difference, as a share of the largest value."""
    assert found.shape == wanted.shape and found.isfinite().all()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


@pytest.fixture
def smallest(monkeypatch):
    """Parts of one image, one group, one token."""
    monkeypatch.setattr(chunks, "IMAGES", 1)
    monkeypatch.setattr(chunks, "WIDEST", 1)


def names_of(model, x):
    return {choice.name for choice in attention.backend_of(model, x).values()}


# -- the same numbers --------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("family", "dtype"), [
    pytest.param(  # half precision of some is enough for the fast tier
        *family.values, dtype, id=f"{family.values[0]}-{dtype}",
        marks=[*family.marks, *[pytest.mark.slow] * (i > 3 and dtype != torch.float32)],
    )
    for i, family in enumerate(SOME) for dtype in LIMITS
])  # fmt: skip
def test_parts_are_the_reference(family, dtype, smallest):
    """Within what the reference itself is from float64, if that is more."""
    model = create(family, in_channels=3).to(dtype)
    for size in SIZES:
        x = images(3, 3, *size).to(dtype)
        kept = x.clone()
        with attention.backend("cpu"):
            assert names_of(model, x) == {"cpu"}
            parts = model.features(x)
        with plain():
            whole = model.features(x)
            exact = copy.deepcopy(model).double().features(x.double())
        assert torch.equal(x, kept)
        for found, same, wanted in zip(parts, whole, exact, strict=True):
            assert relative(found, wanted) <= max(LIMITS[dtype], 3 * relative(same, wanted))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(attention.names()))
def test_small_parts_are_the_same_map(name, smallest):
    rng = random.Random(name)
    for _ in range(15):
        case = draw_case(rng, name)
        mixer = randomise(case.build(), case.seed).double().eval()
        x = images(3, case.h, case.w, case.dim, seed=case.seed).double()
        with attention.backend("reference"):
            whole = mixer(x)
        with attention.backend("cpu"):
            assert relative(mixer(x), whole) <= 1e-10, case


@pytest.mark.parametrize("text", ["window:size=2", "cosine:size=2x3"])
def test_first_and_second_derivatives(text):
    net = randomise(attention.create(text, dim=4, heads=2, index=1), 0).double()
    x = images(1, 3, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(net, (x,)) and torch.autograd.gradgradcheck(net, (x,))


def test_gradients_in_batches():
    net, x = create("swinv2"), images(1, 3, 32, 32).requires_grad_()
    out = net(x)
    grads = images(3, *out.shape, seed=1)
    together = torch.autograd.grad(out, x, grads, retain_graph=True, is_grads_batched=True)[0]
    for grad, found in zip(grads, together, strict=True):
        wanted = torch.autograd.grad(out, x, grad, retain_graph=True)[0]
        assert relative(found, wanted) <= 1e-4


@pytest.mark.parametrize("text", ["full:position=lepe", "cross:size=2", "pale:size=3", "axial"])
def test_training_without_a_mask_keeps_no_scores(text):
    mixer, sizes = attention.create(text, dim=8, heads=2), []
    length = 16 if text == "axial" else 16 * 2
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), lambda t: t):
        mixer(images(1, 16, 16, 8))
    assert max(sizes) < 16 * 16 * length * 2


# -- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(10))
@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_a_batch_is_cut_into_equal_parts(n, most, monkeypatch):
    monkeypatch.setattr(chunks, "IMAGES", most * 16)
    parts = chunks.image_parts(n, 16)
    sizes = [part.stop - part.start for part in parts]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("images_, groups, size", [(3, 4, 8), (2, 5, 3), (1, 1, 100), (0, 4, 8)])
def test_every_group_of_every_image_is_in_one_part(images_, groups, size, monkeypatch):
    for widest in 1, 8, 9, 33, 1000:
        monkeypatch.setattr(chunks, "WIDEST", widest)
        seen = [
            (i, g) for some, part in chunks.group_parts(images_, groups, size)
            for i in range(some.start, some.stop) for g in range(part.start, part.stop)
        ]  # fmt: skip
        assert sorted(seen) == [(i, g) for i in range(images_) for g in range(groups)]
        assert len(seen) == len(set(seen))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(attention.names()))
def test_a_bound_on_memory_is_kept(name, monkeypatch):
    """What a product gives takes no more than the bound, a padded map, or queries, keys and values
    of the images that are projected whole."""
    mixer = randomise(attention.create(name, dim=32, heads=4, index=1), 0).eval()
    x, sizes, real = images(3, 29, 31, 32), [], F.linear

    def spy(*args):
        y = real(*args)
        sizes.append(y.nbytes)
        return y

    monkeypatch.setattr(F, "linear", spy)
    with plain():
        want = mixer(x)
    sizes.clear()
    with bounded(1 / 64):
        assert names_of(mixer, x) == {"cpu"}
        found = mixer(x)
    assert relative(found, want) <= 1e-5
    if name in ("window", "shuffle"):  # the table of cosine's positions is made by products
        assert sizes and max(sizes) <= 2**14 + 3 * 49 * 32 * 4 < 3 * x.nbytes


@torch.no_grad()
def test_a_bound_is_for_every_layer_and_image(monkeypatch):
    model, rows = create("swin", in_channels=3), []

    def counted(x):
        rows.append(x.numel() // x.shape[-1])
        return F.gelu(x)

    monkeypatch.setattr(MLP, "activation", staticmethod(counted))
    x = images(4, 3, 64, 64)
    want = model.features(x)
    assert min(rows) > 1
    rows.clear()
    with bounded(1e-6):
        found = model.features(x)
    assert set(rows) == {1}
    assert all(relative(a, b) <= 1e-5 for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("size", [0, -1, float("nan")])
def test_a_bound_of_nothing_is_refused(size):
    with pytest.raises(ValueError, match="MiB"), bounded(size):
        pass


def test_a_bound_is_for_inference():
    model, x = create("swin"), images(2, 3, 64, 64)
    with bounded(1):
        assert names_of(model, x) == {"reference"}
        with torch.no_grad():
            assert names_of(model, x) == {"cpu"}
            model.train()
            assert names_of(model, x) == {"reference"}


# -- tables of one forward ---------------------------------------------------------------------


def test_a_forward_makes_a_table_once(monkeypatch):
    made = []

    def make():
        made.append(1)
        return torch.zeros(16)

    for repeated, owner, times in ((True, None, 1), (True, made, 1), (False, None, 1),
                                   (False, made, 2)):  # fmt: skip
        made.clear()
        with cache.shared(repeated=repeated):
            for _ in range(2):
                cache.cached("key", make, owner=owner)
        assert len(made) == times
    made.clear()
    monkeypatch.setattr(cache, "LARGEST", 60)
    with cache.shared(repeated=True):
        for _ in range(2):
            cache.cached("key", make, owner=made)
    assert len(made) == 2


WRITES = {
    "data": lambda t: t.data.copy_(1.5 * t.data + 0.01),
    "assigned data": lambda t: setattr(t, "data", 1.5 * t.data + 0.01),
    "detached": lambda t: t.detach().mul_(1.5),
    "numpy": lambda t: t.detach().numpy().__imul__(1.5),
    "storage": lambda t: t.untyped_storage().copy_((1.5 * t.detach()).untyped_storage()),
    "in place": lambda t: torch.no_grad()(lambda: t.mul_(1.5))(),
}  # fmt: skip


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("family", SOME)
def test_every_write_is_answered(family, how, smallest):
    """Nothing made from weights or buffers outlives a forward: after any write the answer is that
    of a model that was built with the new numbers."""
    model, x = create(family), images(2, 3, 33, 33)
    with torch.inference_mode(), attention.backend("cpu"):
        before = model(x)
    for t in (*model.parameters(), *model.buffers()):
        if t.is_floating_point():
            WRITES[how](t)
    other = create(family, seed=1)
    other.load_state_dict(model.state_dict())
    with torch.inference_mode(), attention.backend("cpu"):
        after = model(x)
        assert torch.equal(after, other(x))
    assert relative(after, before) > 1e-3


# -- what is asked for -------------------------------------------------------------------------


def test_a_backend_is_asked_for_by_context_model_and_environment(monkeypatch):
    model, x = create("swin"), images(2, 3, 64, 64)
    with torch.no_grad():
        monkeypatch.setenv(backends.VARIABLE, "cpu")
        assert names_of(model, x) == {"cpu"}
        model.backend = "reference"
        assert names_of(model, x) == {"reference"} == names_of(copy.deepcopy(model), x)
        with attention.backend("cpu"):
            assert names_of(model, x) == {"cpu"}
            with plain():
                assert names_of(model, x) == {"reference"}
        model.backend = "auto"
        assert names_of(model, x) == {"cpu"}
        monkeypatch.setenv(backends.VARIABLE, "cpuu")
        with pytest.raises(SpecError, match=r"TRANSOM_BACKEND.*'cpuu'.*did you mean 'cpu'"):
            model(x)
    for name in ("fast", "", "CPU"):
        with pytest.raises(SpecError, match="backend"):
            model.backend = name
        with pytest.raises(SpecError, match="backend"), attention.backend(name):
            pass
    assert model.state_dict().keys() == create("swin").state_dict().keys()


class Shouts(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Sub(torch.Tensor):
    pass


def hook(model):
    model.stages[0].blocks[0].mlp.fc1.register_forward_hook(lambda *a: None)


def backward_hook(model):
    model.stages[0].blocks[0].mixer.register_full_backward_hook(lambda *a: None)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def foreign(model):
    model.stages[0].blocks[1].mlp.fc2 = Doubled(32, 8)


@torch.no_grad()
@pytest.mark.parametrize("look, reason", [
    (hook, "mlp.fc1 has a hook"), (backward_hook, "mixer has a hook"),
    (foreign, "mlp.fc2 is a Doubled"),
])  # fmt: skip
def test_the_reference_runs_what_somebody_looks_into(look, reason):
    model, x = create("swin"), images(3, 3, 64, 64)
    look(model)
    with attention.backend("cpu"):
        chosen = attention.backend_of(model, x)
    assert chosen["stages.0"].name == "reference" and reason in chosen["stages.0"].reason
    assert chosen["stages.1"].name == "cpu"


@torch.no_grad()
def test_the_reference_runs_where_operators_are_observed(monkeypatch):
    mixer, x = attention.create("window:size=4", dim=8, heads=2).eval(), images(2, 9, 9, 8)
    assert observer(mixer, x) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert "every module" in observer(mixer, x)
    finally:
        handle.remove()
    for mode in Shouts(), FlopCounterMode(display=False):
        with mode:
            assert "observed" in observer(mixer, x)
    assert "numbers" in observer(mixer, x.to("meta"))
    assert "numbers" in observer(mixer, x[:0])
    assert "numbers" in observer(mixer, x.as_subclass(Sub))
    seen = []
    torch.vmap(lambda t: seen.append(observer(mixer, t[None])) or t)(x)
    assert "numbers" in seen[0] or "torch.func" in seen[0]
    torch.jit.trace(lambda t: seen.append(observer(mixer, t)) or t + 1, x, check_trace=False)
    assert "observed" in seen[1]


@torch.no_grad()
def test_training_takes_the_reference():
    """In training mode drop path draws once for the whole batch, asked for parts or not."""
    model, x = create("swin", "drop_path=0.5"), images(3, 3, 64, 64)
    with attention.backend("cpu"):
        assert names_of(model, x) == {"cpu"}
        chosen = attention.backend_of(model.train(), x)
    assert {c.reason for c in chosen.values()} == {"in training mode"}
    assert {c.name for c in chosen.values()} == {"reference"}


@torch.no_grad()
def test_counters_see_the_reference():
    """Under a counter the whole batch runs at once; torch's counts its math kernel's products."""
    model, x = create("swin"), images(3, 3, 32, 32)
    with attention.backend("cpu"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(
        display=False
    ) as counter:
        model(x)
    assert counter.get_total_flops() == 3 * 2 * count(model, 32).macs


@pytest.mark.parametrize("name", [
    "overrides._get_current_function_mode_stack",
    "utils._python_dispatch._get_current_dispatch_mode", "_C._functorch.peek_interpreter_stack",
])  # fmt: skip
def test_a_private_name_that_torch_lacks_leaves_the_reference(name, monkeypatch):
    mixer, x = attention.create("window:size=4", dim=8, heads=2).eval(), images(2, 9, 9, 8)
    place, _, attribute = name.rpartition(".")
    owner = torch
    for part in place.split("."):
        owner = getattr(owner, part)
    with torch.no_grad(), attention.backend("cpu"):
        assert observer(mixer, x) is None
        want = mixer(x)
        asked, real = [], torch_private._ask

        def ask(path, otherwise):
            asked.append(path)
            return otherwise if path == name else real(path, otherwise)

        monkeypatch.setattr(torch_private, "_ask", ask)
        assert observer(mixer, x) and name in asked
        assert names_of(mixer, x) == {"reference"} and torch.equal(mixer(x), want)
    monkeypatch.undo()
    assert torch_private._ask("no.such.name", "otherwise") == "otherwise"
    assert hasattr(owner, attribute), "torch has it no more: is its fallback still needed?"


@pytest.mark.parametrize("attribute", ["_forward_hooks", "_forward_pre_hooks"])
def test_hooks_that_cannot_be_asked_for_are_assumed(attribute, monkeypatch):
    monkeypatch.setattr(torch_private, "_HOOKS", ("no_such_hooks",))
    assert torch_private.hooked(nn.Linear(2, 2))
    monkeypatch.setattr(torch_private, "_GLOBAL_HOOKS", ("no_such_hooks",))
    assert torch_private.all_hooked()
    monkeypatch.undo()
    assert not torch_private.hooked(nn.Linear(2, 2)) and not torch_private.all_hooked()
    assert hasattr(nn.Linear(2, 2), attribute)


def test_what_a_backbone_can_be_asked():
    model, x = create("pale"), images(2, 3, 64, 64)
    chosen = backbones.backend_of(model, x)
    assert list(chosen) == [f"stages.{i}" for i in range(4)]
    assert {c.reason for c in chosen.values()} == {"with gradients; set_grad_checkpointing "
                                                   "saves memory"}  # fmt: skip
    wrapped = nn.ModuleDict({"net": model})
    wrapped.forward = lambda x: wrapped["net"](x)
    with torch.no_grad():
        assert list(backbones.backend_of(wrapped, x[:1])) == [f"net.stages.{i}" for i in range(4)]


# -- other tools reach every weight ------------------------------------------------------------


def products_of(model):
    """Names of the parameters of two axes and more that no nn.Linear or nn.Conv2d holds."""
    held = {
        id(p) for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d) for p in m.parameters()
    }
    return [name for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in held]


@pytest.mark.parametrize("family", SOME)
def test_every_product_is_a_layer_that_is_called(family):
    """Counters, adapters and quantisers look for nn.Linear and nn.Conv2d and hook their calls; a
    table of biases, logit scales and Swin-MLP's token matrices are no layers."""
    model, called = create(family), set()
    for name in products_of(model):
        assert name.endswith((
            ".table", "logit_scale", "mixer.weight", "mixer.bias", ".position", ".tokens", "_bias",
        ))  # fmt: skip
    layers = {n: m for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
    model(images(1, 3, 64, 64))
    assert called == set(layers)


class Adapted(nn.Module):
    """As LoRA's layers: the old one, and a product of two thin ones."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a, self.b = (nn.Linear(*s, bias=False) for s in (
            (base.in_features, 2), (2, base.out_features)))  # fmt: skip

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "swinmlp"])
def test_an_adapter_on_queries_keys_and_values_learns(family):
    model, x = create(family), images(1, 3, 64, 64)
    before = model(x).detach()
    mixer = model.stages[0].blocks[0].mixer
    holder, name = (mixer.q, "pointwise") if family == "pale" else (mixer, "qkv")
    if family in ("pvt", "pvt1"):
        name = "q"
    while not hasattr(holder, name):  # sequential layers, as axial has
        holder = holder.layers[0]
    setattr(holder, name, Adapted(getattr(holder, name)))
    out = model(x)
    assert error(out, before) > 1e-4
    out.sum().backward()
    assert getattr(holder, name).b.weight.grad.abs().max() > 0


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", SOME)
def test_dynamic_quantisation_reaches_every_layer(family):
    if not {"fbgemm", "x86", "qnnpack", "onednn"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("torch was built without quantised products")
    model, x = create(family), images(2, 3, 64, 64)
    want = model(x)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert not [n for n, m in quantised.named_modules() if type(m) is nn.Linear]
    found = quantised(x)
    assert 0 < relative(found, want) < 0.3


def test_pruning_is_answered():
    model, x = create("swin"), images(1, 3, 64, 64)
    before = model(x).detach()
    layer = model.stages[0].blocks[0].mixer.qkv
    prune.l1_unstructured(layer, "weight", amount=0.5)
    assert error(model(x), before) > 1e-4
    model(x).sum().backward()
    assert (layer.weight_orig.grad[layer.weight_mask == 0] == 0).all()


def test_first_files_have_biases_inside_qkv(tmp_path):
    """State dicts and files of before: cosine's query and value biases stood in the layer."""
    model, other = create("swinv2"), create("swinv2", seed=1)
    old = {}
    for name, t in model.state_dict().items():
        old[name.replace("mixer.q_bias", "mixer.qkv.q_bias")
            .replace("mixer.v_bias", "mixer.qkv.v_bias")] = t  # fmt: skip
    assert old.keys() != model.state_dict().keys()
    other.load_state_dict(old)
    x = images(1, 3, 32, 32)
    assert torch.equal(other(x), model(x))
    third = create("swinv2", seed=2)
    weights.load(third, old)
    assert torch.equal(third(x), model(x))


# -- a planted mistake -------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("place, name, wrong", [
    (chunks, "image_parts", lambda n, size: [slice(0, 1), slice(0, 1), slice(2, 3)]),
    (chunks, "row_parts", lambda n, size: [slice(0, n - 1), slice(n - 2, n - 1)]),
    (cache, "cached", None),
])  # fmt: skip
def test_planted_mistakes_are_seen(place, name, wrong, monkeypatch, smallest):
    model, x = create("swin"), images(3, 3, 64, 64)
    with plain():
        want = model.features(x)
    if name == "cached":  # a mask that stays from one block to the next
        made = {}

        def wrong(key, make, *, owner=None):
            return made.setdefault(str(key), make())

        from attention.softmax import branch

        place = branch
    monkeypatch.setattr(place, name, wrong)
    with attention.backend("cpu"):
        found = model.features(x)
    assert any(error(a, b) > 1e-3 for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("module", [backends, chunks, dispatch])
def test_the_examples_run(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_an_executable_says_what_it_is():
    """Its kind is what a choice is kept by."""
    kinds = {
        part.signature() for family in FAMILIES for part in create(family).modules()
        if isinstance(part, Executable)
    }  # fmt: skip
    assert len(kinds) > 30
    assert dispatch.TRIED_ON == ("cuda",)
    assert backbones.parse(notation("swin")).name


@pytest.mark.parametrize("edit", [
    "mlp=conv", "local=3", "norm_layer=batch", "norm=res_post", "position=cpe", "layer_scale=0.1",
    "stage_norms=true", "1.mlp_ratio=2", "1=full/1.tokens=1",
])  # fmt: skip
def test_another_body_is_another_kind(edit):
    """The choice for plain MLPs is not taken for stages whose blocks compute something else."""
    mixer, *more = edit.split("/") if "/" in edit else ("1=window:size=7", edit)
    plain, other = (create("swin", mixer, *edits).stages[0].signature() for edits in ((), more))
    assert plain != other
