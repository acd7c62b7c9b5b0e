"""`python -m training.study`: a paper's figures beside ours."""

from __future__ import annotations

import json

import pytest
from test_training_compare import fake

from analysis.results.store import Store
from training import compare, plan, study
from training.data.opening import open_data
from training.loop import subject
from transom.errors import SpecError

TABLE4 = {  # shared/reference/training.md, section 1
    "shift, relative bias": 81.3, "no shift": 80.2, "no position": 80.1, "absolute": 80.5,
    "absolute and relative bias": 81.3,
}  # fmt: skip


def test_table_4_has_the_papers_figures():
    assert study.read("swin-table4").figures == TABLE4
    assert study.read("swin-table4").metric == "top-1, %"


def test_swin_mlp_has_the_published_figures():
    """analysis/papers/published.csv, from the authors' README."""
    from analysis.papers import published

    top1 = {
        row["backbone"]: row["top1"] for row in published.rows()
        if row["task"] == "imagenet" and row["pretrain"] == "ImageNet-1K"
    }  # fmt: skip
    wanted = [top1[name] for name in ("swin_t_c24", "swin_mlp_t_c24", "swin_mlp_t_c12",
                                      "swin_mlp_t_c6")]  # fmt: skip
    assert list(study.read("token-mlp").figures.values()) == wanted


@pytest.mark.parametrize("name", study.names())
def test_every_study_can_be_run(name, monkeypatch):
    """Its backbones and settings are those of a plan, of one start and nearly one cost."""
    found = study.read(name)
    made = []
    monkeypatch.setattr(compare, "_run", lambda args, store: made.append(args) or [])
    assert study.main([name]) == 0
    (args,) = made
    wanted = compare.plan_of(args)
    assert isinstance(wanted, plan.Plan) and wanted.seeds >= 7
    assert args.baseline in wanted.backbones and list(wanted.backbones) == list(
        found.backbones.values()
    )
    data = open_data("order:train=8,test=4")
    sizes = []
    for notation in wanted.backbones:
        subject.check(notation, data, (32, 32), 0.0)
        sizes.append(subject.build(notation, data, (32, 32), 0.0, 0))
    params = [sum(p.numel() for p in model.parameters()) for model in sizes]
    assert max(params) < 1.35 * min(params), params


def test_differences_are_in_the_models():
    """The mixers of Table 4's models are what their labels say."""
    data = open_data("order:train=8,test=4")
    found = {
        label: subject.build(notation, data, (32, 32), 0.0, 0).spec
        for label, notation in study.read("swin-table4").backbones.items()
    }
    said = {
        label: (spec.position, [(m.shift, m.position) for s in spec.stages for m in s.mixers])
        for label, spec in found.items()
    }
    assert said == {
        "shift, relative bias": ("none", [(True, "bias")] * 2),
        "no shift": ("none", [(False, "bias")] * 2),
        "no position": ("none", [(True, "none")] * 2),
        "absolute": ("absolute", [(True, "none")] * 2),
        "absolute and relative bias": ("absolute", [(True, "bias")] * 2),
    }


def test_the_studies_are_listed_and_shown(capsys, tmp_path):
    assert study.main([]) == 0
    listed = capsys.readouterr().out
    assert {"pale-size", "swin-table4", "swinv2-transfer", "token-mlp"} == set(study.names())
    assert all(name in listed for name in study.names())
    assert study.main(["--show", "swin-table4"]) == 0
    copy = tmp_path / "mine.toml"
    copy.write_text(capsys.readouterr().out)
    mine, ours = study.read(str(copy)), study.read("swin-table4")
    assert mine.name == "mine" and mine.backbones == ours.backbones
    assert mine.settings == ours.settings


GOOD = """
title = "T"
claim = "C."
source = "S"
scale = "Little."
[backbones]
a = "micro_window"
b = "micro_pale"
[figures]
metric = "top-1, %"
a = 80.0
b = 81.5
[settings]
data = "order"
seeds = 7
eval-size = [48, 64]
baseline = "a"
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "T"', "", "title must be a sentence"), ('scale = "Little."', "", "scale must be"),
        ('b = "micro_pale"', "", "two or more lines"), ("title", "titel", "did you mean 'title'"),
        ("b = 81.5", "c = 81.5", "[figures] has no 'c'"), ("81.5", "'x'", "must be a number"),
        ('metric = "top-1, %"', "", "lacks its metric"), ("seeds", "sedes", "did you mean 'seeds'"),
        ("[settings]", "[settings", "at line"), ('= "a"', '= "c"', "has no such label"),
        ("micro_pale", "micro_window", "is given twice"), ("micro_pale", "micro_pal", "micro_pal"),
    ],
)  # fmt: skip
def test_a_wrong_study_is_one_line(old, new, said, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_make", lambda *args: pytest.fail("a run was made"))
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SpecError) as error:
        study.main([str(path)])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_study_is_one_line():
    with pytest.raises(SpecError, match="no study is called 'swin-tabel4'; did you mean 'swin-tab"):
        study.main(["swin-tabel4"])
    with pytest.raises(SpecError, match=r"/nowhere.toml: cannot be read: No such file"):
        study.main(["/nowhere.toml"])


def test_settings_come_from_the_study_and_options_take_their_place(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    made = []
    monkeypatch.setattr(compare, "_run", lambda args, store: made.append(args) or [])
    study.main([str(path)])
    study.main([str(path), "--seeds", "2", "--eval-size", "40", "--budget", "5steps",
                "--baseline", "b"])  # fmt: skip
    own, other = made
    assert (own.seeds, own.eval_size, own.budget) == (7, [(48, 48), (64, 64)], "300steps")
    assert (other.seeds, other.eval_size, other.budget) == (2, [(40, 40)], "5steps")
    assert (own.baseline, other.baseline) == ("micro_window", "micro_pale")


def test_the_papers_figures_stand_beside_ours(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    rows = [
        fake(name, seed, 100, accuracy)
        for seed in range(7)
        for name, accuracy in (("micro_window", 0.6 + seed / 100), ("micro_pale", 0.8),
                               ("micro_axial", 0.9))
    ]  # fmt: skip
    Store(tmp_path / "runs.jsonl").append(rows)
    argv = [str(path), "--table", str(tmp_path / "runs.jsonl")]
    assert study.main([*argv, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    keys = ("backbone", "paper, top-1, %", "paper's difference", "our difference")
    assert [[row[key] for key in keys] for row in found["rows"]] == [
        ["a", 80.0, 0.0, 0.0], ["b", 81.5, 1.5, 17.0],
    ]  # fmt: skip
    assert found["rows"][1]["verdict"].startswith("better")
    assert found["study"]["scale"] == "Little."
    assert study.main([*argv, "--batch", "8", "--baseline", "b"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "T: C. (S)" in text and "This run has batch 8." in text and "worse (p = " in text


def test_rows_of_another_study_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    Store(tmp_path / "runs.jsonl").append([fake("micro_axial", 0, 100)])
    with pytest.raises(SpecError, match="no run is of a backbone of mine"):
        study.main([str(path), "--table", str(tmp_path / "runs.jsonl")])


def test_a_study_is_run(tmp_path, capsys):
    """Of four models in one worker, with a store that the next command goes on with."""
    store = tmp_path / "runs.jsonl"
    argv = ["swinv2-transfer", "--data", "order:train=64,test=40", "--budget", "2steps", "--batch",
            "8", "--seeds", "1", "--evaluations", "1", "--jobs", "1", "--store", str(store),
            "--resume", "--eval-size", "48", "--format", "json"]  # fmt: skip
    assert study.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["backbone"] for row in found["rows"]] == [
        "relative bias", "log-CPB", "cosine scores, log-CPB", "no position",
    ]  # fmt: skip
    assert all(" / " in row["at 48, %"] for row in found["rows"])
    assert "data order:train=64,test=40" in found["study"]["scale"]
    before = store.read_bytes()
    assert study.main(argv) == 0 and store.read_bytes() == before
