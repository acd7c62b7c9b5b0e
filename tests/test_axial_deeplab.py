"""Axial-DeepLab's layer against the authors' code: outputs and gradients that it gave."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_golden import read
from tiny import error
from torch import Tensor

import attention
from attention import SpecError
from attention.mixers.axial_deeplab import PositionSensitiveAxis

CASES = ("axial/attn_height_k8", "axial/attn_width_k7", "axial/block_s2_k8")
OURS = {  # their name: ours
    "qkv_transform.weight": "qkv.weight", "relative": "table", "bn_qkv": "norm_qkv",
    "bn_similarity": "norm_scores", "bn_output": "norm_out",
}  # fmt: skip


def layer(weights: dict[str, Tensor], *, inputs: int, dim: int, heads: int, span: int):
    """Our layer with their weights; index tables are computed."""
    state = {}
    for key, tensor in weights.items():
        if key == "flatten_index":
            continue
        for theirs, ours in OURS.items():
            if key.startswith(theirs):
                name = key.replace(theirs, ours, 1)
                state[name] = tensor.squeeze(-1) if name == "qkv.weight" else tensor
    model = PositionSensitiveAxis(inputs, dim, heads, span)
    state = {name: state[name].to(t.dtype) for name, t in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def along(model, x: Tensor, axis: str) -> Tensor:
    """(b, c, h, w), as the authors keep a map."""
    lines = x.permute(0, 3, 2, 1) if axis == "height" else x.permute(0, 2, 3, 1)
    y = model(lines.flatten(0, 1)).unflatten(0, lines.shape[:2])
    return y.permute(0, 3, 2, 1) if axis == "height" else y.permute(0, 3, 1, 2)


def norm(weights, name: str, x: Tensor) -> Tensor:
    parts = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(weights[f"{name}.{part}"].to(x.dtype) for part in parts))


def block(weights, about, x: Tensor, make=layer) -> dict[str, Tensor]:
    """Their bottleneck with our two layers; the stride is a pool after the second."""
    options = {"inputs": 16, "dim": 16, "heads": about["groups"], "span": about["kernel_size"]}

    def convolved(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, weights[name].to(x.dtype), stride=stride)

    found = {}
    y = norm(weights, "bn1", convolved("conv_down.weight", x)).relu()
    for name, axis in (("hight_block", "height"), ("width_block", "width")):
        own = {k.removeprefix(name + "."): t for k, t in weights.items() if k.startswith(name)}
        y = along(make(own, **options).to(x.dtype), y, axis)
        if axis == "width":
            y = F.avg_pool2d(y, about["stride"]).relu()  # theirs writes into the stored output
        found[f"feature.{name}"] = y
    y = norm(weights, "bn2", convolved("conv_up.weight", y))
    identity = norm(weights, "downsample.1", convolved("downsample.0.weight", x, about["stride"]))
    return {**found, "output": (y + identity).relu()}


def errors(case: str, *, dtype=torch.float32, make=layer) -> dict[str, float]:
    """Every stored output: our largest error, in units of what is allowed."""
    about, weights, io = read(case)
    about = about["constructor"]
    x = io["input"].to(dtype).clone().requires_grad_()
    if about["layer"] == "AxialBlock":
        found = block(weights, about, x, make)
    else:
        model = make(
            weights, inputs=about["in_planes"], dim=about["out_planes"], heads=about["groups"],
            span=about["kernel_size"],
        )  # fmt: skip
        found = {"output": along(model.to(dtype), x, "width" if about["width"] else "height")}
    (found["input_grad"],) = torch.autograd.grad(
        (found["output"] * io["loss_weight"].to(dtype)).sum(), x
    )
    assert set(found) == {name for name in io if name not in ("input", "loss", "loss_weight")}
    of = {}
    for name, out in found.items():
        allowed = 1e-4 if name == "input_grad" else 1e-5
        allowed *= max(1.0, float(io[name].abs().max()))
        of[name] = error(out, io[name].to(dtype)) / allowed
    return of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case, dtype):
    found = errors(case, dtype=dtype)
    assert {name: e for name, e in found.items() if not e <= 1} == {}


def transposed(weights, **options):
    """Positions of the key minus the query."""
    model = layer(weights, **options)
    model.table.data = model.table.data.flip(1)
    return model


def scaled(weights, **options):
    """Scores divided by the root of a head's width."""
    model = layer(weights, **options)
    model.norm_scores.weight.data *= model.width**-0.5
    return model


def stacked(weights, **options):
    """Channels of the output's norm as (value, position), each as one run."""
    model = layer(weights, **options)
    for tensor in model.norm_out.state_dict().values():
        if tensor.ndim:
            tensor.copy_(tensor.clone().view(2, -1).mT.flatten())
    return model


@pytest.mark.parametrize("mistake", [transposed, scaled, stacked])
@pytest.mark.parametrize("case", CASES)
def test_detects_a_wrong_reading(case, mistake):
    assert max(errors(case, make=mistake).values()) > 100


def test_beyond_the_span_no_key_is_seen():
    """An axis longer than its span: what is further away changes nothing."""
    mixer = attention.create("axial_deeplab:span=3,along=width", dim=8, heads=2).double().eval()
    x = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 6:] += 1
    assert torch.equal(mixer(x)[:, :, :4], mixer(changed)[:, :, :4])
    assert not torch.equal(mixer(x)[:, :, 4], mixer(changed)[:, :, 4])


def test_a_longer_table_is_the_table_of_a_shorter_axis():
    """Of span 5 and span 9 with equal inner columns: equal on 5 tokens."""
    short, long = (PositionSensitiveAxis(8, 8, 2, span).double().eval() for span in (5, 9))
    state = short.state_dict()
    inner = long.state_dict()["table"].clone()
    inner[:, 4:-4] = state["table"]
    long.load_state_dict({**state, "table": inner})
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    assert torch.equal(short(x), long(x))


def test_odd_heads_are_refused_when_built():
    with pytest.raises(SpecError, match="half as wide"):
        attention.create("axial_deeplab", dim=6, heads=2)
