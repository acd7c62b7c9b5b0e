"""Rates and decays of every parameter, found inside other people's modules; and parameters that
nothing reads, under DistributedDataParallel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import tiny
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import mse_loss

import backbones
import backbones.timm_models
from backbones import rates
from transom.errors import SpecError

HERE = Path(__file__).resolve().parent


class Detector(nn.Module):
    """A body and a neck with what heads have: a batch norm, a layer norm, biases, a table."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.lateral = nn.Conv2d(768, 8, 1)
        self.bn = nn.BatchNorm2d(8)
        self.batch_norm = nn.BatchNorm2d(8)
        self.norm = nn.LayerNorm(8)
        self.table = nn.Parameter(torch.zeros(4, 4))


def swin(**kwargs):
    with torch.device("meta"):
        return timm.create_model("transom_swin_t", **kwargs)


def ours(spec="swin_t", **fields):
    with torch.device("meta"):
        return backbones.create(spec, **fields)


BODIES = {
    "classifier": swin,
    "backbone": lambda: ours("swin_t/out_norms=true", num_classes=0),
    "list": lambda: swin(features_only=True),
    "hook": lambda: swin(features_only=True, feature_cls="hook"),
    "getter": lambda: swin(features_only=True, feature_cls="getter"),
    "fx": lambda: swin(features_only=True, feature_cls="fx"),
}


def of(groups, model):
    """{name: (rate, decay)}; each parameter once."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(dict(found)) == len(found)
    return dict(found)


# -- weight decay ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BODIES)
def test_authors_rule_inside_a_detector(kind):
    """Decay 0: the 12 tables, every norm of the body, the neck's layer norm.  Decayed, as in the
    authors' dense configs: biases, batch norms of the neck, whatever they are called."""
    model = Detector(BODIES[kind]())
    told = of(rates.groups(model, 1e-4, 0.05), model)
    assert set(told) == {name for name, _ in model.named_parameters()}
    assert {rate for rate, _ in told.values()} == {1e-4}
    free = {name for name, (_, decay) in told.items() if decay == 0}
    tables = {name for name in free if name.endswith("bias.table")}
    assert len(tables) == 12
    assert all("norm" in name for name in free - tables)
    body = {name for name in told if name.startswith("body.") and "norm" in name}
    assert body <= free and len(body) >= 56 and free - tables - body == {"norm.weight", "norm.bias"}
    assert {told[name][1] for name in told if name not in free} == {0.05}
    decayed = {"bn.weight", "bn.bias", "batch_norm.weight", "lateral.bias", "table"}
    assert decayed.isdisjoint(free)


def test_authors_rule_knows_every_family():
    """log-CPB and logit scales, absolute positions, the batch norms inside Pale."""
    network = ("bias.mlp.0.weight", "bias.mlp.0.bias", "bias.mlp.2.weight")
    for family, edits, endings in [
        ("swinv2", (), ("logit_scale", *network)),
        ("swin", ("position=absolute",), ("stem.position", "bias.table")),
        ("pale", (), ("mixer.q.norm.weight", "mixer.k.norm.bias")),
    ]:
        model = Detector(tiny.create(family, *edits))
        told = of(rates.groups(model, 1e-4, 0.05), model)
        for ending in endings:
            found = [decay for name, (_, decay) in told.items() if name.endswith(ending)]
            assert found and set(found) == {0.0}, ending
        kept = [decay for name, (_, decay) in told.items() if name.endswith("fc1.bias")]
        assert set(kept) == {0.05}


@pytest.mark.parametrize("family", tiny.SOME)
@pytest.mark.parametrize("layer_decay", [None, 0.9])
def test_timms_rule_is_timms(family, layer_decay):
    """On a bare classifier the groups are those of create_optimizer_v2, rates included; but for
    Swin-MLP's biases of two axes, which timm decays where it scales rates and not elsewhere."""
    model = timm.create_model("transom", spec=tiny.notation(family, "position=absolute"))
    told = of(rates.groups(model, 1e-3, 0.05, layer_decay, undecayed="timm"), model)
    theirs = create_optimizer_v2(
        model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=layer_decay
    ).param_groups  # fmt: skip
    scaled = [{**g, "lr": g["lr"] * g.get("lr_scale", 1.0)} for g in theirs]
    wanted = of(scaled, model)
    assert set(told) == set(wanted)
    for name, (rate, decay) in told.items():
        if layer_decay and name.endswith(".bias") and model.get_parameter(name).ndim > 1:
            assert family == "swinmlp" and (decay, wanted[name][1]) == (0.0, 0.05)
            continue
        assert (pytest.approx(rate), decay) == wanted[name], name


def test_a_backbone_tells_timm_itself():
    """Not only a timm model: one of `create`, with norms per level."""
    model = ours("swin_t/out_norms=true")
    assert len(model.no_weight_decay()) == 12
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    told = of(optimizer.param_groups, model)
    assert {decay for name, (_, decay) in told.items() if name.endswith("table")} == {0.0}
    assert len({group["lr_scale"] for group in optimizer.param_groups}) == 14
    stages = model.group_matcher(coarse=True)["blocks"]
    assert re.match(stages, "stages.2.blocks.5.mlp.fc1.weight")[1] == "2"


# -- layer decay -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BODIES)
def test_rates_fall_from_the_heads_to_the_stem(kind):
    """One step a block; downsampling as its first block, norms per level and the neck in full."""
    model = Detector(BODIES[kind]())
    told = of(rates.groups(model, 2.0, 0.05, layer_decay=0.9), model)
    names = {name: rate for name, (rate, _) in told.items()}
    found = {}
    for name, rate in names.items():
        place = re.search(r"(stem)|stages[._](\d+)\.(?:blocks\.(\d+)|(downsample))", name)
        if place is None:
            last = re.search(r"body\.norm\.", name)  # goes with the last block
            assert rate == pytest.approx(1.8 if last else 2.0), name
            continue
        stem, stage, block, _ = place.groups()
        found.setdefault((-1,) if stem else (int(stage), int(block or 0)), set()).add(rate)
    assert len(found) == 13 and all(len(rates_) == 1 for rates_ in found.values())
    steps = [found[place].pop() for place in sorted(found)]
    assert steps == [pytest.approx(2 * 0.9**i) for i in range(13, 0, -1)]


def test_two_backbones_fall_each_for_itself():
    """And a wrapper in between changes nothing: DistributedDataParallel's module. is a prefix."""
    model = nn.ModuleDict({"a": tiny.create("swin"), "module": nn.ModuleList([ours("swin_t")])})
    told = of(rates.groups(model, 1.0, 0.05, layer_decay=0.5), model)
    assert told["a.stem.conv.weight"][0] == 0.5**9
    assert told["module.0.stem.conv.weight"][0] == 0.5**13
    assert told["module.0.head.weight"][0] == told["a.head.weight"][0] == 1.0


def test_frozen_parameters_are_left_out_and_keep_their_layer():
    model = Detector(tiny.create("swin"))
    before = of(rates.groups(model, 1.0, 0.05, layer_decay=0.5), model)
    model.body.stem.requires_grad_(False)
    model.body.stages[0].requires_grad_(False)
    after = of(rates.groups(model, 1.0, 0.05, layer_decay=0.5), model)
    gone = set(before) - set(after)
    assert gone == {n for n in before if n.startswith(("body.stem.", "body.stages.0."))}
    assert all(after[name] == before[name] for name in after)


def test_an_optimizer_of_torch_takes_them():
    model = tiny.create("swin").train()
    optimizer = torch.optim.AdamW(rates.groups(model, 1e-3, 0.05, 0.9))
    before = model.stem.conv.weight.detach().clone()
    model(tiny.images(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, model.stem.conv.weight)


def test_what_cannot_be_grouped_is_refused():
    model = tiny.create("swin")
    with pytest.raises(SpecError, match="undecayed='author' is no rule; did you mean 'authors'"):
        rates.groups(model, 1e-4, 0.05, undecayed="author")
    for wrong in (0, 1.5, -0.1):
        with pytest.raises(SpecError, match=f"layer_decay={wrong}: expected a factor above 0"):
            rates.groups(model, 1e-4, 0.05, layer_decay=wrong)
    with pytest.raises(SpecError, match=r"a Linear has no backbone of ours inside; .*parameters"):
        rates.groups(nn.Linear(2, 2), 1e-4, 0.05)


# -- parameters that nothing reads ---------------------------------------------------------------

RANK = """
import sys
import tiny, torch
from torch import distributed, nn

rank, store, out, spec = int(sys.argv[1]), *sys.argv[2:]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = tiny.backbones.create(spec).train()
        tiny.randomise(self.body)

    def forward(self, x):
        return self.body.features(x)

model = Maps()
with torch.no_grad():
    still = model(tiny.images(1, 3, 64, 64))
assert max(map(tiny.error, still, model(tiny.images(1, 3, 64, 64)))) <= 1e-5
assert not still[-1].requires_grad
trained = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(2):
    optimizer.zero_grad()
    maps = trained(tiny.images(2, 3, 64, 64, seed=2 * step + rank))
    sum(m.square().mean() for m in maps).backward()
    optimizer.step()
if rank == 0:
    grads = {name: p.grad for name, p in model.body.named_parameters()}
    torch.save((grads, model.body.state_dict()), out)
distributed.destroy_process_group()
"""


def test_features_of_a_classifier_train_in_parallel(tmp_path):
    """Two gloo ranks, two steps: the gradients are the average of one process's, and the final norm
    and the head, which no map reads, have zeros."""
    spec, out = tiny.notation("swin"), tmp_path / "rank0.pt"
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-c", RANK]
    told = [str(tmp_path / "store"), str(out), spec]
    ranks = [
        subprocess.Popen([*code, str(rank), *told], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors[0][-800:] + errors[1][-800:]
    grads, state = torch.load(out, weights_only=True)

    model = tiny.create("swin").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(2):
        optimizer.zero_grad()
        for rank in range(2):
            maps = model.features(tiny.images(2, 3, 64, 64, seed=2 * step + rank))
            (sum(m.square().mean() for m in maps) / 2).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name.startswith(("norm.", "head.")):
            assert parameter.grad is None and not grads[name].any()
        else:
            assert float(parameter.grad.abs().max()) > 0
            assert mse_loss(grads[name], parameter.grad) <= 1e-12
        assert tiny.error(state[name], parameter) <= 1e-6
