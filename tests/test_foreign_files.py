"""Weights as they lie on disks: at any depth, under any prefix and ending, beside objects of any
class, of self-supervised encoders and of OpenMMLab; and what no file tells."""

from __future__ import annotations

import argparse
import sys
import types

import numpy as np
import pytest
import torch
from hostile import foreign, write_module
from safetensors.torch import save_file
from tiny import FAMILIES, create, images, notation, randomise, state_hash
from torch import nn

import backbones
from attention.execution import torch_private
from backbones import weights
from backbones.files.detect_source import source_of
from backbones.files.locate import locate
from backbones.files.standins import StandIn
from backbones.files.storage import WeightsError

MIXERS = {"swin": "window:size=2", "swinv2": "cosine:size=2,mask_value=-100"}


def small(family: str, seed: int = 0):
    """A model that the authors' code runs as we do: no window outgrows its map."""
    last = MIXERS[family] + ",shift=false"
    edits = [f"{i}={MIXERS[family] if i < 4 else last}" for i in range(1, 5)]
    return create(family, *edits, seed=seed)


@pytest.fixture(scope="module")
def model():
    return small("swin")


def logits(model, *, seed: int = 0):
    with torch.no_grad():
        return model.eval()(images(1, model.spec.in_channels, *model.spec.img_size, seed=seed))


def under(prefix: str, state):
    return {prefix + key: value for key, value in state.items()}


# -- nesting, prefixes, endings ----------------------------------------------------------------

OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.ones(())}}, "param_groups": []}
NESTINGS = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "net": lambda state: {"net": state, "optimizer": OPTIMIZER},
    "params": lambda state: {"params": state},
    "student": lambda state: {"student": state, "loss": torch.ones(())},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": OPTIMIZER},
    "ema.module": lambda state: {"ema": {"module": state, "updates": 7}, "epoch": 1},
    "deep": lambda state: {"a": {"b": {"c": {"d": state}}}},
}
PREFIXES = ("", "module.", "_orig_mod.", "backbone.0.", "encoder.", "module._orig_mod.model.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nesting", NESTINGS)
def test_weights_are_found(model, nesting, prefix):
    """Own names and the authors', with nothing said of where they are."""
    for source in ("transom", "swin"):
        state = model.state_dict() if source == "transom" else weights.export(model, source)
        checkpoint = NESTINGS[nesting](under(prefix, state))
        fresh = small("swin", seed=5)
        report = weights.load(fresh, checkpoint).report
        assert state_hash(fresh) == state_hash(model)
        assert [row["status"] for row in report].count("loaded") == len(model.state_dict())


@pytest.mark.parametrize("ending", ["ckpt", "pth.tar", "weights", "safetensors", ""])
def test_content_decides(model, tmp_path, ending):
    """Not the ending: a checkpoint of torch.save, and safetensors."""
    for number in range(2):
        path = tmp_path / (f"w{number}.{ending}" if ending else f"w{number}")
        if number:
            save_file(model.state_dict(), path)
        elif ending not in ("ckpt", "safetensors"):
            continue  # each costs a process
        else:
            torch.save({"ema": {"module": under("module.", model.state_dict())}}, path)
        fresh = small("swin", seed=5)
        weights.load(fresh, path)
        assert state_hash(fresh) == state_hash(model)
    path.write_bytes(b"something else")
    with pytest.raises(WeightsError, match=r"neither|cut short"):
        weights.load(fresh, path)


def test_one_of_several_is_asked_for(model):
    """Two state dicts, two backbones in one: both ways out are named, and work."""
    state, other = model.state_dict(), small("swin", seed=3).state_dict()
    two = {"state_dict": state, "state_dict_ema": {"module": other}}
    with pytest.raises(WeightsError, match=r"state_dict, state_dict_ema\.module; .*--entry"):
        weights.load(model.__class__(model.spec), two)
    for entry in ("state_dict_ema.module", "state_dict_ema"):
        fresh = small("swin", seed=5)
        weights.load(fresh, two, entry=entry)
        assert torch.equal(fresh.state_dict()["norm.weight"], other["norm.weight"])
    with pytest.raises(WeightsError, match=r"'state_dict_em'; .*state_dict_ema\.module"):
        weights.load(fresh, two, entry="state_dict_em")
    both = under("student.", state) | under("teacher.", other)
    with pytest.raises(WeightsError, match=r"under student\., teacher\.; .*--prefix"):
        weights.load(fresh, both)
    weights.load(fresh, both, prefix="teacher.")
    assert torch.equal(fresh.state_dict()["norm.weight"], other["norm.weight"])
    same = {"model": state, "alias": state}
    weights.load(fresh, same)
    with pytest.raises(WeightsError, match="no tensors"):
        weights.load(fresh, {"model": {"epoch": 3}})


def test_counters_of_wrappers(model):
    """AveragedModel counts beside its module, thop inside every module."""
    fresh = small("swin", seed=5)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    weights.load(fresh, averaged.state_dict())
    assert state_hash(fresh) == state_hash(model)
    counted = dict(model.state_dict()) | {"num_updates": torch.tensor(9)}
    counted |= {"stem.total_ops": torch.zeros(1), "stages.0.blocks.0.total_params": torch.zeros(1)}
    fresh = small("swin", seed=5)
    report = weights.load(fresh, counted).report
    assert state_hash(fresh) == state_hash(model)
    left = {row["from"] for row in report if row["status"] == "left out"}
    assert left == {"num_updates", "stem.total_ops", "stages.0.blocks.0.total_params"}
    gate = dict(model.state_dict()) | {"stages.0.blocks.0.gate": torch.zeros(1)}
    with pytest.raises(WeightsError, match="gate"):  # one number, and no counter
        weights.load(fresh, gate)


# -- objects beside the tensors ----------------------------------------------------------------


def test_objects_beside_the_tensors(model, tmp_path, monkeypatch):
    """Arguments, a CfgNode, numpy numbers, an object of a module that must not be imported: the
    tensors load, the others do nothing and are named."""
    CfgNode = pytest.importorskip("yacs.config").CfgNode
    path, marker = tmp_path / "train.pth", tmp_path / "ran"
    with foreign(w=torch.zeros(2)) as thing:
        torch.save(
            {
                "state_dict": under("module.", model.state_dict()), "epoch": 3,
                "args": argparse.Namespace(lr=np.float64(0.1), betas=(0.9, np.float32(0.99))),
                "config": CfgNode({"MODEL": {"SWIN": {"QK_SCALE": None, "DEPTHS": [2, 2]}}}),
                "metric": np.float64(81.2), "when": types.SimpleNamespace(day=3), "thing": thing,
                "optimizer": OPTIMIZER,
            },
            path,
        )  # fmt: skip
    write_module(tmp_path, marker)
    monkeypatch.syspath_prepend(tmp_path)  # which the reading process would import from, too
    fresh = small("swin", seed=5)
    report = weights.load(fresh, path).report
    assert state_hash(fresh) == state_hash(model) and not marker.exists()
    beside = {row["from"]: row["shape"] for row in report if row["status"] == "left out"}
    assert beside.keys() == {"epoch", "args", "config", "metric", "when", "thing", "optimizer"}
    assert beside["thing"] == "evil_module.Thing (not read)" and beside["optimizer"] == "dict"
    assert beside["config"] == "yacs.config.CfgNode (not read)"
    __import__("evil_module")  # negative control: whoever imports it is seen
    assert marker.exists()
    monkeypatch.delitem(sys.modules, "evil_module")


def test_a_stand_in_takes_everything():
    """Whatever an unpickler may do to an object."""
    made = StandIn(1, x=2)
    made["a"] = 1
    made[3] = 4
    made.append(5)
    made.extend([6])
    made.__setstate__({"b": 2, 7: 8})
    made.__setstate__((None, {"c": 3}))
    assert made.content == {"a": 1, "b": 2}


def test_without_torchs_private_names(tmp_path, monkeypatch):
    """An object of a class that extends dict is then refused by torch, in one line."""
    from backbones.files import standins

    path = tmp_path / "train.pth"
    with foreign(w=3) as thing:
        torch.save({"model": {"w": torch.zeros(1)}, "thing": thing}, path)
    assert isinstance(standins.load(path)["thing"], StandIn)
    for hidden in ("module", "methods"):
        with monkeypatch.context() as patch:
            if hidden == "module":
                patch.setitem(sys.modules, "torch._weights_only_unpickler", None)
            else:
                patch.setattr(torch_private, "_CHECKS", ("no_such", "nor_such"))
            with pytest.raises(Exception, match="SETITEM"):
                standins.load(path)


def test_tables_that_turn_in_circles():
    ring: dict = {"a": {}, "w": torch.zeros(1)}
    ring["a"]["b"] = ring
    assert list(locate(ring).state) == ["w"]
    deep: dict = {"w": torch.zeros(1)}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(WeightsError, match="no tensors"):
        locate(deep)


# -- self-supervised encoders ------------------------------------------------------------------


def encoder_of(model, source: str, extra=()):
    state = weights.export(model, source)
    body = {k: v for k, v in state.items() if not k.startswith("head.")}
    return body | {name: torch.ones(1, 1, 8) for name in extra}


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_simmim(family):
    """{"model": encoder.*, decoder.*}: the encoder is found, mask_token and decoder are named as
    left out, and there is no head to miss; in a classifier the head is asked for."""
    model = small(family)
    state = under("encoder.", encoder_of(model, family, ["mask_token"]))
    state |= {"decoder.0.weight": torch.ones(4, 8, 1, 1), "decoder.0.bias": torch.ones(4)}
    told = {"img_size": model.spec.img_size}
    if family == "swinv2":
        told |= {
            "window": [stage.mixers[0].size for stage in model.spec.stages],
            "pretrained_window": [s.mixers[0].pretrained_window for s in model.spec.stages],
        }
    loaded = weights.load(None, {"model": state}, **told)
    left = {row["from"] for row in loaded.report if row["status"] == "left out"}
    assert left == {"mask_token", "decoder.0.weight", "decoder.0.bias"}
    assert loaded.model.spec.num_classes == 0
    headless = backbones.create(model.spec, num_classes=0)
    weights.load(headless, {"model": state})
    weights.load(headless, model.state_dict())  # whose head it does not need
    assert torch.equal(logits(headless), logits(loaded.model))
    classifier = small(family, seed=4)
    before = state_hash(classifier)
    with pytest.raises(WeightsError, match=r"nothing for head\.weight") as info:
        weights.load(classifier, {"model": state})
    assert state_hash(classifier) == before and "--partial fitting" in str(info.value)
    weights.load(classifier, {"model": state}, partial="fitting")
    assert torch.equal(classifier.norm.weight, model.norm.weight)


def test_moby(model):
    """Online encoder, momentum copy, heads and queue in one state dict: the encoder counts."""
    copy = small("swin", seed=9)
    state = under("encoder.", encoder_of(model, "swin"))
    state |= under("encoder_k.", encoder_of(copy, "swin"))
    state |= {"projector.linear1.weight": torch.ones(2, 2), "queue1": torch.ones(2, 3)}
    loaded = weights.load(None, {"model": state}, img_size=(64, 64)).model
    assert torch.equal(loaded.norm.weight, model.norm.weight)
    loaded = weights.load(None, {"model": state}, prefix="encoder_k.", img_size=(64, 64)).model
    assert torch.equal(loaded.norm.weight, copy.norm.weight)


# -- OpenMMLab ---------------------------------------------------------------------------------


class UnfoldMerge(nn.Module):
    """Merging as mmcv computes it: nn.Unfold's channels, (c, row, column)."""

    def __init__(self, reduction, norm, *, post: bool) -> None:
        super().__init__()
        self.reduction, self.norm, self.post = reduction, norm, post

    def forward(self, x):
        h, w = (side + side % 2 for side in x.shape[2:])
        x = nn.functional.pad(x, (0, w - x.shape[3], 0, h - x.shape[2]))
        x = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
        layer = nn.functional.layer_norm
        if self.post:
            x = x @ self.reduction.T
            x = layer(x, x.shape[-1:], *self.norm)
        else:
            x = layer(x, x.shape[-1:], *self.norm) @ self.reduction.T
        return x.transpose(1, 2).unflatten(2, (h // 2, w // 2))


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_openmmlab(family):
    """Written in their names and read back the same; their merging, computed as they do from the
    very tensors, equals ours, and with our order of channels it does not."""
    model, target = small(family), "openmmlab" if family == "swin" else "openmmlab_v2"
    state = weights.export(model, target)
    assert source_of(state) == target and "norm3.weight" in state and "head.fc.weight" in state
    assert weights.export(model, "swin").keys().isdisjoint(
        key for key in state if ".downsample." in key
    )
    for i in (1, 2, 3):
        at = f"stages.{i - 1 if family == 'swin' else i}.downsample."
        norm = state[at + "norm.weight"], state[at + "norm.bias"]
        theirs = UnfoldMerge(state[at + "reduction.weight"], norm, post=family == "swinv2")
        x = images(2, model.spec.stages[i - 1].dim, 7, 6)
        ours = model.stages[i].downsample
        with torch.no_grad():
            assert torch.allclose(theirs(x), ours(x), atol=1e-5)
            theirs.reduction = ours.reduction.weight
            assert not torch.allclose(theirs(x), ours(x), atol=1e-2)
    told = {"img_size": (64, 64)}
    if family == "swinv2":
        told |= {
            "window": [stage.mixers[0].size for stage in model.spec.stages],
            "pretrained_window": [s.mixers[0].pretrained_window for s in model.spec.stages],
        }
    body = {k: v for k, v in state.items() if not k.startswith("head.")}
    heads = {k: v for k, v in state.items() if k.startswith("head.")}
    classifier = {"meta": {"epoch": 3}, "state_dict": under("backbone.", body) | heads}
    loaded = weights.load(None, classifier, **told).model
    assert torch.equal(logits(loaded), logits(model))
    again = weights.export(loaded, target)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_openmmlab_detector(model):
    """norm0 to norm3 and no head: maps, normed; what is beside the backbone is left out."""
    body = {k: v for k, v in weights.export(model, "openmmlab").items()
            if not k.startswith(("norm3.", "head."))}  # fmt: skip
    for i, stage in enumerate(model.spec.stages):
        body |= {f"norm{i}.weight": torch.ones(stage.dim), f"norm{i}.bias": torch.zeros(stage.dim)}
    state = under("backbone.", body) | {"neck.fpn.weight": torch.ones(2)}
    dense = weights.load(None, {"state_dict": state}, img_size=(64, 64)).model
    assert dense.spec.out_norms and not dense.spec.final_norm and dense.spec.num_classes == 0


# -- windows, biases, scales -------------------------------------------------------------------

OBLONG = "stages=2/1.depth=2/2.depth=2/num_classes=10/img_size=96x144"
SOURCES = {
    "swin": "swin", "timm": "swin", "torchvision": "swin", "transformers": "swin",
    "openmmlab": "swin", "swinv2": "swinv2", "openmmlab_v2": "swinv2", "swinmlp": "swinmlp",
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_windows_that_are_not_square(source):
    """8x12 windows on maps that are no smaller, from the names of every source."""
    family = SOURCES[source]
    mixer = {"swin": "window", "swinv2": "cosine", "swinmlp": "token_mlp"}[family]
    more = ",mask_value=-100" if mixer == "cosine" else ""
    text = f"{FAMILIES[family]}/{OBLONG}"
    for i in (1, 2):
        text += f"/{i}={mixer}:size=8x12{more}/{i}.dim={8 * i}/{i}.heads={2 * i}"
    model = randomise(backbones.create(text))
    state = weights.export(model, source)
    told: dict = {"window": [(8, 12)], "img_size": (96, 144)}
    if mixer == "cosine":
        told["pretrained_window"] = [None]
    again = weights.load(None, state, **told).model
    assert {stage.mixers[0].size for stage in again.spec.stages} == {(8, 12)}
    assert torch.equal(logits(again), logits(model))


def test_cswin_without_qkv_biases():
    """Every stage's own biases are looked for, those of the last too."""
    text = notation("cswin")
    for stage, size in enumerate((1, 2, 2), start=1):
        text += f"/{stage}=cross:size={size},qkv_bias=false"
    model = backbones.create(text + "/4=full:position=lepe,qkv_bias=false").eval()
    state = weights.export(model, "cswin")
    assert not any(key.endswith("qkv.bias") for key in state)
    told = {
        "window": [(1, 1), (2, 2), (2, 2), (2, 2)], "heads": [s.heads for s in model.spec.stages],
        "img_size": model.spec.img_size,
    }  # fmt: skip
    again = weights.load(None, state, **told).model
    assert torch.equal(logits(again), logits(model))


def test_qk_scale_is_told_or_asked_for(tmp_path):
    """No shape tells it: it is an option, and asked for by name where a configuration beside the
    weights has one."""
    last = "4=window:size=2,shift=false"
    model = create("swin", *(f"{i}=window:size=2,qk_scale=0.35" for i in range(1, 4)),
                   last + ",qk_scale=0.35")  # fmt: skip
    same = create("swin", *(f"{i}=window:size=2" for i in range(1, 4)), last)
    state = weights.export(same, "swin")
    plain = weights.load(None, state, img_size=(64, 64)).model
    told = weights.load(None, state, img_size=(64, 64), qk_scale=[0.35]).model
    assert told.spec.stages == model.spec.stages
    assert torch.equal(logits(told), logits(model))
    assert not torch.equal(logits(plain), logits(model))
    checkpoint = {"model": state, "config": {"MODEL": {"SWIN": {"QK_SCALE": 0.35}}}}
    with pytest.raises(WeightsError, match=r"has qk_scale 0\.35.*--qk-scale 0\.35"):
        weights.load(None, checkpoint, img_size=(64, 64))
    again = weights.load(None, checkpoint, img_size=(64, 64), qk_scale=[0.35]).model
    assert torch.equal(logits(again), logits(model))
    CfgNode = pytest.importorskip("yacs.config").CfgNode
    path = tmp_path / "trained.pth"
    torch.save({"model": state, "config": CfgNode(checkpoint["config"])}, path)
    with pytest.raises(WeightsError, match="--qk-scale"):
        weights.load(None, path, img_size=(64, 64))
