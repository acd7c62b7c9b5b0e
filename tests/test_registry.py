"""Names, options and their errors: what is written is what is built, or one line says why not."""

import dataclasses
import random
import subprocess
import sys
from dataclasses import dataclass

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BUILT_IN, Case, draw_config, randomise

import attention
from attention.configs import registry
from transom import fields


@pytest.fixture
def scratch(monkeypatch):
    """A registry that forgets what a test adds, and nothing else."""
    for name in BUILT_IN:
        registry.class_of(registry.config_class(name))  # a class registers once a process
    for table in ("_configs", "_classes", "_sources"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


def refused(act, *args, **options):
    """The message of the SpecError, which is one line and a ValueError."""
    with pytest.raises(attention.SpecError) as caught:
        act(*args, **options)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message and "\n" not in message and len(message) < 400
    return message


# -- the built-in names ----------------------------------------------------------------------


def test_every_built_in_mixer_has_a_definition_and_a_source():
    assert attention.names() == tuple(sorted(BUILT_IN))
    for name in attention.names():
        assert registry.source_of(name)
        mixer = attention.create(name, dim=16, heads=2)
        assert isinstance(mixer, attention.TokenMixer)
        assert naive.pairs(mixer, 4, 4).any()


@pytest.mark.parametrize("name", BUILT_IN)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**40))
def test_the_text_of_a_config_reads_back(name, seed):
    """E1: parse(str(config)) == config, and equal configs have one hash and one text."""
    config = draw_config(random.Random(f"{name} {seed}"), name)
    again = attention.parse(str(config))
    assert again == config and hash(again) == hash(config) and str(again) == str(config)
    assert type(again) is type(config)
    by_value = attention.make_config(name, **dataclasses.asdict(config))
    by_text = attention.make_config(name, **{
        key: fields.write(value) for key, value in dataclasses.asdict(config).items()
    })  # fmt: skip
    assert by_value == by_text == config


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_read_back_exactly(value):
    config = attention.make_config("full", qk_scale=value)
    assert attention.parse(str(config)).qk_scale == value


def test_equal_requests_are_equal():
    window = attention.parse("window")
    assert str(window) == "window"
    for text in ("window:size=7", "window:size=7x7", "window:shift=True", "window:position=bias"):
        assert attention.parse(text) == window and str(attention.parse(text)) == "window"
    for size in (7, "7", "7x7", (7, 7), [7, 7], [7]):
        assert attention.make_config("window", size=size) == window
    assert attention.parse("window:size=7x4").size == (7, 4), "height first"
    assert str(attention.make_config("window", size=(4, 7))) == "window:size=4x7"


def test_cosine_is_a_row_of_window():
    """`window:scores=cosine,position=log_cpb` is `cosine`: the same weights, the same function."""
    for index in (0, 1):
        row = Case("window:scores=cosine,position=log_cpb,size=4", 8, 2, index, 7, 9, 3)
        cosine = Case("cosine:size=4", 8, 2, index, 7, 9, 3)
        a, b = row.build(), cosine.build()
        assert {k: v.shape for k, v in a.state_dict().items()} == {
            k: v.shape for k, v in b.state_dict().items()
        }
        b.load_state_dict(a.state_dict())
        with torch.no_grad():
            assert torch.equal(a(row.input()), b(row.input()))
        assert a.cost(7, 9) == b.cost(7, 9)


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("typo, meant", [
    ("windows", "window"), ("cosin", "cosine"), ("axail", "axial"), ("crosss", "cross"),
    ("pail", "pale"), ("shufle", "shuffle"), ("token-mlp", "token_mlp"), ("ful", "full"),
    ("mesenger", "messenger"),
])  # fmt: skip
def test_an_unknown_name_gets_the_nearest_one(typo, meant):
    for act in (attention.parse, attention.make_config):
        message = refused(act, typo)
        assert repr(typo) in message and f"did you mean {meant!r}?" in message
    assert all(name in message for name in attention.names())


@pytest.mark.parametrize("text, meant", [
    ("window:sise=7", "size"), ("window:shft=false", "shift"), ("pale:score=cosine", "scores"),
    ("full:postion=none", "position"), ("cosine:mask_padd=true", "mask_padding"),
    ("axial:oder=parallel", "order"), ("messenger:regions=2", "region"),
    ("token_mlp:hiden=3", "hidden"),
])  # fmt: skip
def test_an_unknown_option_gets_the_nearest_one(text, meant):
    message = refused(attention.parse, text)
    assert f"did you mean {meant!r}?" in message
    assert text.partition(":")[2].partition("=")[0] in message


@pytest.mark.parametrize("name, option", [
    ("axial", "size"), ("full", "size"), ("full", "mask_padding"), ("axial", "mask_padding"),
    ("shuffle", "shift"), ("shuffle", "mask_value"), ("pale", "shift"), ("cross", "mask_value"),
    ("token_mlp", "scores"), ("token_mlp", "qkv_bias"), ("window", "order"),
    ("messenger", "shift"), ("messenger", "mask_padding"), ("window", "region"),
])  # fmt: skip
def test_an_option_that_a_mixer_does_not_use_does_not_exist(name, option):
    message = refused(attention.make_config, name, **{option: 7})
    assert name in message and repr(option) in message


@pytest.mark.parametrize("text", [
    "window:", "window:size", "window:size=", "window:=7", "window:size=7,", "window:size=7,,",
    "window:,size=7", "window:size=7,size=7", "window size=7", ":size=7", "", " window", "window ",
    "window:size=7;shift=false", "window:size=7=7", "window:shift=yes", "window:shift=1",
    "window:scores=dott", "window:position=", "window:qk_scale=fast", "window:qk_scale=nan",
    "window:qk_scale=inf", "window:qk_scale=1e999", "window:mask_value=0", "window:mask_value=100",
    "window:mask_value=-inf", "window:pretrained_window=0",
])  # fmt: skip
def test_what_is_not_the_notation_is_refused(text):
    refused(attention.parse, text)


@pytest.mark.parametrize("size", [
    "0", "-1", "true", "7x", "x7", "7x7x7", "7.0", "7 ", "", "1e3", "65537", "9" * 5000, "0x7",
    "7x0", "7x-1", "7X7", "none", "\u0667", "\u00b2",
])  # fmt: skip
def test_a_size_that_is_none_is_refused_as_text(size):
    """Digits that Python would read as a number and that no reader expects are refused, or equal
    to the number they show; a huge number is answered without being built."""
    try:
        config = attention.make_config("window", size=size)
    except attention.SpecError as error:
        assert "\n" not in str(error) and "size=" in str(error) and len(str(error)) < 400
    else:
        assert size == "\u0667" and config.size == (7, 7)


@pytest.mark.parametrize("size", [
    0, -1, True, False, 7.0, None, (), (7, 7, 7), (7, 0), (True, 7), (7, None), [7, "x"], {}, {7},
    10**30, float("nan"), b"7", object(),
])  # fmt: skip
def test_a_size_that_is_none_is_refused_as_a_value(size):
    assert "size=" in refused(attention.make_config, "window", size=size)


@pytest.mark.parametrize("name", ["axial", "cross", "pale", "full"])
def test_a_table_over_a_whole_axis_is_refused(name):
    message = refused(attention.parse, f"{name}:position=bias")
    assert "position=log_cpb" in message and name in message


@pytest.mark.parametrize("text, words", [
    ("window:position=lepe", ["shift=false", "lepe"]),
    ("cosine:position=lepe", ["shift=false", "lepe"]),
    ("window:scores=cosine,qk_scale=0.5", ["qk_scale", "cosine"]),
    ("cosine:qk_scale=0.5", ["qk_scale", "cosine"]),
    ("pale:scores=cosine,qk_scale=1", ["qk_scale", "cosine"]),
    ("window:pretrained_window=7", ["pretrained_window", "log_cpb"]),
    ("cosine:position=none,pretrained_window=7", ["pretrained_window", "log_cpb"]),
    ("full:position=lepe,pretrained_window=7", ["pretrained_window", "log_cpb"]),
])  # fmt: skip
def test_a_combination_without_a_meaning_is_refused(text, words):
    message = refused(attention.parse, text)
    assert all(word in message for word in words)


@pytest.mark.parametrize("text", ["cross", "pale", "axial"])
def test_two_branches_need_even_heads(text):
    for heads in (1, 3):
        message = refused(attention.create, text, dim=12, heads=heads)
        assert str(heads) in message and "even" in message
    assert ("order=sequential" in message) == (text == "axial")
    attention.create("axial:order=sequential", dim=12, heads=3)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("dim, heads", [
    (10, 4), (2, 4), (0, 2), (8, 0), (-8, 2), (8, -2), (8.0, 2), (8, True), (None, 2), (2**40, 2),
])  # fmt: skip
def test_a_width_that_no_mixer_has_is_refused(name, dim, heads):
    message = refused(attention.create, name, dim=dim, heads=heads)
    assert str(dim) in message or str(heads) in message


@settings(max_examples=300)
@given(
    st.text(max_size=30)
    | st.text(alphabet="windowcosie:=,x7-0true.", max_size=30)
    | st.builds(
        lambda text, at, by: text[: at % len(text)] + by + text[at % len(text) + 1 :],
        st.sampled_from(["window:size=7x4,shift=false", "pale:scores=cosine", "full:qk_scale=2"]),
        st.integers(0, 99),
        st.text(max_size=2),
    )
)
def test_any_text_is_read_or_refused(text):
    """E2: nothing but SpecError, and what is accepted reads back as itself."""
    try:
        config = attention.parse(text)
    except attention.SpecError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert attention.parse(str(config)) == config


# -- plug-ins --------------------------------------------------------------------------------


def test_a_plug_in_is_a_mixer_like_any_other(scratch):
    """A user's plain dataclass and class: built, written, compared and refused like a built-in."""

    @dataclass(frozen=True, kw_only=True)
    class MeanConfig(attention.MixerConfig):
        size: tuple = (3, 3)
        keep: bool = False
        gain: float = 1.0
        mode: str = attention.option("row", fields.choice("row", "all"), "what is averaged")

    @attention.register("mean", config=MeanConfig)
    class MeanMixer(attention.TokenMixer):
        def forward(self, x):
            over = (1, 2) if self.config.mode == "all" else 2
            return x.mean(over, keepdim=True).expand_as(x) * self.config.gain

    assert "mean" in attention.names()
    mixer = attention.create("mean:mode=all,gain=2,size=5x3,keep=true", dim=4, heads=2, index=3)
    assert isinstance(mixer, MeanMixer) and mixer.index == 3
    assert mixer.config == MeanConfig(mode="all", gain=2.0, size="5x3", keep=True)
    assert attention.parse(str(mixer.config)) == mixer.config
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(mixer(x), 2 * x.mean((1, 2), keepdim=True).expand_as(x))
    for missing in (lambda: mixer.cost(3, 5), lambda: mixer.region(3, 5, (0, 0))):
        with pytest.raises(NotImplementedError):
            missing()
    assert "did you mean 'mean'?" in refused(attention.parse, "maen")
    assert "did you mean 'gain'?" in refused(attention.parse, "mean:gian=2")
    assert "keep=" in refused(attention.parse, "mean:keep=7")
    assert "gain=" in refused(attention.parse, "mean:gain=much")


def test_a_plug_in_may_extend_a_built_in(scratch):
    """A subclass of a config and of a mixer: one line each, and the definition still holds."""
    from attention.configs.windows import WindowConfig
    from attention.mixers.window import WindowMixer

    @dataclass(frozen=True, kw_only=True)
    class BigConfig(WindowConfig):
        size: tuple[int, int] = attention.option((14, 14), fields.read_size, "side")

    @attention.register("big", config=BigConfig)
    class BigMixer(WindowMixer):
        pass

    mixer = randomise(attention.create("big:size=4", dim=8, heads=2, index=1), 3).double().eval()
    same = randomise(attention.create("window:size=4", dim=8, heads=2, index=1), 3).double().eval()
    x = torch.randn(1, 6, 9, 8).double()
    assert isinstance(mixer, BigMixer)
    assert torch.equal(mixer(x), same(x))
    assert attention.parse("big").size == (14, 14) and str(attention.parse("big")) == "big"
    assert attention.parse("window").size == (7, 7)


def test_a_name_or_a_config_is_registered_once(scratch):
    from attention.configs.lines import FullConfig

    @dataclass(frozen=True, kw_only=True)
    class Mine(attention.MixerConfig):
        pass

    class Mixer(attention.TokenMixer):
        pass

    for name in BUILT_IN:
        with pytest.raises(ValueError, match=f"{name!r} is registered already"):
            attention.register(name, config=Mine)(Mixer)
    attention.create("full", dim=2, heads=1)  # its module is imported: the class is known
    with pytest.raises(ValueError, match="belongs to 'full'"):
        attention.register("other", config=FullConfig)(Mixer)
    attention.register("mine", config=Mine)(Mixer)
    with pytest.raises(ValueError, match="registered already"):
        attention.register("mine", config=Mine)(Mixer)
    for name in ("my mixer", "a:b", "a=b", "a,b", "", "7up"):
        with pytest.raises(ValueError, match="cannot be a mixer's name"):
            attention.register(name, config=Mine)(Mixer)


def test_a_plug_in_does_not_take_the_place_of_a_built_in():
    """Registered before the built-in module is imported, the name and the config are still taken.

    In a process of its own: here every module is imported already.
    """
    code = """
import attention, torch
from dataclasses import dataclass
from attention.configs.windows import WindowConfig
class Mixer(attention.TokenMixer): pass
@dataclass(frozen=True, kw_only=True)
class Mine(attention.MixerConfig): pass
for name, config in [("window", Mine), ("mine", WindowConfig), ("window", WindowConfig)]:
    try:
        attention.register(name, config=config)(Mixer)
    except ValueError as error:
        print("refused", name, config.__name__)
    else:
        print("TAKEN", name, config.__name__)
print(type(attention.create("window", dim=2, heads=1)).__name__)
"""
    lines = run(code).splitlines()
    assert lines[:2] == ["refused window Mine", "refused mine WindowConfig"]
    assert lines[2:] == ["refused window WindowConfig", "WindowMixer"]


# -- imports ---------------------------------------------------------------------------------


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
        cwd=registry.__file__.rpartition("attention")[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_and_errors_do_not_import_torch():
    """A misspelt name is answered at once: torch comes with the first mixer that is built."""
    code = """
import sys, attention
attention.names(), attention.parse("pale:size=7x14,scores=cosine")
for text in ("windw", "window:sise=7", "pale:position=bias"):
    try: attention.parse(text)
    except attention.SpecError: pass
    else: raise SystemExit(text)
print("torch" in sys.modules, "einops" in sys.modules)
attention.TokenMixer
print("torch" in sys.modules)
"""
    assert run(code).split() == ["False", "False", "True"]


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Widnow'"):
        attention.Widnow  # noqa: B018


def test_windows_at_an_interval_shrink_as_the_authors_have_it():
    """CrossFormer: one plain window on a map that is no larger; Shuffle's code has no such rule."""
    long = attention.parse("shuffle:size=7,interval=4")
    assert str(long.shrink(7, 9, "shrink_both")) == "shuffle:interval=1"
    assert str(long.shrink(5, 9, "shrink_both")) == "shuffle:size=5,interval=1"
    assert long.shrink(8, 9, "shrink_both") == long == long.shrink(5, 5, "shrink_axis")
    plain = attention.parse("shuffle:size=7")
    assert plain.shrink(5, 5, "shrink_both") == plain
