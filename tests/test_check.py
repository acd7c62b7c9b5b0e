"""The property suite: our mixers have every property, and each planted mistake loses the one that
it must lose, by name."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attention
from analysis import check
from analysis.checking import checks, properties, subjects
from analysis.models import influence
from attention.configs import catalogue, registry
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.mixers.cross import CrossMixer
from attention.mixers.pale import PaleMixer
from attention.mixers.shuffle import ShuffleMixer
from attention.mixers.window import WindowMixer
from attention.softmax.branch import Branch
from attention.softmax.position import RelativeBias

BUILT_IN = (
    "axial", "axial_deeplab", "cosine", "cross", "deformable", "full", "halo", "messenger",
    "neighbourhood", "pale", "shuffle", "sra", "token_mlp", "window",
)  # fmt: skip
HYBRIDS = [
    "window:size=3x4,scores=cosine,mask_padding=true", "window:size=4,position=lepe,shift=false",
    "cross:size=2x3,scores=cosine,position=log_cpb", "axial:order=sequential,position=log_cpb",
    "pale:size=3,scores=cosine,position=lepe", "shuffle:size=3x2,position=lepe",
    "token_mlp:size=3x4,shift=false", "full:position=lepe,scores=cosine",
    "token_mlp:size=3x4,hidden=5", "messenger:size=3x2,region=2,scores=cosine,position=log_cpb",
]  # fmt: skip
SLOW = ("counts", "compile", "export")  # seconds each
QUICK = [prop.name for prop in properties.MIXER if prop.name not in SLOW]


def verdicts(subject, only=None):
    """name: (verdict, the whole result)"""
    return {prop.name: result for prop, result in check.check(subject, only)}


def failures(subject, only=None):
    found = verdicts(subject, only)
    return {name: result for name, result in found.items() if result.verdict == "FAIL"}


# -- what is right passes ----------------------------------------------------------------------


# whose code the others run, too
LATER = ("axial", "cosine", "full", "halo", "messenger", "shuffle")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LATER)) for n in BUILT_IN]
)
def test_built_in_mixers_pass(name):
    for index in (0, 1):
        mixer = attention.create(name, dim=16, heads=2, index=index)
        assert failures(subjects.mixer(mixer, 16), [*QUICK, "counts"]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_mixers_compile_and_export(name):
    for index in (0, 1):
        mixer = attention.create(name, dim=16, heads=2, index=index)
        assert failures(subjects.mixer(mixer, 16), ["compile", "export"]) == {}


@pytest.mark.parametrize(
    "text", [pytest.param(t, marks=[pytest.mark.slow] * (i % 2)) for i, t in enumerate(HYBRIDS)]
)
def test_options_pass(text):
    for index in (0, 1):
        mixer = attention.create(text, dim=16, heads=2, index=index)
        assert failures(subjects.mixer(mixer, 16), QUICK) == {}


def test_every_property_of_a_window_is_judged():
    """None is skipped but the comparison of the registered mixer with itself."""
    found = verdicts(subjects.mixer(attention.create("window:size=4", dim=8, heads=2), 8))
    skipped = {name for name, result in found.items() if result.verdict != "pass"}
    assert skipped == {"equals the registered mixer"}
    assert all(prop.meaning for prop in (*properties.MIXER, *properties.NETWORK))


# -- planted mistakes --------------------------------------------------------------------------


class Planted(WindowMixer):
    """A copy of the window mixer whose stated region is the true one."""

    def region(self, h, w, query):
        return WindowMixer.groups(self, h, w).region(query)


class WrongShift(Planted):
    """One token too far."""

    def groups(self, h, w):
        cut = super().groups(h, w)
        return Groups(*(a._replace(shift=a.shift + (a.shift > 0)) for a in cut))


class RollsBeforeItPads(Planted):
    def forward(self, x):
        groups = self.groups(*x.shape[1:3])
        y = self.branch(*self.project(groups.split(groups.pad(groups.roll(x)))), groups)
        return groups.unroll(groups.crop(groups.merge(self.proj(y))))


class TransposedBias(Planted):
    """The table read as key - query."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.branch.bias = KeyMinusQuery(self.heads, self.config.size)


class KeyMinusQuery(RelativeBias):
    def forward(self, groups):
        return super().forward(groups).mT


class NoMask(Planted):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.branch.mask = self.unmasked

    def unmasked(self, groups, like, part):
        still = Groups(*(a._replace(shift=0) for a in groups))
        return Branch.mask(self.branch, still, like, part)


class PadsSwapped(Planted):
    """The pads of the height at the width and those of the width at the height."""

    def forward(self, x):
        groups = self.groups(*x.shape[1:3])
        down, right = (a.padded - a.length for a in groups)
        x = F.pad(x, (0, 0, 0, down, 0, right))
        y = self.branch(*self.project(groups.split(x)), groups)
        return groups.reverse(self.proj(y))


class MasksByAPenalty(Planted):
    """-100 in the code, whatever the config says."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.branch.mask = self.penalty

    def penalty(self, groups, like, part):
        mask = Branch.mask(self.branch, groups, like, part)
        return None if mask is None else mask.clamp(min=-100)


class MixesTheBatch(Planted):
    def forward(self, x):
        return super().forward(x + 1e-3 * x.mean(0, keepdim=True))


class ContiguousPale(PaleMixer):
    """Neighbouring rows instead of interlaced ones."""

    def region(self, h, w, query):
        return PaleMixer(self.config, dim=self.dim, heads=self.heads).region(h, w, query)

    def branch_groups(self, h, w):
        rows, cols = super().branch_groups(h, w)
        return (
            rows._replace(rows=rows.rows._replace(interval=1)),
            cols._replace(cols=cols.cols._replace(interval=1)),
        )


class ContiguousShuffle(ShuffleMixer):
    """The same mistake, and a region that goes along with it."""

    def groups(self, h, w):
        return Groups(axis(h, self.config.size[0]), axis(w, self.config.size[1]))


class HalvesExchanged(CrossMixer):
    """Vertical stripes for the second half of the channels: the union is the same."""

    def branch_groups(self, h, w):
        return super().branch_groups(h, w)[::-1]


class CropsOneOff(Planted):
    def forward(self, x):
        groups = self.groups(*x.shape[1:3])
        y = self.branch(*self.project(groups.partition(x)), groups)
        y = groups.unroll(groups.merge(self.proj(y)))
        first = 1 if groups.padded else 0
        y = y.roll((-first, -first), (1, 2))
        return groups.crop(y)


class BiasOnOneBranch(CrossMixer):
    """The second branch goes without its log-CPB: its parameters get no gradient."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        second = self.branches[1]
        second.mask = lambda groups, like, part: None


class LeaksAMillionth(Planted):
    def forward(self, x):
        return super().forward(x) + 1e-6 * x.mean((1, 2), keepdim=True)


MISTAKES = [  # the mistake, the options of the mixer, the property that must be lost
    (WrongShift, "window:size=4", 1, "locality"),
    (RollsBeforeItPads, "window:size=4", 1, "locality"),
    (TransposedBias, "window:size=4", 0, "equals the registered mixer"),
    (NoMask, "window:size=4", 1, "locality"),
    (PadsSwapped, "window:size=4", 0, "any size"),
    (MasksByAPenalty, "window:size=4", 1, "large numbers"),
    (MixesTheBatch, "window:size=4", 0, "batch"),
    (ContiguousPale, "pale:size=3", 0, "locality"),
    (ContiguousShuffle, "shuffle:size=3", 1, "equals the registered mixer"),
    (HalvesExchanged, "cross:size=3", 0, "equals the registered mixer"),
    (CropsOneOff, "window:size=4", 0, "locality"),
    (BiasOnOneBranch, "cross:size=3,position=log_cpb", 0, "gradients"),
    (BiasOnOneBranch, "cross:size=3,position=log_cpb", 0, "equals the registered mixer"),
    (LeaksAMillionth, "window:size=4", 0, "locality"),
]


@pytest.mark.parametrize(("planted", "text", "index", "lost"), MISTAKES)
def test_a_planted_mistake_is_named(planted, text, index, lost):
    """The property fails on the mistake, with its case and a sentence, and holds without it."""
    mixer = planted(attention.parse(text), dim=16, heads=2, index=index)
    found = failures(subjects.mixer(mixer, 16), QUICK)
    assert lost in found, found
    assert found[lost].case and found[lost].detail
    right = subjects.mixer(attention.create(text, dim=16, heads=2, index=index), 16)
    assert failures(right, [lost]) == {}


def test_a_mistake_loses_nothing_else_that_it_has():
    """Where one property tells the mistake, the others still say what holds."""
    mixer = TransposedBias(attention.parse("window:size=4"), dim=16, heads=2)
    assert list(failures(subjects.mixer(mixer, 16), QUICK)) == ["equals the registered mixer"]
    mixer = MixesTheBatch(attention.parse("window:size=4"), dim=16, heads=2)
    assert {"locality", "layouts"}.isdisjoint(failures(subjects.mixer(mixer, 16), QUICK))


class WritesToItsInput(Planted):
    def forward(self, x):
        return super().forward(x.mul_(1))[..., :] + x.sub_(1e-3) * 0


class StaticCost(Planted):
    def cost(self, h, w):
        return attention.Cost(4 * h * w * self.dim**2, 0)


class Breaks(Planted):
    """Its graph depends on values."""

    def forward(self, x):
        y = super().forward(x)
        return y if float(y.sum()) > -1e9 else x


class NormalisesInHalf(Planted):
    """The square of a thousand is beyond fp16."""

    def forward(self, x):
        return super().forward(x) / (1 + 0 * x.square().sum(-1, keepdim=True))


class KnowsItsPlace(Planted):
    """Another output for the same window elsewhere."""

    def forward(self, x):
        return super().forward(x) * torch.arange(1, x.shape[1] + 1)[:, None, None]


@pytest.mark.parametrize(
    ("planted", "lost"),
    [
        (WritesToItsInput, {"layouts"}),
        (StaticCost, {"counts"}),
        (Breaks, {"compile", "export"}),
        (NormalisesInHalf, {"half precision"}),
        (KnowsItsPlace, {"translation"}),
    ],
)
def test_the_other_properties_can_be_lost(planted, lost):
    mixer = planted(attention.parse("window:size=4"), dim=16, heads=2)
    assert set(failures(subjects.mixer(mixer, 16), list(lost))) == lost


# -- large maps --------------------------------------------------------------------------------


class LeaksOnLargeMaps(Planted):
    def forward(self, x):
        return super().forward(x) + 1e-6 * (x.shape[1] > 14) * x.mean((1, 2), keepdim=True)


def test_what_small_maps_hide_is_seen_on_a_large_one():
    mixer = LeaksOnLargeMaps(attention.parse("window:size=3"), dim=8, heads=2)
    made = subjects.mixer(mixer, 8)
    assert max(h for h, _ in made.sizes) <= 14
    found = failures(made, ["any size", "locality"])
    assert list(found) == ["locality"] and found["locality"].case == "41x38"


class Breaks41(Planted):
    def forward(self, x):
        assert x.shape[1] < 41, "too high for me"
        return super().forward(x)


def test_a_large_map_that_does_not_run_is_said_once():
    made = subjects.mixer(Breaks41(attention.parse("window:size=3"), dim=8, heads=2), 8)
    found = failures(made, ["any size", "locality"])
    assert list(found) == ["any size"] and "too high for me" in found["any size"].detail


class Tiles(nn.Module):
    """A token becomes the mean of those of its tile; rate 2: of every second one."""

    def __init__(self, tile, rate=1, states=True):
        super().__init__()
        self.tile, self.rate, self.states = tile, rate, states

    def forward(self, x):
        h, w = x.shape[1:3]
        near = torch.stack([self.near(h, w, (i, j)) for i in range(h) for j in range(w)])
        weights = near.flatten(1).to(x.dtype) / near.flatten(1).sum(1, keepdim=True)
        return (weights @ x.flatten(1, 2)).view_as(x)

    def near(self, h, w, query):
        (i, j), rows, cols = query, torch.arange(h), torch.arange(w)
        return self.meet(rows, i)[:, None] & self.meet(cols, j)

    def meet(self, a, b):
        return (a // self.tile == b // self.tile) & (a % self.rate == b % self.rate)

    def region(self, h, w, query):
        if not self.states:
            raise NotImplementedError
        return self.near(h, w, query)


@pytest.mark.parametrize("states", [True, False])
def test_maps_hold_two_of_what_reaches_a_token(states):
    """The extent of a region, stated or measured, where nothing declares it."""
    made = subjects.mixer(Tiles(12, states=states), 1)
    assert made.sizes[-1] == (26, 25) and made.large == [(41, 38)]
    made = subjects.mixer(Tiles(12, rate=2, states=states), 1)
    assert made.sizes[-1] == (24, 23)
    assert subjects.mixer(Tiles(100, states=states), 1).sizes[-1] == (16, 15)
    if states:
        assert subjects.mixer(Tiles(30), 1).large == [(60, 60)]


# -- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "wanted"),
    [(torch.nan, 1.0), (1.0, torch.nan), (torch.nan, torch.nan), (torch.inf, torch.inf),
     (torch.inf, 1.0), (1.0, torch.inf)],
)  # fmt: skip
def test_a_number_that_is_none_is_infinitely_far(found, wanted):
    a, b = torch.ones(2, 3), torch.ones(2, 3)
    a[0, 1], b[0, 1] = found, wanted
    assert checks.relative_error(a, b) == float("inf")


class NothingOfOneImage(Planted):
    """NaN wherever a batch holds one image."""

    def forward(self, x):
        return super().forward(x) + (torch.nan if x.shape[0] == 1 else 0)


def test_not_a_number_fails_where_errors_are_judged():
    mixer = NothingOfOneImage(attention.parse("window:size=4"), dim=16, heads=2)
    asked = {"translation", "equals the registered mixer", "batch", "large numbers"}
    assert set(failures(subjects.mixer(mixer, 16), asked)) == asked


def test_a_gradient_that_is_no_number_is_an_influence_and_hides_none():
    def one_above(x):
        above = (0 * F.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1]).sqrt()  # its slope is infinite at 0
        return x + above

    found = influence.influence(one_above, torch.ones(1, 3, 1, 2).double(), [(1, 0)])
    assert found.flatten().tolist() == [True, True, False]


class Scaled(Planted):
    """Its outputs are larger by a part that another class says when to add."""

    part = 0.0

    def forward(self, x):
        return super().forward(x) * (1 + self.part * self.wrong(x))


class WrongInBatches(Scaled):
    def wrong(self, x):
        return len(x) > 1


class WrongInStrides(Scaled):
    def wrong(self, x):
        return not x.is_contiguous()


class WrongBelow(Scaled):
    def wrong(self, x):
        return torch.arange(x.shape[1])[:, None, None] >= 4


class Wrong(Scaled):
    def wrong(self, x):
        return 1


class SeesWhatIsLarge(nn.Module):
    """Every token is alone, unless another is larger than it would be by chance."""

    def __init__(self, part, dtype):
        super().__init__()
        self.part, self.dtype = part, dtype

    def forward(self, x):
        large = (x.detach().abs().amax((1, 2, 3), keepdim=True) > 64).to(x.dtype)
        return x * (1 + self.part * large * (x.dtype == self.dtype))


class SeesTheTokenAbove(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return x + self.part * x.roll(1, 1)

    def region(self, h, w, query):
        alone = torch.zeros(h, w, dtype=torch.bool)
        alone[query] = True
        return alone


LIMITS = [  # a mistake of relative size; what must see 3 of its limit, and may not see a third
    ("batch", 1e-10, lambda part: (WrongInBatches, part)),
    ("layouts", 1e-5, lambda part: (WrongInStrides, part)),
    ("translation", 1e-6, lambda part: (WrongBelow, part)),
    ("equals the registered mixer", 1e-10, lambda part: (Wrong, part)),
    ("locality", 1e-12, SeesTheTokenAbove),
    ("large numbers", 1e-5, lambda part: SeesWhatIsLarge(part, torch.float32)),
    ("large numbers", 2e-3, lambda part: SeesWhatIsLarge(part, torch.float16)),
]


@pytest.mark.parametrize(("name", "limit", "make"), LIMITS)
def test_a_limit_is_where_it_is_said_to_be(name, limit, make):
    """Ten times as loose or as tight, it would be seen here."""
    for times, verdict in ((3, "FAIL"), (1 / 3, "pass")):
        made = make(times * limit)
        if isinstance(made, tuple):
            planted, part = made
            module = planted(attention.parse("window:size=4"), dim=16, heads=2)
            module.part = part
        else:
            module = made
        found = verdicts(subjects.mixer(module, 16), [name])[name]
        assert found.verdict == verdict, (times, found)


# -- modules without a region ------------------------------------------------------------------


class Neighbours(nn.Module):
    """A depthwise convolution; ring: on a map closed to a ring."""

    def __init__(self, dim, ring=False):
        super().__init__()
        mode = "circular" if ring else "zeros"
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, padding_mode=mode)

    def forward(self, x):
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def test_a_region_that_is_not_stated_is_measured():
    for ring, said in ((False, "none of 240 queries is reached"), (True, "ACROSS OPPOSITE")):
        found = verdicts(subjects.mixer(Neighbours(8, ring), 8), ["locality"])["locality"]
        assert found.verdict == "measured" and said in found.detail
        assert "3 rows and 3 columns" in found.detail
        assert found.picture.splitlines()[0][:2] == "Q#"


@pytest.mark.parametrize(
    ("size", "groups"), [(5, (5, 5)), ((2, 3), (2, 3)), ("7x7", None), (None, None), ((1,), None)]
)
def test_the_size_of_a_plugin_may_be_anything(size, groups):
    module = nn.Linear(8, 8)

    @dataclass(frozen=True, kw_only=True)
    class Config(attention.MixerConfig):
        size: object = None

    module.config = Config(size=size)
    made = subjects.mixer(module, 8)
    assert made.groups == groups and made.sizes[0] == (1, 1)
    assert failures(made, QUICK) == {}


def test_wrapping_is_told_from_interlacing():
    def line(text):
        return torch.tensor([[c == "#" for c in text]])

    assert influence.wraps(line("##....#")) and not influence.wraps(line("..###.."))
    assert not influence.wraps(line("#..#..#")) and not influence.wraps(line("#######"))


def test_against_names_the_twin():
    """A module of any kind is held to the region of a registered mixer, and to its values if it
    has its parameters."""
    config = attention.parse("window:size=4")
    made = subjects.mixer(Neighbours(8), 8, 2, against=config)
    found = verdicts(made, ["locality", "equals the registered mixer"])
    assert found["locality"].verdict == "FAIL" and "!" in found["locality"].picture
    assert "not the parameters" in found["equals the registered mixer"].detail

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            inner = attention.create(config, dim=8, heads=2)
            self.qkv, self.branch, self.proj = inner.qkv, inner.branch, inner.proj
            self.groups = inner.groups

        def forward(self, x):
            groups = self.groups(*x.shape[1:3])
            y = self.branch(*self.qkv(groups.partition(x)).chunk(3, -1), groups)
            return groups.reverse(self.proj(y))

    found = verdicts(subjects.mixer(Wrapped(), 8, 2, against=config))
    assert found["equals the registered mixer"].verdict == "pass"


# -- networks ------------------------------------------------------------------------------------


def test_our_networks_are_judged_by_their_mixers():
    ((title, made),) = subjects.find("swin_t/3=pale:size=3", dim=64, heads=4)
    found = verdicts(made, [p.name for p in properties.NETWORK if p.name not in SLOW])
    assert {result.verdict for result in found.values()} == {"pass"}
    assert "8 mixers" in found["locality"].detail and "narrowed to widths 24 48" in title
    mixer = made.module.stages[0].blocks[0].mixer
    mixer.region = lambda h, w, query: torch.ones(h, w, dtype=torch.bool)
    made._copies.clear()
    found = verdicts(made, ["locality"])["locality"]
    assert found.verdict == "FAIL" and found.case.startswith("stages.0.blocks.0.mixer on ")


def timm_swin(size, window):
    timm = pytest.importorskip("timm")
    return timm.models.swin_transformer.SwinTransformer(
        img_size=size, window_size=window, embed_dim=8, depths=(2, 2), num_heads=(2, 2),
        num_classes=3,
    )  # fmt: skip


def torchvision_swin():
    models = pytest.importorskip("torchvision").models
    return models.swin_transformer.SwinTransformer(
        [4, 4], embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=[7, 7], num_classes=3
    )


@pytest.mark.parametrize("make", [lambda: timm_swin(64, 7), torchvision_swin])
def test_the_networks_of_others_are_measured(make):
    """What their blocks reach on maps of 16x16 that windows of 7 do not divide is told, and is
    nobody's failure."""
    made = subjects.network(make(), (64, 64))
    found = verdicts(made, [p.name for p in properties.NETWORK if p.name not in SLOW])
    assert not [name for name, result in found.items() if result.verdict == "FAIL"], found
    locality = found["locality"]
    assert locality.verdict == "measured"
    lines = locality.detail.splitlines()
    assert len(lines) == 4 and sum("on 16x16: " in line for line in lines) == 2
    assert all("opposite edges" in line.lower() for line in lines)


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """my_mixers.py, on the path: mixers right and wrong."""
    (tmp_path / "my_mixers.py").write_text(
        "import torch\nfrom torch import nn\nfrom attention.mixers.window import WindowMixer\n"
        "class Good(WindowMixer):\n    pass\n"
        "class Leaky(WindowMixer):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) + 1e-6 * x.mean((1, 2), keepdim=True)\n"
        "class Plain(nn.Module):\n"
        "    def __init__(self, dim):\n        super().__init__()\n"
        "        self.proj = nn.Linear(dim, dim)\n"
        "    def forward(self, x):\n        return self.proj(x)\n"
        "def two(channels, parts):\n    return Plain(channels)\n"
        "def network():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_mixers"
    sys.modules.pop("my_mixers", None)


def command(capsys, *argv):
    code = check.main([*argv, "--dim", "16", "--heads", "2"])
    return code, capsys.readouterr().out


def test_a_module_of_the_users(module, capsys):
    only = ["--only", "any size", "locality", "batch"]
    code, out = command(capsys, "my_mixers:Good:size=3", *only)
    assert code == 0 and "none of 6 fails" in out and "odd block" in out
    code, out = command(capsys, "my_mixers:Leaky:size=3", "--index", "1", *only)
    assert code == 1 and "1 of 3 fail" in out
    assert "FAIL     locality" in out and "what must hold:" in out and "!" in out
    for what in ("my_mixers:Plain", "my_mixers:two"):
        code, out = command(capsys, what, *only)
        assert code == 0 and "1 of 240 tokens reach a query" in out
    code, out = command(capsys, "my_mixers:network", "--img-size", "16", "--only", "batch")
    assert code == 0 and "at 16x16" in out


def test_json_parses(module, capsys):
    code, out = command(capsys, "my_mixers:Leaky:size=3", "--json", "--index", "0", "--only",
                        "locality", "batch")  # fmt: skip
    found = json.loads(out)
    assert code == 1 and found["failed"] == 1
    assert [row["verdict"] for row in found["rows"]] == ["FAIL", "pass"]
    assert found["rows"][0]["case"] == "1x5" and "!" in found["rows"][0]["picture"]


@pytest.fixture
def registering(monkeypatch):
    """What a test registers is forgotten after it; built-in mixers register once a process."""
    for name in BUILT_IN:
        registry.class_of(registry.config_class(name))
    for store in ("_configs", "_classes", "_sources"):
        monkeypatch.setattr(registry, store, dict(getattr(registry, store)))


class SeesAllInOddBlocks(attention.TokenMixer):
    def forward(self, x):
        return x + self.index % 2 * x.mean((1, 2), keepdim=True)

    def region(self, h, w, query):
        alone = torch.zeros(h, w, dtype=torch.bool)
        alone[query] = True
        return alone


@pytest.mark.parametrize(
    ("stated", "judged"),
    [({}, 2), ({"alternates": True}, 2), ({"shift": False}, 2), ({"alternates": False}, 1)],
)
def test_both_blocks_of_a_registered_mixer_are_judged(registering, capsys, stated, judged):
    """Unless its config says that there is only one."""
    config = dataclass(frozen=True, kw_only=True)(type("Config", (attention.MixerConfig,), stated))
    attention.register("odd_one", config=config)(SeesAllInOddBlocks)
    code, out = command(capsys, "odd_one", "--only", "locality", "batch")
    both = judged == 2
    assert code == both and ("odd block" in out) == both
    assert ("1 of 4 fail" if both else "none of 2 fails") in out
    assert bool(catalogue.alternates(config())) is bool(stated.get("alternates"))


@pytest.mark.parametrize(
    ("what", "blocks"),
    [("window:size=3", 2), ("window:size=3,shift=false", 1), ("axial", 1), ("shuffle:size=3", 2)],
)
def test_built_in_mixers_say_how_many_blocks_they_have(what, blocks):
    assert len(list(subjects.find(what, dim=8, heads=2))) == blocks


def test_the_pool_of_the_readme_needs_its_permute(registering, tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).resolve().parent.parent / "docs" / "own-mixer.md").read_text()
    right = readme.partition("Save this as `my_mixers.py`:\n\n```python\n")[2].partition("```")[0]
    wrong = right.replace("x.permute(0, 3, 1, 2)", "x").replace("y.permute(0, 2, 3, 1)", "y")
    assert wrong.count("permute") == 0 < right.count("permute")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text, code in (("right", right, 0), ("wrong", wrong, 1)):
        (tmp_path / f"{name}_pools.py").write_text(text.replace('"pool"', f'"{name}"'))
        for what in (name, f"{name}_pools:Pool"):
            plugin = ["--plugin", f"{name}_pools"]
            assert command(capsys, what, *plugin, "--only", "any size", "axes")[0] == code
        sys.modules.pop(f"{name}_pools")


@pytest.mark.parametrize(
    "raised",
    ["ValueError('a\\n\\x1b[31mb')", "SystemExit(3)", "SystemExit()", "Odd('x')", "TypeError('x')",
     "NotImplementedError", "GeneratorExit", "AttributeError('config')"],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_in_one_line(raised, registering, tmp_path, monkeypatch):
    """Whatever somebody's code raises as it is imported or called, as a class, a function, a
    network or a mixer; an interrupt is nobody's mistake."""
    monkeypatch.syspath_prepend(str(tmp_path))
    evil = tmp_path / "evil_mod.py"
    text = (
        "from dataclasses import dataclass\nfrom torch import nn\n"
        "from attention import MixerConfig, TokenMixer, register\n"
        "class Odd(BaseException):\n    pass\n"
        f"def fail(*args, **named):\n    raise {raised}\n"
        "class Bad(nn.Module):\n    def __init__(self, dim, heads):\n        fail()\n"
        "def bare():\n    fail()\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Config(MixerConfig):\n    check = fail\n"
        "@register('evil', config=Config)\nclass Mixer(TokenMixer):\n    pass\n"
    )
    evil.write_text(text)
    for what in ("evil_mod:Bad", "evil_mod:bare", "evil"):
        with pytest.raises(attention.SpecError) as refused:
            check.main([what, "--plugin", "evil_mod", "--img-size", "16"])
        said = str(refused.value)
        assert said.isprintable() and said.startswith(what) and "Error" not in said[:6]
    sys.modules.pop("evil_mod")
    evil.write_text(text[: text.index("class Bad")] + "fail()\n")
    for argv in (["evil_mod:Bad"], ["window", "--plugin", "evil_mod"]):
        with pytest.raises(attention.SpecError, match="evil_mod"):
            check.main(argv)
    evil.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        check.main(["evil_mod:Bad"])


def test_what_a_plugin_calls_itself_is_plain_text():
    """In every format: control characters and reversed text are cleaned before any is chosen."""
    prop = checks.Property("p", "", lambda c: None)
    odd = "a\x1b[31m\x7f\u202eb\x85c\r"
    result = checks.Result("FAIL", f"one {odd}\ntwo {odd}", odd, f"#.\n{odd}")
    (row,) = check.rows(odd, [(prop, result)])
    assert all(line.isprintable() for text in row.values() for line in text.split("\n"))
    assert row["detail"].count("\n") == row["picture"].count("\n") == 1
    assert "one a" in check.listing([row]) and "two a" in check.listing([row])


BAD = {
    "windw": "did you mean 'window'", "window:siz=7": "did you mean 'size'",
    "swin_tt": "did you mean 'swin_t'",
    "my_mixers:Godo": "did you mean 'Good'", "no_such_module:X": "no_such_module",
    "my_mixers:Good:siz=7": "did you mean 'size'", "my_mixers:Plain:size=7": "TokenMixer",
    "window:size=7,position=lepe": "shift=false", "timm:swin_tinny": "timm has no model",
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_refused(module, what):
    with pytest.raises(attention.SpecError, match=BAD[what]):
        check.main([what])


def test_an_unknown_property_is_refused():
    with pytest.raises(attention.SpecError, match="did you mean 'locality'"):
        check.main(["window", "--only", "localty"])


def test_what_raises_fails_and_says_so():
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] % 2:
                raise ValueError("odd heights\nare beyond me")
            return x

    found = verdicts(subjects.mixer(Raises(), 8), QUICK)
    assert found["any size"] == checks.Result(
        "FAIL", "ValueError: odd heights are beyond me", "1x1"
    )
    assert "FAIL" not in {found[name].verdict for name in QUICK if name != "any size"}


def test_a_region_that_raises_fails_as_locality():
    def region(h, w, query):
        raise IndexError("no such token")

    module = nn.Linear(8, 8)
    module.region = region
    found = failures(subjects.mixer(module, 8), ["any size", "locality"])
    assert list(found) == ["locality"] and "IndexError: no such token" in found["locality"].detail


def test_an_error_without_text_has_its_name():
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    assert checks.error_text(Mute()) == "Mute: (it has no text)"


def test_an_exit_fails_and_says_so():
    class Exits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise SystemExit(f"{x.shape[1]} rows")

    found = verdicts(subjects.mixer(Exits(), 8), QUICK)
    assert found["any size"] == checks.Result("FAIL", "SystemExit: 1 rows", "1x1")
    assert {found[name].verdict for name in QUICK if name != "any size"} == {"skipped"}
