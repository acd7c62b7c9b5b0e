"""Tools that look inside a model know of the tokens beside its map: probes and checks, mainly."""

from __future__ import annotations

import pytest
import tiny
import torch

import attention
import backbones
from analysis import check
from analysis.checking import subjects
from analysis.checking.certificates import MEANINGS, certify
from analysis.models.influence import influence, probes
from attention.mixers.full import FullMixer
from attention.mixers.messenger import MessengerMixer

COMPARE = [name for name in MEANINGS if name.startswith("compare_")]
QUICK = ["any size", "locality", "large numbers", "batch", "gradients", "layouts"]
HYBRID = "swin_t/3=messenger:size=7,region=2+window/4.tokens=2/4=full/pool=token"


@pytest.mark.parametrize("family", ["msg", "vit", "pvt1"])
def test_a_probe_runs_a_mixer_beside_the_tokens_that_it_had(family):
    """Every mixer is probed; one call of it reads its region alone, and is that of the network."""
    model = tiny.create(family).double()
    x = tiny.images(1, 3, 64, 64).double()
    found = probes(model, x)
    mixers = [part for part in model.modules() if isinstance(part, attention.TokenMixer)]
    assert {probe.module for probe in found} <= set(mixers)
    assert {probe.module.config for probe in found} == {mixer.config for mixer in mixers}
    called = {}

    def note(part, _, out):
        called.setdefault(part, out)

    hooks = [mixer.register_forward_hook(note) for mixer in mixers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for probe in found:
        (h, w), stage = probe.x.shape[1:3], model.stages[int(probe.name.split(".")[1])]
        assert probe.tokens == stage.spec.tokens_beside(h, w)
        out = called[probe.module]
        with torch.no_grad():
            assert torch.equal(probe.run(probe.x), out[0] if probe.tokens else out)
        (reach,) = influence(probe.run, probe.x, [(0, 0)])
        assert torch.equal(reach, probe.module.region(h, w, (0, 0)))


@pytest.mark.parametrize(
    ("what", "mixers", "beside"),
    [("vit_tiny_patch16_224", 2, 2), ("msg_b", 8, 8), (HYBRID, 10, 4), ("mixer_s32_224", 2, 0)],
)
def test_networks_with_tokens_pass(what, mixers, beside):
    ((_, made),) = subjects.find(what, dim=64, heads=4)
    found = {prop.name: result for prop, result in check.check(made, [*QUICK[:2], *QUICK[3:5]])}
    assert {result.verdict for result in found.values()} == {"pass"}, found
    said = f"{mixers} mixers, each on its own map"
    said += f"; the tokens beside {beside} of them stay as they are" if beside else ""
    assert found["locality"].detail == said


@pytest.mark.parametrize("what", ["messenger:size=3", "full", "sra:ratio=2"])
def test_a_mixer_with_tokens_is_checked_with_them_too(what):
    (_, alone), (title, made) = subjects.find(what, dim=16, heads=2, indices=(0,))
    assert title == f"{what}, dim 16, heads 2, even block, tokens beside the map"
    for subject in (alone, made):
        found = {prop.name: result for prop, result in check.check(subject, [*QUICK, "counts"])}
        assert {result.verdict for result in found.values()} == {"pass"}, found
    assert made.module.mixer is not alone.module
    assert len(list(subjects.find("window:size=3", dim=16, heads=2))) == 2


class Wide(MessengerMixer):
    """Messengers that read every window in the same call."""

    def run(self, x, backend, tokens=None):
        if tokens is None:
            return super().run(x, backend)
        of_map, of_tokens = super().run(x, backend, tokens)
        return of_map + x.mean((1, 2), keepdim=True), of_tokens


class Unread(FullMixer):
    """Tokens beside the map that are not mixed with it, so that a projection is idle."""

    def run(self, x, backend, tokens=None):
        if tokens is None:
            return super().run(x, backend)
        return x, tokens


@pytest.mark.parametrize(
    ("planted", "text", "lost"),
    [(Wide, "messenger:size=3,region=1", "locality"), (Unread, "full", "locality")],
)
def test_a_mistake_with_tokens_is_named(planted, text, lost):
    mixer = planted(attention.parse(text), dim=8, heads=2)
    (result,) = (result for _, result in check.check(subjects.mixer(mixer, 8), [lost]))
    assert result.verdict == "pass"  # on the map alone
    (made,) = subjects.with_tokens(mixer, 8)
    ((_, result),) = check.check(made, [lost])
    assert result.verdict == "FAIL"


def test_certificates_of_models_with_tokens():
    """A class token compares what windows do not; a bag of patches has no order."""
    micro = "swin_t/stages=1/img_size=32/in_channels=1/num_classes=2/1.dim=16/1.heads=2/1.depth=2"
    cases = {
        "1=window:size=4,shift=false": [*COMPARE, "left_right", "top_bottom"],
        "1=messenger:size=4,region=1/pool=token": [*COMPARE, "left_right", "top_bottom"],
        "1=messenger:size=4,region=2/pool=token": [],
        "1=full/1.tokens=2/pool=token": [name for name in MEANINGS if name not in COMPARE],
        "1=full/1.tokens=2/pool=token/position=absolute": [],
    }
    for mixers, cannot in cases.items():
        found = certify(backbones.create(f"{micro}/{mixers}"), 32, seeds=1)
        assert found.named("cannot") == cannot, (mixers, found.values)
