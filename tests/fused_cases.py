"""Tests of the fused kernels themselves, against dense float64 attention written with index lists.

They run on a GPU, or on a CPU under Triton's interpreter, which has to be switched on before
Triton is first imported: `tests/test_fused.py` starts this file in a process of its own.

    TRITON_INTERPRET=1 python -m pytest tests/fused_cases.py
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import randomise

import attention
from attention.execution import autotune, backends, dispatch
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.kernels import fused, launch
from attention.softmax import branch

DEVICE = "cpu" if fused.INTERPRETED else "cuda"
OFF = -math.inf


@pytest.fixture(autouse=True)
def interpreted_bfloat16(monkeypatch):
    """Triton 3.9's interpreter multiplies the bits of bfloat16 as if they were whole numbers."""
    if not fused.INTERPRETED:
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    made = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return made(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def steps(a) -> list[list[int]]:
    """The positions on the map of every group along one axis, by the definition of a cut."""
    runs = range(0, a.padded, a.interval * a.extent)
    return [[(run + g + i * a.interval + a.shift) % a.padded for i in range(a.extent)]
            for run in runs for g in range(a.interval)]  # fmt: skip


def parts_of(a) -> list[int]:
    """Which side of the shift a position is on: those below the shift were rolled to the end."""
    return [int(p < a.shift) for p in range(a.padded)]


def dense(q, k, v, groups, *, heads, scale, bias, logit_scale, mask_value, mask_padding):
    """Group by group, head by head, from index lists.  Same arguments as `fused.attend`."""
    rows, cols = groups.rows, groups.cols
    side_r, side_c = parts_of(rows), parts_of(cols)
    out, d = torch.zeros_like(q), q.shape[-1] // heads
    for group_r in steps(rows):
        for group_c in steps(cols):
            tokens = [(r, c) for r in group_r for c in group_c]
            r, c = (torch.tensor(list(t), device=q.device) for t in zip(*tokens, strict=True))
            same = torch.tensor(
                [[side_r[a] == side_r[e] and side_c[b] == side_c[f] for e, f in tokens]
                 for a, b in tokens], device=q.device,
            )  # fmt: skip
            pad = torch.tensor(
                [not (0 <= a - rows.before < rows.length and 0 <= b - cols.before < cols.length)
                 for a, b in tokens], device=q.device,
            )  # fmt: skip
            for h in range(heads):
                one = slice(h * d, (h + 1) * d)
                qs, ks, vs = (t[:, r, c, one] for t in (q, k, v))
                if logit_scale is not None:
                    qs, ks = qs / qs.norm(dim=-1, keepdim=True), ks / ks.norm(dim=-1, keepdim=True)
                s = qs @ ks.mT * (scale if logit_scale is None else logit_scale[h])
                if bias is not None:
                    s = s + bias[h]
                s = s + torch.where(same, 0.0, OFF if mask_value is None else mask_value)
                if mask_padding:
                    eye = torch.eye(len(tokens), dtype=torch.bool, device=q.device)
                    s = s.masked_fill(pad[None] & ~eye, OFF)
                at = torch.arange(one.start, one.stop, device=q.device)
                out = out.index_put(
                    (slice_of(q), r[None, :, None], c[None, :, None], at), s.softmax(-1) @ vs
                )
    return out


def slice_of(q):
    return torch.arange(q.shape[0], device=q.device)[:, None, None]


def window(h, w, gh, gw, shift=True):
    return Groups(
        axis(h, gh, shift=gh // 2 if shift else 0), axis(w, gw, shift=gw // 2 if shift else 0)
    )


def laced(h, w, gh, gw):
    return Groups(axis(h, gh, interlaced=True), axis(w, gw, interlaced=True))


def nested(h, w, gh, gw, ih, iw):
    return Groups(axis(h, gh, interval=ih), axis(w, gw, interval=iw))


def draw(groups, *, heads=2, d=16, batch=1, bias=True, cosine=False, dtype=torch.float32, seed=0):
    """q, k, v of the padded map as views of one projection, and the tables."""
    g = torch.Generator().manual_seed(seed)
    length = math.prod(groups.extent)
    shape = (batch, groups.rows.padded, groups.cols.padded, 3 * heads * d)
    qkv = torch.randn(shape, generator=g).to(DEVICE, dtype)
    bias = torch.randn(heads, length, length, generator=g).to(DEVICE, dtype) if bias else None
    scales = (1 + 4 * torch.rand(heads, generator=g)).to(DEVICE) if cosine else None
    return [None if t is None else t.requires_grad_() for t in (qkv, bias, scales)]


def compare(groups, *, heads=2, d=16, packed=True, **drawn):
    """Largest errors of the result and the gradients, as shares of what float32 may have."""
    options = {"mask_value": drawn.pop("mask_value", None), "heads": heads, "scale": d**-0.5,
               "mask_padding": drawn.pop("mask_padding", False)}  # fmt: skip
    qkv, bias, scales = draw(groups, heads=heads, d=d, **drawn)
    leaves = [t for t in (qkv, bias, scales) if t is not None]
    if packed:
        out = fused.attend_packed(qkv, groups, bias=bias, logit_scale=scales, **options)
    else:
        out = fused.attend(*qkv.chunk(3, -1), groups, bias=bias, logit_scale=scales, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    drawn = qkv, bias, scales
    wide = [None if t is None else t.detach().double().requires_grad_() for t in drawn]
    want = dense(*wide[0].chunk(3, -1), groups, bias=wide[1], logit_scale=wide[2], **options)
    wanted = torch.autograd.grad(
        (want * weight.double()).sum(), [t for t in wide if t is not None]
    )
    assert out.is_contiguous() and out.dtype == qkv.dtype
    pairs = zip([out.detach(), *grads], [want.detach(), *wanted], strict=True)
    return [float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs]


def check(groups, limits=(2e-6, 5e-5), **case):
    errors = compare(groups, **case)
    assert errors[0] <= limits[0] and max(errors[1:]) <= limits[1], errors


CASES = {
    "window": (window(14, 14, 7, 7, shift=False), {"bias": False, "batch": 2}),
    "shifted": (window(14, 14, 7, 7), {}),
    "separate tensors": (window(8, 12, 4, 4), {"packed": False}),
    "oblong, padded": (window(7, 13, 3, 5), {}),
    "oblong, padded, pads hidden": (window(7, 13, 3, 5), {"mask_padding": True}),
    "penalty": (window(9, 10, 5, 4), {"mask_value": -100.0, "mask_padding": True}),
    "penalty, mild": (window(8, 8, 4, 4), {"mask_value": -0.5}),
    "one axis shifted": (window(4, 11, 4, 4), {}),
    "interlaced": (laced(8, 12, 4, 3), {}),
    "interlaced, padded": (laced(9, 10, 4, 3), {"mask_padding": True}),
    "nested": (nested(12, 12, 2, 3, 3, 2), {}),
    "nested, padded": (nested(11, 7, 2, 3, 2, 2), {"mask_padding": True}),
    "nested rows": (nested(12, 7, 3, 3, 2, 1), {}),
    "pale rows": (Groups(axis(9, 2, interlaced=True), axis(7, 7)), {"bias": False}),
    "stripe": (Groups(axis(7, 3, even=True), axis(5, 5)), {"bias": False, "mask_padding": True}),
    "cosine": (window(8, 8, 4, 4), {"cosine": True, "mask_value": -100.0}),
    "24 channels": (window(8, 8, 4, 4), {"d": 24, "cosine": True}),
    "48 channels, 3 heads": (window(4, 8, 4, 4), {"d": 48, "heads": 3}),
    "one token": (Groups(axis(3, 1), axis(2, 1)), {}),
    "tiles": (window(9, 18, 9, 9), {"cosine": True, "heads": 1}),
    "tiles, pads hidden": (window(10, 8, 10, 7), {"mask_padding": True, "heads": 1}),
    "tiles, stripe": (
        Groups(axis(23, 23), axis(4, 3, even=True)), {"mask_padding": True, "heads": 1},
    ),
}  # fmt: skip


LONG = ("separate tensors", "penalty, mild", "nested rows", "stripe", "48 channels, 3 heads",
        "interlaced", "nested", "pale rows", "oblong, padded", "tiles, stripe")  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in CASES]
)
def test_equals_dense_attention(name):
    """The result and every gradient, in float32."""
    groups, case = CASES[name]
    check(groups, **case)


@pytest.mark.slow
@pytest.mark.parametrize(("gh", "gw"), [(12, 12), (16, 16), (24, 24), (8, 130), (7, 56)])
def test_large_groups_equal_dense_attention(gh, gw):
    check(window(gh + 1, gw, gh, gw), heads=1, mask_padding=True)


# Promise A2's limits of a result, and as much again for gradients that went through two roundings.
HALVES = [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)]


@pytest.mark.parametrize(("dtype", "limit"), HALVES)
@pytest.mark.parametrize("name", ["penalty", "cosine", "tiles"])
def test_half_precision(name, dtype, limit):
    groups, case = CASES[name]
    check(groups, (limit, 2 * limit), dtype=dtype, **case)


@settings(max_examples=6)
@given(st.data())
def test_any_cut(data):
    """Maps, extents, shifts, pads and head dimensions of every kind."""
    sides = []
    laced_map = data.draw(st.booleans())
    for _ in range(2):
        length, extent = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
        shift = 0 if laced_map else data.draw(st.integers(0, extent - 1))
        even = data.draw(st.booleans())
        sides.append(axis(length, extent, even=even, shift=shift, interlaced=laced_map))
    check(
        Groups(*sides), d=data.draw(st.sampled_from([16, 17, 24, 40])),
        heads=data.draw(st.sampled_from([1, 3])), bias=data.draw(st.booleans()),
        cosine=data.draw(st.booleans()), mask_padding=data.draw(st.booleans()),
        mask_value=data.draw(st.sampled_from([None, -3.0])), packed=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip


def test_empty_batch():
    groups = window(4, 4, 4, 4)
    qkv, bias, _ = draw(groups, batch=0)
    out = fused.attend_packed(qkv, groups, heads=2, bias=bias)
    assert out.shape == (0, 4, 4, 32)
    out.sum().backward()
    assert qkv.grad.shape == qkv.shape and not bias.grad.any()


@pytest.mark.parametrize("name", ["penalty", "tiles, pads hidden"])
def test_same_bits_twice(name):
    """No sum depends on the order in which programs end."""
    groups, case = CASES[name]
    assert compare(groups, **case) == compare(groups, **case)


@pytest.mark.parametrize("scale", [1e3, 1e-6, 0.0])
def test_extreme_inputs_stay_finite(scale):
    groups = window(7, 6, 3, 4)
    qkv, bias, scales = draw(groups, cosine=True)
    for logit_scale in (None, scales):
        x = (qkv.detach() * scale).requires_grad_()
        out = fused.attend_packed(
            x, groups, heads=2, bias=bias, logit_scale=logit_scale, mask_padding=True
        )
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        assert out.isfinite().all() and grad.isfinite().all()


def test_any_layout():
    """Transposed, sliced and expanded maps; the inputs stay as they were."""
    groups = window(8, 8, 4, 4)
    x = torch.randn(2, 96, 8, 8, device=DEVICE)
    batch = torch.randn(1, 8, 8, 96, device=DEVICE).expand(2, -1, -1, -1)
    for view in (x.permute(0, 2, 3, 1), x.permute(0, 3, 2, 1), batch):
        before = view.clone()
        out = fused.attend_packed(view, groups, heads=2)
        assert torch.equal(out, fused.attend_packed(view.contiguous(), groups, heads=2))
        mixed = [view[..., :32], view[..., 32:64].contiguous(), view[..., 64:]]
        assert torch.equal(out, fused.attend(*mixed, groups, heads=2))
        assert torch.equal(view, before)


# -- torch's view of the operator --------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["24 channels", pytest.param("tiles", marks=SLOW)])
def test_operator_keeps_torchs_rules(name):
    """Schema, fake tensors, autograd registration and ahead-of-time dispatch."""
    groups, case = CASES[name]
    case = {k: v for k, v in case.items() if k in ("d", "cosine")}
    qkv, bias, scales = draw(groups, **case)
    axes = [int(number) for side in groups for number in side]
    arguments = ([qkv], bias, scales, axes, 2, 0.25, None, False)
    torch.library.opcheck(torch.ops.transom.group_attention.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=SLOW)])
def test_compiles_as_one_graph(backend):
    torch._dynamo.reset()
    groups = window(9, 10, 5, 4)
    qkv, bias, scales = draw(groups, cosine=True)

    def run(x, bias, scales):
        q, k, v = (2 * x).chunk(3, -1)
        masked = {"bias": bias, "logit_scale": scales, "mask_padding": True}
        return fused.attend(q, k, v, groups, heads=2, **masked) + 1

    plain, compiled = (
        torch.autograd.grad(f(qkv, bias, scales).square().sum(), [qkv, bias, scales])
        for f in (run, torch.compile(run, backend=backend, fullgraph=True))
    )
    for a, b in zip(plain, compiled, strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_exports_with_any_batch():
    groups = window(8, 8, 4, 4)

    class Model(torch.nn.Module):
        def forward(self, qkv):
            return fused.attend_packed(qkv, groups, heads=2)

    qkv = draw(groups, batch=2)[0].detach()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Model(), (qkv,), dynamic_shapes=({0: batch},)).module()
    for n in (1, 3):
        x = draw(groups, batch=n)[0].detach()
        assert torch.equal(program(x), Model()(x))


def test_products_are_counted():
    """As torch counts the plain path: two products forward, five of the same size backward."""
    from torch.utils.flop_counter import FlopCounterMode

    groups = window(8, 8, 4, 4)
    qkv, bias, _ = draw(groups, batch=2)
    with FlopCounterMode(display=False) as counter:
        out = fused.attend_packed(qkv, groups, heads=2, bias=bias)
        assert counter.get_total_flops() == 2 * 2 * groups.pairs * 2 * 32
        out.sum().backward()
    assert counter.get_total_flops() == 7 * 2 * groups.pairs * 2 * 32


@pytest.mark.parametrize("cosine", [False, True])
def test_benchmark_compares_one_function(monkeypatch, cosine):
    """What `benchmarks.kernel` times beside the kernel has its result and its gradients."""
    from torch.nn.attention.flex_attention import flex_attention

    from benchmarks import kernel

    monkeypatch.setitem(kernel.SIZES, "tiny", ((8, 8), (4, 4), 32, 2, True, cosine))
    p = kernel.problem("tiny", 1, "float32", DEVICE)
    calls = kernel.kernel_calls(p, "infer", flex_attention)
    want, *others = (kernel.in_groups(p, name, call()[0]) for name, call in calls.items())
    assert len(others) == 2
    for other in others:
        assert (want - other).abs().max() <= 1e-5
    calls = kernel.kernel_calls(p, "train", flex_attention)
    fused_grads, sdpa_grads = calls["fused"]()[1:], calls["sdpa"]()[1:]
    if not cosine:  # there, SDPA is given unit vectors

        def tokens(g):
            return g.unflatten(1, (-1, p.heads)).transpose(2, 3).flatten(3)

        maps = torch.cat([p.groups.unroll(p.groups.merge(tokens(g))) for g in sdpa_grads[:3]], -1)
        assert (fused_grads[0] - maps).abs().max() <= 1e-5
    of_bias = sdpa_grads[3].unflatten(0, (-1, 2)).sum(0)
    assert (fused_grads[1] - of_bias).abs().max() <= 1e-5 * of_bias.abs().max()


# -- in the mixers -----------------------------------------------------------------------------

MIXERS = [
    "window:size=4", "window:size=3x4,mask_padding=true", "cosine:size=4", "shuffle:size=3",
    "cross:size=2", "axial", "pale:size=3", "full:position=lepe",
]  # fmt: skip


@pytest.fixture
def runs(monkeypatch):
    """How often the kernel was asked."""
    seen, real = [], fused.attend
    monkeypatch.setattr(fused, "attend", lambda *a, **o: (seen.append(1), real(*a, **o))[1])
    return seen


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_by_kernel_is_the_reference(name, runs):
    """Its result and the gradients of its input and parameters."""
    mixer = randomise(attention.create(name, dim=64, heads=4, index=1), 0).to(DEVICE)
    x = torch.randn(1, 5, 7, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x.requires_grad_()
    found = {}
    for backend in ("kernel", "reference"):
        with attention.backend(backend):
            out = mixer(x)
        wanted = [x, *(p for p in mixer.parameters())]
        found[backend] = out, *torch.autograd.grad((out * out.detach()).sum(), wanted)
    assert len(runs) == sum(isinstance(part, branch.Branch) for part in mixer.modules())
    largest = max(t.abs().max() for t in found["reference"])  # a key bias has a gradient of 0
    for one, other in zip(*found.values(), strict=True):
        assert (one - other).abs().max() <= 1e-5 * largest


@pytest.mark.parametrize(
    "name", ["window:size=3x4,mask_padding=true", "cosine:size=4", "pale:size=3"]
)
def test_a_mixer_tries_the_kernel_by_itself(name, runs, monkeypatch):
    """It holds its own against the reference in a contest, gradients included."""
    clock = {"reference": 2.0, "kernel": 1.0}
    monkeypatch.setattr(autotune, "seconds", lambda call, on: clock[call.args[0].name])
    monkeypatch.setattr(dispatch, "TRIED_ON", (DEVICE,))
    if DEVICE == "cpu":  # as on a GPU
        monkeypatch.setattr(dispatch, "_rules", lambda module, x, tokens, asked: (
            dispatch._on_gpu(module, x, tokens) if asked == "auto"
            else backends.Choice(backends.REFERENCE, "")
        ))  # fmt: skip
    mixer = randomise(attention.create(name, dim=64, heads=4, index=1), 0).to(DEVICE)
    x = torch.randn(1, 5, 7, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a result that is another
        mixer(x)
    tried = len(runs)
    found = mixer(x)
    with attention.backend("reference"):
        want = mixer(x)
    assert tried and len(runs) > tried
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()


def test_a_mixer_by_kernel_compiles_and_gives_way_to_hooks(runs):
    mixer = randomise(attention.create("window:size=4", dim=64, heads=4, index=1), 0).to(DEVICE)
    x = torch.randn(1, 5, 7, 64, device=DEVICE)
    torch._dynamo.reset()
    with torch.no_grad(), fused.kernel():
        want = mixer(x)
        compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)(x)
        assert (compiled - want).abs().max() <= 1e-6 * want.abs().max()
        runs.clear()
        handle = mixer.branch.register_forward_hook(lambda *_: None)
        hooked = mixer(x)
        handle.remove()
        with attention.backend("reference"):
            assert torch.equal(hooked, mixer(x))
    assert not runs


# -- controls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"row_shift": 0}, {"col_shift": 1}, {"row_token": 2}, {"SHIFT": 0}, {"MASK_PADDING": False},
    {"penalty": -1.0}, {"row_end": 8}, {"scale": 0.3}, {"BIAS": False}, {"row_run": 0},
])  # fmt: skip
def test_another_cut_is_seen(monkeypatch, wrong):
    """Negative controls: one argument of the kernels changed, inside the map, and the comparison
    sees it."""
    groups, case = CASES["penalty"]
    init = launch.Call.__init__

    def broken(self, *arguments):
        init(self, *arguments)
        assert self.common.keys() >= wrong.keys()
        self.common.update(wrong)

    case = {**case, "mask_value": -2.0}
    check(groups, **case)
    monkeypatch.setattr(launch.Call, "__init__", broken)
    errors = torch.tensor(compare(groups, **case))
    assert not (errors < 1e-3).all()  # or not a number, where nothing was written
