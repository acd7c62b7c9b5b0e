"""torch.compile without graph breaks, and torch.export: every mixer, every family of backbones."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from tiny import FAMILIES, create, error, images, notation, randomise
from torch import nn

import attention
import backbones
from attention import fast
from attention.mixers.token_mlp import TokenMLPMixer
from attention.softmax.position import LePE
from attention.softmax.tiled_attention import TiledAttention
from backbones import export
from backbones.parts.mlp import MLP

# odd and even blocks of these are alike, so one of the two is enough for the fast tier
ALIKE = (
    "axial", "axial_deeplab", "cross", "deformable", "full", "halo", "messenger", "neighbourhood",
    "pale", "sra",
)  # fmt: skip
MIXERS = [
    pytest.param(
        name, index, id=f"{name}-{index}", marks=[pytest.mark.slow] * (index and name in ALIKE)
    )
    for name in attention.names() for index in (0, 1)
]  # fmt: skip
OPTIONS = [
    "window:mask_padding=true", "window:size=3x5,mask_value=-100,scores=cosine,position=log_cpb",
    "axial:order=sequential,position=log_cpb", "cross:size=2x3,mask_padding=true",
    "pale:size=3,scores=cosine", "shuffle:position=lepe", "full:position=lepe",
    "shuffle:size=3x2,interval=2,position=dpb,mask_padding=true",
    "neighbourhood:kernel=3,dilation=2,scores=cosine", "halo:block=1,radius=2,mask_padding=true",
    "halo:block=4,position=bias", "token_mlp:size=3x5", "sra:pool=3",
    "sra:ratio=8,remainder=pad,scores=cosine",
]  # fmt: skip
BATCHES = (1, 2, 3, 5, 8)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def mixer(text: str, index: int) -> nn.Module:
    if text == "messenger":
        text = "messenger:region=2"  # whose parts divide 8 channels
    return randomise(attention.create(text, dim=8, heads=2, index=index)).eval()


def results(model: nn.Module, run, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of a random projection of it, of the input and all
    parameters."""
    x = x.clone().requires_grad_()
    out = run(x)
    loss = (out * images(*out.shape, seed=7)).sum()
    wanted = [x, *model.parameters()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [out.detach(), *(torch.zeros(()) if g is None else g for g in grads)]


SHALLOW = ("2.depth=1", "3.depth=1", "4.depth=1")  # stages after the first


def short(family: str) -> nn.Module:
    """The first two stages of a family, three blocks: even, odd, and one after downsampling."""
    count = len(backbones.parse(notation(family)).stages)
    spec = backbones.parse(notation(family, *SHALLOW[: count - 1]))
    stages = spec.stages[:2]
    pool = spec.pool if stages[-1].tokens or stages[-1].messenger else "mean"
    return randomise(backbones.create(spec, stages=stages, pool=pool)).eval()


def farthest(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest error among all tensors, as a share of the largest number."""
    top = max(float(t.abs().amax()) for t in wanted)
    return max(map(error, found, wanted)) / top


def exact_results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    wide = copy.deepcopy(model).double()
    return results(wide, wide, x.double())


def check(model: nn.Module, x: torch.Tensor, backend: str, limit: float | None = None) -> None:
    """Compiled as one graph, forward, backward and without gradients: bit-equal to what a user
    gets in eager, or within limit x max; gradients that float32 itself rounds by more (Swin V2's,
    with random weights) at most twice as far from float64 as eager's."""
    eager = results(model, model, x)
    run = torch.compile(model, backend=backend, fullgraph=True)
    compiled = results(model, run, x)
    if limit is None:
        assert all(map(torch.equal, compiled, eager))
    else:
        assert error(compiled[0], eager[0]) <= limit * float(eager[0].abs().amax())
        assert farthest(compiled[1:], eager[1:]) <= limit or farthest(
            compiled[1:], exact := exact_results(model, x)[1:]
        ) <= 2 * farthest(eager[1:], exact)
    with torch.no_grad():
        x = x[:1] if any(map(has_few_columns, model.modules())) else x
        found, wanted = run(x), model(x)
    if limit is None:
        assert torch.equal(found, wanted)
    else:
        assert error(found, wanted) <= limit * float(wanted.abs().amax())


def check_bits(model: nn.Module, x: torch.Tensor) -> None:
    """By torch's own operators, bit-equal; where tiles overlap or positions are interpolated a
    graph has others than eager, and float32 rounds otherwise."""
    tiled = any(isinstance(part, TiledAttention) for part in model.modules())
    absolute = any(getattr(part, "position", None) is not None for part in model.modules())
    check(model, x, "aot_eager", limit=1e-5 if tiled or absolute else None)


def has_few_columns(module: nn.Module) -> bool:
    """BLAS's product of fewer than 32 columns depends on how many there are, in eager as well:
    maps of one image at a time are not those of two.  Heads of 32 channels have enough."""
    return isinstance(module, TokenMLPMixer) and module.dim // module.heads < 32


def slow_after(count: int, cases: Iterable[Any]) -> list[Any]:
    """Cases of which the first are fast tests, and the others belong to the slow tier."""
    return [
        case if i < count else pytest.param(case, marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


@pytest.mark.parametrize(("name", "index"), MIXERS)
def test_mixers_compile_bit_equal(name, index):
    """Maps that pad, blocks that shift: no graph break, forward and backward."""
    check_bits(mixer(name, index), images(2, 9, 17, 8))


@pytest.mark.parametrize("name", ["window", "pale"])
def test_traced_alone_is_bit_equal(name):
    """torch.compile's own backend of that name, which runs what was traced."""
    check(mixer(name, 1), images(2, 9, 17, 8), "eager")


@torch.no_grad()
@pytest.mark.parametrize("name", ["cosine", "pale", "token_mlp"])
def test_training_without_gradients_compiles_bit_equal(name):
    """Statistics move, dropped paths are none: two models, so that both see the same."""
    one, x = mixer(name, 1).train(), images(2, 9, 17, 8)
    other = copy.deepcopy(one)
    assert torch.equal(torch.compile(other, backend="aot_eager", fullgraph=True)(x), one(x))
    assert all(map(torch.equal, one.buffers(), other.buffers()))


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@pytest.mark.parametrize("text", slow_after(1, OPTIONS))
def test_options_compile_bit_equal(text):
    check_bits(mixer(text, 1), images(2, 9, 17, 8))


@pytest.mark.parametrize("family", slow_after(1, FAMILIES))
def test_backbones_compile_bit_equal(family):
    check_bits(short(family), images(2, 3, 40, 56))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_backbones_compile_bit_equal(family):
    check_bits(create(family), images(2, 3, 40, 56))


QUICK = ("full-0",)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        pytest.param(*p.values, id=p.id, marks=() if p.id in QUICK else pytest.mark.slow)
        for p in MIXERS
    ],
)
def test_mixers_inductor(name, index):
    """Generated kernels: within 1e-5 of the largest number."""
    check(mixer(name, index), images(2, 9, 17, 8), "inductor", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_backbones_inductor(family):
    check(create(family), images(2, 3, 40, 56), "inductor", 1e-5)


class Breaks(nn.Module):
    """Negative control: a Python number from a tensor's value cannot stay in one graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * (2 if x.sum().item() > 0 else 3)


def test_graph_breaks_are_seen():
    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        check(Breaks(mixer("window", 1)), images(2, 9, 17, 8), "aot_eager")


def test_other_numbers_are_seen():
    """Negative control of the comparison: another index is another function."""
    model = mixer("window", 1)
    other = copy.deepcopy(model)
    other.index = 0
    x = images(2, 9, 17, 8)
    found = torch.compile(other, backend="aot_eager", fullgraph=True)(x)
    assert error(found, model(x)) > 1e-3


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def another_class(mlp):
    mlp.fc1 = Doubled(8, 16)


def hook(mlp):
    mlp.fc1.register_forward_hook(lambda module, args, y: 3 * y)


def hook_before(mlp):
    mlp.fc2.register_forward_pre_hook(lambda module, args: (5 * args[0],))


def parametrize(mlp):
    nn.utils.parametrizations.weight_norm(mlp.fc1)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("change", [another_class, hook, hook_before, parametrize])
def test_layers_that_are_others_are_called(change, grad):
    """What another class, a hook or another weight does is in the graph."""
    mlp, x = MLP(8, 16), images(5, 3, 4, 8)
    change(mlp)
    with torch.set_grad_enabled(grad):
        found, want = torch.compile(mlp, backend="aot_eager")(x), mlp(x)
        assert close(found, want)


def test_a_graph_holds_torchs_operators():
    targets = []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    for grad in False, True:
        with torch.set_grad_enabled(grad), attention.backend("cpu"):
            torch.compile(short("swin"), backend=backend, fullgraph=True)(images(2, 3, 40, 56))
    assert any("scaled_dot_product" in name for name in targets)
    assert not [name for name in targets if "transom" in name]


# -- export ------------------------------------------------------------------------------------


@torch.no_grad()
@fast.plain()
def check_export(model: nn.Module, shape: tuple[int, ...], batches=BATCHES) -> None:
    """Static: its own batch.  Dynamic: every batch, from one graph.  Bit-equal to eager on the
    plain path, of which an exported program is made: it runs without us."""
    x = images(2, *shape)
    static = torch.export.export(model, (x,)).module()
    tiled = any(isinstance(part, TiledAttention) for part in model.modules())  # other tiles
    limit = 1e-6 if tiled else 0
    assert error(static(x), wanted := model(x)) <= limit * wanted.abs().max()
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    for n in batches:
        x = images(n, *shape, seed=n)
        assert error(dynamic(x), wanted := model(x)) <= limit * wanted.abs().max(), n


@pytest.mark.parametrize(("name", "index"), MIXERS)
def test_mixers_export(name, index):
    check_export(mixer(name, index), (9, 17, 8))


@pytest.mark.parametrize("family", slow_after(4, FAMILIES))
def test_backbones_export(family):
    check_export(short(family), (3, 40, 56))


MAPS = [(2, 2), (7, 14), (2, 9), (20, 3), (16, 30)]
QUICK_EXPORT = ("window-1", "full-0")


@torch.no_grad()
@fast.plain()
def check_any_size(model: nn.Module, channels, sizes, least: int, axes: tuple[int, int]) -> None:
    """One graph for every batch, height and width; bit-equal to eager but for LePE and pads."""
    def shape(b, h, w):
        return (b, h, w, channels) if axes == (1, 2) else (b, channels, h, w)

    dims = {0: torch.export.Dim("b", min=1, max=64)}
    for axis, name in zip(axes, "hw", strict=True):
        dims[axis] = torch.export.Dim(name, min=least, max=1024)
    x = images(*shape(3, *((10, 15) if least == 2 else (200, 300))))
    with export.one_graph():
        run = torch.export.export(
            model, (x,), dynamic_shapes=(dims,), prefer_deferred_runtime_asserts_over_guards=True
        ).module()
    for i, size in enumerate(sizes):
        for b in (BATCHES[i % 5], BATCHES[(i + 2) % 5]):
            x = images(*shape(b, *size), seed=b)
            wanted = model(x)
            # a graph's LePE reads its images in another layout, so its nine products are summed
            # in another order: 9 float32 roundings are 5e-7; its tiles have other sides
            lepe = any(isinstance(part, (LePE, TiledAttention)) for part in model.modules())
            limit = 1e-6 if lepe or hides_nothing(model, size) else 0
            assert error(run(x), wanted) <= limit * wanted.abs().max(), (b, size)


def hides_nothing(model: nn.Module, size: tuple[int, int]) -> bool:
    """Has a branch that would hide pads none here?  Eager needs no mask then; the graph of any
    size adds one of zeros, which torch's attention rounds otherwise."""
    branch_groups = getattr(model, "branch_groups", None)  # a window's bias is a mask, pads or not
    if branch_groups is None or not getattr(model.config, "mask_padding", False):
        return False
    return not all(groups.padded for groups in branch_groups(*size))


@pytest.mark.parametrize(
    ("name", "index"),
    [
        pytest.param(*p.values, id=p.id, marks=() if p.id in QUICK_EXPORT else pytest.mark.slow)
        for p in MIXERS
    ],
)
def test_mixers_export_any_size(name, index):
    check_any_size(mixer(name, index), 8, MAPS, 2, (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("text", OPTIONS)
def test_options_export_any_size(text):
    check_any_size(mixer(text, 1), 8, MAPS, 2, (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_backbones_export_any_size(family):
    model = create(family, *SHALLOW[: len(backbones.parse(notation(family)).stages) - 1])
    sizes = [(33, 33), (64, 64), (224, 40), (100, 260), (225, 97)]
    check_any_size(model, 3, sizes, 33, (2, 3))


@torch.no_grad()
def test_absolute_positions_export_any_size():
    """Interpolated in the graph where the size is free; at their own size that changes nothing."""
    spec = backbones.parse(notation("full", "2.depth=1", "1.depth=1", "position=absolute"))
    model = randomise(backbones.create(spec, stages=spec.stages[:2])).eval()
    check_any_size(model, 3, [(64, 64), (33, 40)], 9, (2, 3))


def check_compiles(model: nn.Module, shapes: list[tuple[int, ...]]) -> int:
    """How many graphs all these inputs take, each answering as eager does."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    limits = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
    with torch.no_grad(), export.one_graph(), limits:
        run = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
        for shape in shapes:
            x = images(*shape)
            assert close(run(x), model(x)), shape
    return len(graphs)


@pytest.mark.parametrize("name", [
    "full", *(pytest.param(n, marks=pytest.mark.slow) for n in attention.names() if n != "full"),
])  # fmt: skip
def test_few_compiles_of_a_mixer(name):
    """At most 3 for batches 1 to 8 at three sizes."""
    shapes = [(b, *size, 8) for size in ((9, 17), (14, 14), (20, 5)) for b in range(1, 9)]
    assert check_compiles(mixer(name, 1), shapes) <= 3


def test_few_compiles_of_an_mlp():
    assert check_compiles(MLP(8, 16), [(b, h, 9, 8) for h in (7, 12) for b in range(1, 9)]) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_few_compiles_of_a_backbone(family):
    model = create(family, *SHALLOW[: len(backbones.parse(notation(family)).stages) - 1])
    sizes = (72, 104), (224, 224), (264, 296)
    assert check_compiles(model, [(b, 3, *s) for s in sizes for b in range(1, 9)]) <= 3


class Branching(nn.Module):
    """Negative control: a question about the size is a graph for each of its answers."""

    def forward(self, x):
        return next(x * k for k in range(2, 99) if x.shape[1] < 5 * k)


def test_many_compiles_are_seen():
    assert check_compiles(Branching(), [(2, h, 5, 8) for h in (9, 14, 19, 24)]) == 4


@torch.no_grad()
def test_exporting_leaves_the_model_as_it_was():
    """No table made while tracing stays behind: eager after export, other sizes too."""
    for name in attention.names():
        model, x = mixer(name, 1), images(2, 9, 17, 8)
        want = model(x)
        torch.export.export(model, (x,))
        assert torch.equal(model(x), want)
        assert model(images(1, 5, 4, 8)).isfinite().all()
