"""What a caller may hand over: any layout, any dtype, nothing, very little and very much."""

import random
import warnings

import naive
import pytest
import tiny
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BUILT_IN, Case, cases, draw_case

import attention
from attention import SpecError, TokenMixer

LAYOUTS = {
    "channels first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every second token": lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, ::2, ::2],
    "every second channel": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "storage offset": lambda x: torch.cat([x, x], dim=1)[:, x.shape[1] :],
    "expanded batch": lambda x: x[:1].expand(3, -1, -1, -1),
    "part of a batch": lambda x: x.repeat(2, 1, 1, 1)[1:-1],
}


def run(mixer, x):
    with torch.no_grad():
        return mixer(x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BUILT_IN)
@settings(max_examples=8)
@given(data=st.data())
def test_layout(name, layout, data):
    """A9: the strides of the input change nothing, and the input is not written to."""
    case = data.draw(cases(name, side=9))
    mixer = case.build(torch.float32)
    x = LAYOUTS[layout](case.input(2, torch.float32))
    kept = x.clone(memory_format=torch.contiguous_format)
    found = run(mixer, x)
    assert torch.equal(x, kept), "the input was modified"
    wanted = run(mixer, kept)
    assert (found - wanted).abs().max() <= 1e-6 * max(1.0, float(wanted.abs().max()))
    assert found.shape == x.shape


def test_layout_control_sees_a_view_of_the_wrong_strides():
    """The control of A9: reading the memory of a transposed map in order is another input."""
    case = Case("window:size=2", 8, 2, 1, 4, 4, seed=1)
    mixer, x = case.build(torch.float32), LAYOUTS["transposed"](case.input(2, torch.float32))
    wrong = x.as_strided(x.shape, torch.empty(x.shape).stride())
    assert (run(mixer, wrong) - run(mixer, x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", BUILT_IN)
def test_gradient_through_views(name):
    """A9, backwards: the gradient reaches the token it belongs to, whatever the strides."""
    case = draw_case(random.Random(name), name)
    mixer, x = case.build(), case.input(2)
    weights = torch.randn_like(x)
    grads = []
    for view in (torch.clone, LAYOUTS["channels first"], LAYOUTS["transposed"]):
        leaf = x.clone().requires_grad_()
        (mixer(view(leaf)) * weights).sum().backward()
        grads.append(leaf.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", BUILT_IN)
def test_empty_batch(name, index):
    """A12: nothing in, nothing out, and a gradient of zero."""
    mixer = attention.create(name, dim=16, heads=2, index=index).eval()
    x = torch.zeros(0, 9, 8, 16, requires_grad=True)
    y = mixer(x)
    assert y.shape == (0, 9, 8, 16)
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in mixer.parameters())


def refused(call, x):
    with pytest.raises(SpecError) as error:
        call(x)
    assert "\n" not in str(error.value)
    return str(error.value)


CHANNELS_FIRST = "channels first: x.permute(0, 2, 3, 1)"
WRONG_MAPS = {  # what a mixer of 16 channels is given: what the line must say
    (2, 16, 9, 9): f"takes (b, h, w, 16); given (2, 16, 9, 9), which looks like {CHANNELS_FIRST}",
    (2, 49, 16): "given (2, 49, 16), which looks like tokens: x.unflatten(1, (h, w))",
    (16,): "given (16,)", (2, 9, 9, 4): "given (2, 9, 9, 4)",
    (1, 2, 9, 9, 16): "(1, 2, 9, 9, 16)",
    (2, 0, 9, 16): "given (2, 0, 9, 16): height and width from 1",
    (2, 9, 0, 16): "given (2, 9, 0, 16): height and width from 1",
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT_IN)
def test_another_shape_is_one_line(name):
    """At the door of every mixer: what is given, what is expected, and the way."""
    mixer = attention.create(name, dim=16, heads=2).eval()
    for shape, words in WRONG_MAPS.items():
        message = refused(mixer, torch.zeros(shape))
        assert message.startswith(f"{name} takes (b, h, w, 16); given ") and words in message
    whole = torch.zeros(2, 9, 9, 16)
    assert refused(mixer, whole.int()).endswith("floating point; given torch.int32: x.float()")
    assert "given torch.bool" in refused(mixer, whole.bool())
    assert refused(mixer, [1]) == f"{name} takes a tensor (b, h, w, 16); given list"


class Own(TokenMixer):
    """Says `forward` itself, and would take anything."""

    def forward(self, x):
        return -x


def test_a_mixer_that_says_forward_has_the_door_too():
    mixer = Own("mine:size=3", dim=8, heads=2)
    assert CHANNELS_FIRST in refused(mixer, torch.zeros(1, 8, 4, 4))
    x = torch.zeros(0, 4, 4, 8)
    assert mixer(x).shape == mixer(x=x).shape == x.shape


WRONG_IMAGES = {
    (3, 32, 32): "which looks like one image: x[None]",
    (1, 32, 32, 3): "which looks like channels last: x.permute(0, 3, 1, 2)",
    (1, 1, 32, 32): "given (1, 1, 32, 32): in_channels=1 takes it",
    (1, 3, 0, 32): "height and width from 1", (1, 3, 32, 0): "height and width from 1",
    (3,): "given (3,)",
}  # fmt: skip


@pytest.mark.parametrize("call", ["forward", "features"])
def test_other_images_are_one_line(call):
    model = tiny.create("swin")
    take = getattr(model, call)
    for shape, words in WRONG_IMAGES.items():
        message = refused(take, torch.zeros(shape))
        assert f" takes (b, 3, h, w); given {shape}" in message and words in message
    message = refused(take, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert message.endswith("takes floating point; given torch.uint8: x.float() / 255")
    found = take(torch.zeros(0, 3, 32, 32))
    assert (found[-1] if call == "features" else found).shape[0] == 0


def test_the_door_is_in_no_graph():
    """No operator of it under jit tracing, no guard on a free size, and one graph in all."""
    mixer, x = Own("mine", dim=8, heads=2), torch.zeros(2, 5, 6, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(mixer, x)
    assert [node.kind() for node in traced.inlined_graph.nodes()] == ["aten::neg"]
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    program = torch.export.export(mixer, (x,), dynamic_shapes=(sizes,))
    given, *rest = program.graph.nodes
    assert [node.op for node in rest] == ["call_function", "output"]
    free = {str(size) for size in given.meta["val"].shape[:3]}
    assert len(free) == 3 and not any(size.isdecimal() for size in free)
    counted = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(mixer, backend=counted, fullgraph=True, dynamic=True)
    for h, w in ((5, 6), (9, 3), (4, 11)):
        assert compiled(torch.zeros(2, h, w, 8)).shape == (2, h, w, 8)
    assert counted.frame_count == 1
    unknown = torch.zeros(2, 5, 6, 8)
    for side in (1, 2):  # sizes that nothing may be asked about
        torch._dynamo.decorators.mark_unbacked(unknown, side)
    assert torch.compile(mixer, backend="eager", fullgraph=True)(unknown).shape == unknown.shape
    inside = torch.fx.symbolic_trace(torch.nn.Sequential(mixer))
    assert [node.op for node in inside.graph.nodes] == ["placeholder", "call_function", "output"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_images_of_a_batch_do_not_meet(name):
    """Alone, repeated or in another order: an image has one output."""
    for seed in range(10):
        case = draw_case(random.Random(f"batch {name} {seed}"), name)
        mixer, x = case.build(), case.input(3)
        together = run(mixer, x)
        for i in range(3):
            torch.testing.assert_close(run(mixer, x[i : i + 1])[0], together[i])
        torch.testing.assert_close(run(mixer, x.flip(0)), together.flip(0))


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("name", BUILT_IN)
def test_half_precision_values(name, dtype, limit):
    """A2: the error in half precision, relative to the largest output of the definition."""
    for seed in range(8 if name in naive.ELSEWHERE else 30):  # whose definition is slow
        case = draw_case(random.Random(f"half {name} {seed}"), name, head_dims=(8, 16),
                         qk_scale=None, order="parallel")  # fmt: skip
        mixer = case.build(dtype)
        x = case.input(2, dtype)
        found = run(mixer, x)
        assert found.dtype == dtype
        wanted = naive.forward(mixer.double(), x.double())
        error = (found.double() - wanted).abs().max()
        more = 3 if name in naive.SAMPLED else 1  # a rounded point lies elsewhere
        assert error <= more * limit * wanted.abs().max(), f"{case}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BUILT_IN)
def test_half_precision_is_finite(name, dtype):
    """A5: zeros, a constant, a thousand times more and a million times less: no NaN, no Inf."""
    for seed in range(16):
        case = draw_case(random.Random(f"finite {name} {seed}"), name, head_dims=(4, 8))
        mixer, x = case.build(dtype), case.input(2, dtype)
        for given_ in (x, 0 * x, 0 * x + 1, 1e-6 * x, 1e3 * x):
            assert run(mixer, given_).isfinite().all(), case


@pytest.mark.parametrize("name", BUILT_IN)
def test_autocast(name):
    """A block inside torch.autocast gives finite numbers near those of fp32."""
    for seed in range(10):
        case = draw_case(random.Random(f"cast {name} {seed}"), name, head_dims=(8,), qk_scale=None,
                         order="parallel")  # fmt: skip
        mixer, x = case.build(torch.float32), case.input(2, torch.float32)
        wanted = run(mixer, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = run(mixer, x)
        assert (found.float() - wanted).abs().max() <= 6e-2 * wanted.abs().max(), case


@pytest.mark.parametrize("name", BUILT_IN)
def test_meta_device(name):
    """Shapes without numbers: counting a mixer costs no memory."""
    for seed in range(20):
        case = draw_case(random.Random(f"meta {name} {seed}"), name)
        mixer = attention.create(case.text, dim=case.dim, heads=case.heads, index=case.index)
        x = torch.empty(2, case.h, case.w, case.dim, device="meta")
        y = mixer.to("meta").eval()(x)
        assert y.shape == x.shape and y.device.type == "meta"


@pytest.mark.parametrize("name", BUILT_IN)
def test_parameters_do_not_depend_on_the_map(name):
    """Rule 1: one set of weights for every size, and no buffer but batch norm's statistics."""
    for seed in range(20):
        case = draw_case(random.Random(f"rule {name} {seed}"), name)
        mixer = case.build()
        before = {key: tuple(value.shape) for key, value in mixer.state_dict().items()}
        for h, w in ((1, 1), (3, 8), (case.h, case.w)):
            assert run(mixer, torch.randn(1, h, w, case.dim).double()).shape == (1, h, w, case.dim)
        assert {key: tuple(value.shape) for key, value in mixer.state_dict().items()} == before
        assert all("norm" in key for key, _ in mixer.named_buffers())


@pytest.mark.parametrize("windows", [65535, 65536, 65537])
def test_as_many_windows_as_a_grid_holds(windows):
    """A12: windows of one token around 2^16 of them; each is its own value, projected."""
    mixer = attention.create("window:size=1", dim=2, heads=1)
    x = torch.randn(1, 1, windows, 2)
    value = torch.nn.functional.linear(x, mixer.qkv.weight[4:], mixer.qkv.bias[4:])
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), mixer.proj(value))
