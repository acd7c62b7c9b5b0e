"""Every named variant against the published architectures and their exact numbers."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from strategies import BUILT_IN

import backbones
from backbones.families import ours
from backbones.specs import variants
from backbones.specs.spec import SpecError
from backbones.specs.stage import read_pattern
from backbones.specs.variants import ALIASES, Variant
from transom.errors import nearest

with open(Path(__file__).parent / "golden" / "architectures.csv", newline="") as file:
    ROWS = list(csv.DictReader(file))
MIXERS = {
    "swin": "window", "swinv2": "cosine", "swinmlp": "token_mlp", "cswin": "cross", "pale": "pale",
    "shuffletransformer": "shuffle", "maxvit": "shuffle", "crossformer": "shuffle",
}  # fmt: skip

QUICK = ("deit3_small_patch16_384", "mixer_s32_224")  # of one stage, counted in the fast tier too


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_row_equals_the_publication(row):
    """Numbers, sizes, training rate and official name, column by column."""
    variant = variants.get(row["name"])
    spec = variant.spec
    assert spec.name == row["name"]
    assert (variant.params, variant.macs) == (int(row["params"]), int(row["macs"]))
    assert spec.img_size == (int(row["img_size"]),) * 2
    dims = numbers(row["embed_dim"])  # of every stage, or of the first
    doubled = [dims[0] * 2**i for i in range(len(spec.stages))]
    assert [stage.dim for stage in spec.stages] == (dims if len(dims) > 1 else doubled)
    assert [stage.depth for stage in spec.stages] == numbers(row["depths"])
    assert [stage.heads for stage in spec.stages] == numbers(row["heads"])
    ratios = [float(word) for word in row["mlp_ratio"].split()]
    ratios *= len(spec.stages) // len(ratios)
    assert [stage.mlp_ratio for stage in spec.stages] == ratios
    assert (variant.official or "") == row["official"]
    assert variant.drop_path == (float(row["drop_path"]) if row["drop_path"] else None)
    assert spec.drop_path == 0
    assert variant.source


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_mixers_equal_the_publication(row):
    """One mixer a stage, of the family and the stated window, and pretrained window if any; or the
    stated pattern."""
    spec = variants.get(row["name"]).spec
    columns = zip(
        spec.stages, row["window"].split(), numbers(row["pretrained_window"]), strict=True
    )
    for stage, window, pretrained in columns:
        if ":" in window:  # a pattern, where it is no window
            assert stage.mixers == read_pattern(window)
            continue
        (mixer,) = stage.mixers
        name = str(mixer).partition(":")[0]
        if window == "full":
            assert str(mixer) == ("full:position=lepe" if row["family"] == "cswin" else "full")
            continue
        assert name == MIXERS[row["family"]]
        assert mixer.size == (int(window),) * 2
        given = getattr(mixer, "pretrained_window", None)
        assert given == ((pretrained,) * 2 if pretrained else None)
        assert getattr(mixer, "mask_value", None) == (-100 if name == "cosine" else None)


def test_every_variant_is_published_or_ours():
    """Nothing is in the rows but the published architectures, three of ours and micro ones."""
    published = {row["name"] for row in ROWS}
    micro = {f"micro_{mixer}" for mixer in BUILT_IN}
    assert set(variants.names()) == published | {"axial_t", "shuffle_t", "full_t"} | micro
    for name in set(variants.names()) - published:
        assert variants.get(name).source == ours.OURS
        assert variants.get(name).official is None


def test_micro_variants_are_one_body_at_equal_macs():
    """Equal within 3%, and in all but mixers and MLPs, at 28 to 64 pixels too."""
    rows = [variants.get(name) for name in variants.names() if name.startswith("micro_")]
    assert len(rows) == len(BUILT_IN)
    assert max(row.macs for row in rows) < 1.03 * min(row.macs for row in rows)
    bodies = {
        dataclasses.replace(
            row.spec, name="",
            stages=tuple(
                dataclasses.replace(stage, mixers=("full",), mlp_ratio=1)
                for stage in row.spec.stages
            ),
        )
        for row in rows
    }  # fmt: skip
    assert len(bodies) == 1
    for size in (28, 64):
        for row in rows:
            model = backbones.create(row.spec)
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)


def is_quick(name: str) -> bool:
    """All but the many ViTs and MLP-Mixers, of which a few are as good as all."""
    single = len(variants.get(name).spec.stages) == 1
    return not single or ("tiny" in name and name.endswith("_224")) or name in QUICK


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (not is_quick(n))) for n in variants.names()],
)
def test_numbers_are_exact(name):
    """Built without memory: the parameters of the tensors, the MACs of cost()."""
    variant = variants.get(name)
    with torch.device("meta"):
        model = backbones.create(name)
    assert sum(p.numel() for p in model.parameters()) == variant.params
    assert sum(part.macs for part in model.cost(*variant.spec.img_size)) == variant.macs


@pytest.mark.parametrize("name", ["swin_t", "cswin_t", "pale_t", "swin_mlp_t_c24", "swinv2_t_w8"])
def test_counts_notice_a_change(name):
    """One block more, or another image size: no longer the stated numbers."""
    variant = variants.get(name)
    depth = variant.spec.stages[2].depth + 1
    with torch.device("meta"):
        model = backbones.create(f"{name}/3.depth={depth}")
    assert sum(p.numel() for p in model.parameters()) > variant.params
    assert sum(part.macs for part in model.cost(*variant.spec.img_size)) > variant.macs


@pytest.mark.parametrize(
    "fields",
    [
        {"params": 0}, {"macs": 0}, {"params": -1}, {"params": True}, {"macs": 4.5e9},
        {"params": None}, {"source": ""}, {"source": "  "},
    ],
    ids=str,
)  # fmt: skip
def test_row_without_numbers_or_source_is_refused(fields):
    row = {"params": 1, "macs": 1, "source": "a paper", "spec": variants.get("swin_t").spec}
    assert Variant(**row)
    with pytest.raises(ValueError, match=f"swin_t: {next(iter(fields))}"):
        Variant(**{**row, **fields})
    for missing in row:
        with pytest.raises(TypeError):
            Variant(**{key: value for key, value in row.items() if key != missing})


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_resolve(alias):
    assert alias not in variants.names()
    assert variants.get(alias) is variants.get(ALIASES[alias])
    assert backbones.parse(alias) == variants.get(ALIASES[alias]).spec


def test_rows_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        variants.get("swin_t").params = 1


@pytest.mark.parametrize("name", variants.names())
def test_a_typo_is_answered_with_the_name(name):
    """One letter dropped: the error suggests a variant and lists them all."""
    with pytest.raises(SpecError) as info:
        variants.get(name + "x")
    assert f"{name + 'x'!r}" in str(info.value)
    assert nearest(name + "x", (*variants.names(), *ALIASES)) in str(info.value)
    assert "did you mean" in str(info.value)
