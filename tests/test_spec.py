"""Specs are data: they go to plain data and back, and what is wrong is answered in one line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from specs import draw_spec

import backbones
from backbones.specs import variants
from backbones.specs.spec import BackboneSpec, SpecError
from backbones.specs.stage import StageSpec
from transom.fields import write

ROOT = Path(__file__).resolve().parent.parent

seeds = st.integers(0, 2**32)


# -- there and back --------------------------------------------------------------------------


def back(spec: BackboneSpec) -> BackboneSpec:
    """Through plain data, and through text that any program reads."""
    data = spec.to_dict()
    through_json = backbones.from_dict(json.loads(json.dumps(data)))
    assert through_json == backbones.from_dict(data)
    return through_json


@pytest.mark.parametrize("name", variants.names())
def test_variants_go_there_and_back(name):
    spec = variants.get(name).spec
    assert back(spec) == spec == backbones.parse(name)
    assert hash(back(spec)) == hash(spec)


@settings(max_examples=400)
@given(seed=seeds)
def test_specs_go_there_and_back(seed):
    """to_dict and from_dict over everything that can be written down."""
    spec = draw_spec(random.Random(seed))
    assert back(spec) == spec and hash(back(spec)) == hash(spec)


@settings(max_examples=400)
@given(seed=seeds)
def test_every_field_can_be_an_edit(seed):
    """The notation of every field of another spec turns a variant into that spec."""
    rng = random.Random(seed)
    spec = draw_spec(rng)
    while len(spec.stages) != 4:
        spec = draw_spec(rng)
    edits = []
    for number, stage in enumerate(spec.stages, start=1):
        edits.append(f"{number}={stage.pattern()}")
        for field in ("dim", "depth", "heads", "mlp_ratio", "tokens"):
            edits.append(f"{number}.{field}={getattr(stage, field)}")
    for field in dataclasses.fields(BackboneSpec):
        if field.name not in ("name", "stages"):
            value = getattr(spec, field.name)
            edits.append(f"{field.name}={write(value)}")
    rng.shuffle(edits)
    text = "/".join(["cswin_t", *edits])
    assert backbones.parse(text) == dataclasses.replace(spec, name=text)


def test_toml(tmp_path):
    """A file is a table with one [[stages]] each; edits after its path work as after a name."""
    path = tmp_path / "own net.toml"
    path.write_text(
        """
        stem = "overlap"
        img_size = [64, 128]
        [[stages]]
        dim = 16
        depth = 3
        heads = 2
        mixers = ["window:size=4", "axial"]
        [[stages]]
        dim = 32
        heads = 4
        mixers = "full:position=lepe"
        mlp_ratio = 2
        """
    )
    spec = backbones.parse(str(path))
    assert spec.name == "own net" and spec.img_size == (64, 128) and spec.stem == "overlap"
    assert [stage.pattern() for stage in spec.stages] == [
        "window:size=4+axial", "full:position=lepe",
    ]  # fmt: skip
    assert (spec.stages[1].depth, spec.stages[1].mlp_ratio) == (2, 2.0)
    edited = backbones.parse(f"{path}/2=cross:size=2/num_classes=5")
    assert edited.stages[1].pattern() == "cross:size=2" and edited.num_classes == 5
    assert edited.stages[0] == spec.stages[0]


@pytest.mark.parametrize(
    "text",
    [
        b"", b"stages = 3", b"stages = []", b"[[stages]]\ndim = 8\n", b"\xff\xfe", b"a = ",
        b"stages = " + b"[" * 5000, b"stages = [1, 2]", b"name = 3\nstages = []",
        b"[[stages]]\ndim = 1979-05-27\n", b"[[stages]]\nwhat = 1\n", b"stages = [[], []]",
        b"x = nan\n[[stages]]\n", b'name = "a\\nb"\nstages = []\n',
    ],
)  # fmt: skip
def test_bad_toml_is_one_line(tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    refused(str(path))


def test_missing_files_are_named(tmp_path):
    for name in ("nowhere.toml", "a\0b.toml", "\ud800.toml", "x" * 5000 + ".toml", ".toml"):
        refused(name)
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert "cannot be read" in refused(str(folder))
    assert "nowhere.toml" in refused("nowhere.toml")


# -- edits -----------------------------------------------------------------------------------


def test_edits_in_any_order():
    """An edit is judged with the others, not after those before it: 3 heads refuse axial,
    but not with 1.heads=4."""
    edits = ["1=axial", "1.heads=4", "1.dim=64", "norm=res_post", "3=pale:size=3x5"]
    with pytest.raises(SpecError):
        backbones.parse("swin_t/1=axial")
    specs = {
        dataclasses.replace(backbones.parse("/".join(["swin_t", *order])), name="")
        for order in itertools.permutations(edits)
    }
    (spec,) = specs
    assert spec.stages[0] == StageSpec(dim=64, depth=2, heads=4, mixers="axial")
    assert spec.norm == "res_post" and spec.stages[2].pattern() == "pale:size=3x5"
    assert spec.stages[1] == variants.get("swin_t").spec.stages[1]


def test_an_edit_keeps_what_it_does_not_name():
    spec = backbones.parse("swinv2_b_w12to16/3=pale:size=7")
    kept = variants.get("swinv2_b_w12to16").spec
    assert [s for i, s in enumerate(spec.stages) if i != 2] == [
        s for i, s in enumerate(kept.stages) if i != 2
    ]
    assert "mask_value=-100" in spec.stages[0].pattern()
    assert (spec.stages[2].dim, spec.stages[2].depth) == (512, 18)


def test_parse_takes_specs_and_dicts():
    spec = variants.get("swin_t").spec
    assert backbones.parse(spec) is spec
    assert backbones.parse(spec.to_dict()) == spec
    assert backbones.create(spec, num_classes=3, stages=spec.stages[:2]).head.out_features == 3


# -- errors ----------------------------------------------------------------------------------


def refused(what) -> str:
    """One line, short enough to read."""
    with pytest.raises(SpecError) as info:
        backbones.parse(what)
    message = str(info.value)
    assert message and message.isprintable(), message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("swim_t", ["'swim_t'", "did you mean 'swin_t'", "swin_b_384", " in all)"]),
        ("swin_t/3=pal:size=7", ["stage 3", "'pal'", "did you mean 'pale'", "token_mlp"]),
        ("swin_t/3=pale:sise=7", ["stage 3", "pale", "'sise'", "did you mean 'size'"]),
        ("swin_t/3=pale:size=0", ["stage 3", "size='0'", "7 or 7x14", "from 1"]),
        ("swin_t/3=pale:size=7x", ["stage 3", "'7x'", "7 or 7x14"]),
        ("swin_t/3=pale:size", ["stage 3", "'size'", "option=value"]),
        ("swin_t/3=window+pal", ["stage 3", "'pal'", "did you mean 'pale'"]),
        ("swin_t/5=pale", ["no stage 5", "1 to 4"]),
        ("swin_t/0=pale", ["no stage 0", "count from 1"]),
        ("swin_t/1.head=4", ["stage 1", "'head'", "did you mean 'heads'", "mlp_ratio"]),
        ("swin_t/1.heads=5", ["stage 1", "dim 96", "5 heads"]),
        ("swin_t/1.dim=-4", ["stage 1", "dim='-4'", "from 1 to 65536"]),
        ("swin_t/1.depth=1e3", ["stage 1", "depth='1e3'", "whole number"]),
        ("swin_t/1.depth=" + "9" * 5000, ["stage 1", "depth=", "whole number"]),
        ("swin_t/1.mlp_ratio=nan", ["stage 1", "mlp_ratio='nan'", "finite"]),
        ("swin_t/1=cross", ["stage 1", "cross", "even", "3"]),
        ("swin_t/1=full:position=bias", ["stage 1", "position=bias", "log_cpb"]),
        ("swin_t/1=window:position=lepe", ["stage 1", "lepe", "shift=false"]),
        ("swin_t/1=window:scores=cos", ["stage 1", "scores='cos'", "dot, cosine"]),
        ("swin_t/1=window:shift=no", ["stage 1", "shift='no'", "true or false"]),
        ("swin_t/1=window:size=7,size=8", ["stage 1", "'size'", "twice"]),
        ("swin_t/1.dim=64/1.dim=32", ["'1.dim=32'", "earlier"]),
        ("swin_t/1=window/1.mixers=full", ["'1.mixers=full'", "earlier"]),
        ("swin_t/norm=post", ["norm='post'", "pre, res_post", "did you mean 'res_post'"]),
        ("swin_t/nrom=pre", ["'nrom'", "did you mean 'norm'", "img_size"]),
        ("swin_t/stages=6", ["stages='6'", "from 1 to 5", "at column 8"]),
        ("swin_t/name=x", ["'name'"]),
        ("swin_t/pool=token", ["pool=token", "last stage", "pool=mean"]),
        ("swin_t/1.tokens=1", ["stage 1", "tokens=1", "of window", "full and sra"]),
        ("pvt_v2_b0/4.tokens=1", ["mlp=conv", "tokens", "mlp=gelu"]),
        ("msg_t/2=messenger:size=5", ["stage 2", "another size", "stage 1"]),
        ("msg_t/1=messenger:region=3", ["stage 1", "64 does not divide into 9"]),
        ("msg_t/1=messenger+messenger:region=2", ["stage 1", "one size and region"]),
        ("msg_t/1.tokens=2", ["stage 1", "tokens=0"]),
        ("swin_t/drop_path=1", ["drop_path='1'", "below 1"]),
        ("swin_t/num_classes=-1", ["num_classes='-1'", "0 or"]),
        ("swin_t/img_size=224x224x3", ["img_size='224x224x3'", "7x14"]),
        ("swin_t/", ["''", "1.heads=4"]),
        ("swin_t/pale", ["'pale'", "3=pale:size=7"]),
        ("", ["''", "swin_t"]),
        ("swin_t/1=window\n", ["window\\n", "did you mean 'window'"]),
        ("x" * 70000, ["70000", "65536"]),
        (None, ["None"]),
        ({}, ["stages"]),
        ({"stages": [{}, {}]}, ["stage 1", "mixers"]),
        ({"stages": [{"mixers": "full"}] * 6}, ["6 stages", "1 to 5"]),
        ({"stages": [{"mixers": "full"}, {"mixer": "full"}]}, ["stage 2", "'mixers'"]),
        ({"name": "n", "stages": [{"mixers": "full", "dim": True}] * 2}, ["n: stage 1", "True"]),
        ({"stages": [{"mixers": "full"}] * 2, "stem": ["patch"]}, ["stem=", "patch, overlap"]),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, list) else "",
)
def test_errors_name_the_place_the_value_and_the_way_out(text, parts):
    message = refused(text)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("name", [n for n in variants.names() if len(n) > 5])
def test_one_letter_off_is_answered(name):
    """Every one-edit typo of a variant's name is answered with a suggestion."""
    for at in range(len(name)):
        typo = name[:at] + name[at + 1 :]
        if typo not in variants.names() and typo not in variants.ALIASES:
            assert "did you mean" in refused(typo)


# -- anything at all -------------------------------------------------------------------------

WORDS = [
    "swin_t", "cswin_t", "window", "pale", "cross", "full", "size", "shift", "1", "3", "4", "7",
    "7x14", "dim", "heads", "depth", "norm", "stem", "true", "lepe", "-1", "1e9", "nan", "0", "=",
    "/", ":", ",", "+", ".", "", " ", "\n", "\0", "\u0667", "\u00b2", "x", ".toml", "..", "%s",
    "{}", "__class__", "mlp_ratio", "99999999999999999999", "\U0001f600",
]  # fmt: skip


def only_spec_errors(what) -> None:
    try:
        spec = backbones.parse(what)
    except SpecError as error:
        assert str(error).isprintable()
        return
    assert isinstance(spec, BackboneSpec)
    assert back(spec) == spec


@settings(max_examples=500)
@given(words=st.lists(st.sampled_from(WORDS), max_size=12))
@example(words=["/dev/null", ".toml"])
def test_token_soup(words):
    """Pieces of the notation in any order raise SpecError or are read, nothing else."""
    only_spec_errors("".join(words))
    only_spec_errors("swin_t/" + "".join(words))


@settings(max_examples=500)
@given(text=st.text(max_size=60))
def test_any_text(text):
    only_spec_errors(text)
    only_spec_errors("swin_t/" + text)
    only_spec_errors("swin_t/1=window:" + text)
    only_spec_errors("swin_t/1=" + text)


VALID = "swin_t/1=window:size=4+axial/1.heads=4/3=pale:size=3x5/norm=res_post/img_size=64x128"


@settings(max_examples=500)
@given(seed=seeds)
def test_mutated_notation(seed):
    """A right text with a few characters changed, dropped or doubled."""
    rng = random.Random(seed)
    text = list(VALID)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text))
        text[at] = rng.choice(["", text[at] * 2, chr(rng.randrange(1, 0x250)), rng.choice(WORDS)])
    only_spec_errors("".join(text))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = [field.name for field in dataclasses.fields(BackboneSpec)]
STAGE_FIELDS = [field.name for field in dataclasses.fields(StageSpec)]


@settings(max_examples=400)
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), plain, max_size=3),
    stage=st.dictionaries(st.sampled_from(STAGE_FIELDS), plain, max_size=2),
    keep=st.booleans(),
)
def test_any_data(fields, stage, keep):
    """Dicts of any plain data in any field raise SpecError or are read, nothing else."""
    good = {"mixers": ["full"], "heads": 2}
    only_spec_errors({**fields, "stages": [{**good, **stage}, good]})
    only_spec_errors(fields)
    only_spec_errors({"stages": [stage, good], **(fields if keep else {})})


@pytest.mark.slow
@settings(max_examples=10_000)
@given(seed=seeds)
def test_ten_thousand_mutations(seed):
    test_mutated_notation.hypothesis.inner_test(seed)


def test_long_input_is_read_or_refused():
    """As long as it may be: repeated edits, patterns, options and digits."""
    for text in (
        "swin_t" + "/1.dim=8" * 8000, "swin_t/1=" + "+".join(["full"] * 8000),
        "swin_t/1=window:" + ",".join(["size=7"] * 8000), "swin_t/1.depth=" + "9" * 60000,
        "swin_t/" + "/" * 60000, "a" * 65536, "swin_t/1=" + "a" * 65000,
        "swin_t/" + "a" * 60000 + "=1", "swin_t/1=window:" + "b" * 60000 + "=1",
    ):  # fmt: skip
        only_spec_errors(text)


# -- plain Python ----------------------------------------------------------------------------


def test_reading_needs_no_torch():
    """Names, edits and errors are answered before torch is imported."""
    program = (
        "import sys, backbones\n"
        "backbones.parse('swin_t/3=pale:size=7').resolve().to_dict()\n"
        "try:\n    backbones.parse('swim_t')\nexcept ValueError:\n    pass\n"
        "assert 'torch' not in sys.modules and 'einops' not in sys.modules\n"
        "backbones.create\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
