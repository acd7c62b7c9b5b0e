"""analysis.complexity: the papers' formulas against what is executed."""

import csv
import io
import json

import pytest

from analysis import complexity
from analysis.counting import paper_formulas
from attention import SpecError, make_config, names, parse
from attention.configs import catalogue

PAPER = {"w_msa": 145108992, "msa": 2003828736}  # Swin Transformer, section 3.2


def run(capsys, *argv):
    code = complexity.main(list(argv))
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def test_the_papers_example_comes_first(capsys):
    code, out = run(capsys, "--mixer", "window", "full", "--sizes", "56")
    first, second = out.splitlines()[:2]
    assert code == 0
    assert "W-MSA 145,108,992 MACs, MSA 2,003,828,736 MACs, ratio 13.81" in first
    assert "290 tokens, a square grid of side 17.03" in second
    assert paper_formulas.w_msa(56, 56, 96, (7, 7)) == PAPER["w_msa"]
    assert paper_formulas.msa(56, 56, 96) == PAPER["msa"]


@pytest.mark.parametrize(("dim", "window"), [(96, (7, 7)), (128, (12, 12)), (33, (2, 5))])
def test_msa_costs_twice_w_msa_where_it_is_said(dim, window):
    """On a 1 x n strip of exactly that many tokens the ratio is 2, not before, not after."""
    n = round(paper_formulas.twice_side(dim, window) ** 2)
    ratio = [
        paper_formulas.msa(1, m, dim) / paper_formulas.w_msa(1, m, dim, window)
        for m in (n - 1, n, n + 1)
    ]
    assert ratio[0] < ratio[1] == 2 < ratio[2]


def test_json_says_what_was_promised(capsys):
    code, out = run(
        capsys, "--mixer", "pale:size=7", "window:size=7", "--sizes", "14x28", "15", "--dim", "32",
        "--format", "json",
    )  # fmt: skip
    rows = json.loads(out)["rows"]
    promised = {
        "mixer", "h", "w", "dim", "options", "formula", "formula_source", "exact", "fvcore",
        "torch", "divides", "agree",
    }  # fmt: skip
    assert code == 0 and all(promised <= set(row) and row["agree"] for row in rows)
    assert [row["divides"] for row in rows] == [True, False, True, True, False, False]
    pale = rows[0]
    assert pale["formula"] == 14 * 28 * 32 * (4 * 32 + 7 * 14 + 7 * 28 + 27) == pale["exact"]
    for row in rows[1:2] + rows[4:]:
        assert row["padding"] > 0 and row["exact"] > row["formula"]


def all_rows(sizes):
    configs = [config for name in names() for config in complexity.variations(name)]
    return [
        complexity.measure(config, h, w, dim=16, heads=4, index=index, max_memory=2**32)
        for config in configs
        for h, w in sizes
        for index in ((0, 1) if catalogue.alternates(config) else (0,))
    ]


def test_every_mixer_and_option_agrees():
    rows = all_rows([(14, 28)])
    assert [row for row in rows if not row["agree"]] == []
    assert {row["mixer"] for row in rows} == set(names())
    for row in rows:
        if row["divides"]:
            assert row["formula"] == row["exact"] - row["position"]
    sources = {row["mixer"]: row["formula_source"] for row in rows}
    assert sources["window"] == sources["full"] == "paper" and sources["pale"] == "derived"


@pytest.mark.slow
def test_every_mixer_and_option_agrees_at_many_sizes():
    sizes = [(1, 1), (7, 7), (7, 14), (8, 15), (56, 56), (55, 13), (1, 49), (28, 42), (21, 64)]
    assert [row for row in all_rows(sizes) if not row["agree"]] == []


def test_variations_reach_every_option():
    """Each choice of scores, position and order, each flag, another size: nobody forgets one."""
    texts = {str(config) for name in names() for config in complexity.variations(name)}
    for text in (
        "window", "window:scores=cosine", "window:position=lepe,shift=false", "cosine:scores=dot",
        "axial:order=sequential", "cross:position=none", "pale:scores=cosine",
        "pale:position=log_cpb", "shuffle:mask_padding=true", "token_mlp:size=7x14",
        "token_mlp:shift=false", "full:position=lepe", "window:qkv_bias=false",
    ):  # fmt: skip
        assert text in texts, text


def test_a_wrong_formula_or_count_is_exit_code_one(monkeypatch, capsys):
    argv = ("--mixer", "window", "--sizes", "14", "15", "--dim", "16")
    real = paper_formulas.FORMULAS["window"]
    wrong = lambda *a: real(*a)._replace(macs=real(*a).macs + 1)  # noqa: E731
    monkeypatch.setitem(paper_formulas.FORMULAS, "window", wrong)
    code, out = run(capsys, *argv, "--format", "csv")
    # only where the size divides: elsewhere the formula may differ by the padding
    agree = [(row["h"], row["agree"]) for row in csv.DictReader(io.StringIO(out))]
    assert code == 1
    assert agree == [("14", "False"), ("14", "False"), ("15", "True"), ("15", "True")]
    monkeypatch.undo()
    from attention.softmax.branch import Branch

    cost = Branch.cost
    monkeypatch.setattr(
        Branch, "cost", lambda self, groups: (c := cost(self, groups))._replace(mixing=c.mixing - 2)
    )
    assert run(capsys, *argv)[0] == 1


def test_what_does_not_fit_is_refused_before_it_runs():
    with pytest.raises(SpecError, match=r"full on a 1024x1024 grid: .*GiB.*--max-memory"):
        complexity.main(["--mixer", "full", "--sizes", "1024"])


@pytest.mark.parametrize(
    "argv", [["--mixer", "windw"], ["--mixer", "axial", "--heads", "3"], ["--dim", "97"]]
)
def test_bad_requests(argv):
    with pytest.raises(SpecError):
        complexity.main(argv)


def test_a_plug_in_has_no_formula():
    assert paper_formulas.formula(make_config("window"), 7, 7, 8).divides
    assert paper_formulas.formula(object(), 7, 7, 8) is None


def test_stripes_are_as_wide_and_high_as_their_formula_says():
    """2 x 3 on 6 x 9 tokens: a token meets 6 x 3 keys in half of the channels, 2 x 9 in half."""
    h, w, c = 6, 9, 8
    for size, met in (("2x3", 6 * 3 + 2 * 9), ("1x9", 6 * 9 + 1 * 9), ("6x1", 6 * 1 + 6 * 9)):
        found = paper_formulas.formula(parse(f"cross:size={size}"), h, w, c)
        assert found.divides and found.macs == 4 * h * w * c**2 + 2 * h * w * met * c // 2
