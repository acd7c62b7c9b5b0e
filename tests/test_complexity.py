"""analysis.complexity: the papers' formulas against what is executed."""

import csv
import io
import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from analysis import complexity
from analysis.counting import counters, paper_formulas
from attention import SpecError, create, make_config, names, parse
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
        "token_mlp:hidden=16", "messenger:position=none",
    ):  # fmt: skip
        assert text in texts, text


def test_options_that_are_varied_have_few_grids(monkeypatch):
    """Those that --sizes tells of: both blocks of a mixer that alternates, one grid that divides
    and one that does not; the defaults on all."""
    made = []
    row = lambda config, h, w, **k: made.append((str(config), h, w, k["index"]))  # noqa: E731
    monkeypatch.setattr(complexity, "measure", row)
    complexity.rows_of((), (), every_option=True, dim=96, heads=4, max_memory=2**32)
    of = lambda text: {row[1:] for row in made if row[0] == text}  # noqa: E731
    every = {(h, w, i) for h, w in complexity.SIZES for i in (0, 1)}
    assert of("window") == every and len(of("full")) == 4
    assert of("window:scores=cosine") == {(28, 14, 0), (15, 22, 1)}
    assert of("cross:scores=cosine") == {(28, 14, 0), (15, 22, 0)}
    assert of("full:position=lepe") == {(28, 14, 0)}  # any grid divides
    assert len(made) == len(set(made)) > 200


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
    less = lambda *args: (c := cost(*args))._replace(mixing=c.mixing - 2)  # noqa: E731
    monkeypatch.setattr(Branch, "cost", less)
    assert run(capsys, *argv)[0] == 1


@pytest.mark.parametrize(("more", "counter"), [(-1, "on_meta"), (0, "computed")])
def test_only_what_might_not_fit_is_counted_without_data(more, counter, monkeypatch):
    """Torch counts a mixer while it is computed, if it needs less memory for certain."""
    used = []
    config, needed = parse("window"), 32 * create("window", dim=16, heads=4).cost(28, 28).total
    for name in ("on_meta", "computed"):
        real = getattr(counters, name)
        monkeypatch.setattr(
            counters, name, lambda *a, _real=real, _name=name: used.append(_name) or _real(*a)
        )
    row = complexity.measure(
        config, 28, 28, dim=16, heads=4, index=0, max_memory=needed + more
    )  # fmt: skip
    assert used == [counter]
    assert row["agree"] and row["exact"] == row["torch"] == row["fvcore"] > 0


@pytest.mark.parametrize("text", ["window:position=log_cpb", "pale", "full", "deformable", "sra"])
def test_a_forward_with_data_has_the_tally_of_one_without(text):
    mixer = create(text, dim=16, heads=4)
    found, wanted = counters.computed(mixer, (1, 9, 8, 16)), counters.on_meta(mixer, (1, 9, 8, 16))
    for name in ("macs", "norms", "uncounted"):
        assert getattr(found, name) == getattr(wanted, name)


def test_sizes_are_no_operators_of_a_traced_forward():
    """Read while a forward is traced, they are numbers, and the tracer goes on."""

    class Flat(torch.nn.Linear):
        def forward(self, x):
            assert torch.jit.is_tracing() and type(x.shape[0]) is type(x.size(1)) is int
            return super().forward(x.reshape(x.shape[0] * x.size(1), -1))

    tally = counters.traced(Flat(8, 4), (3, 5, 8))
    assert tally.macs[""] == 3 * 5 * 8 * 4 and not tally.uncounted


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


@pytest.mark.parametrize(("h", "w"), [(14, 28), (7, 7)])
def test_windows_with_messengers_cost_what_the_paper_says(h, w):
    """Counted by torch and stated; a mixer on its own has no messengers, and then is W-MSA."""
    mixer = create("messenger:size=7,region=1", dim=16, heads=4).eval()
    n = h * w // 49
    wanted = paper_formulas.w_msa_with_messengers(h, w, 16, (7, 7))
    assert wanted == 4 * n * 50 * 16**2 + 2 * n * 50**2 * 16
    cost = mixer.cost(h, w, n)
    assert cost.projection + cost.mixing == wanted
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        mixer(torch.zeros(1, h, w, 16), torch.zeros(1, n, 16))
    assert counter.get_total_flops() == 2 * wanted
    alone = paper_formulas.formula(mixer.config, h, w, 16)
    assert alone == (paper_formulas.w_msa(h, w, 16, (7, 7)), "derived", True)


def test_two_layers_over_tokens_cost_what_is_between_them():
    """MLP-Mixer: n values of each channel between two layers, whatever the window has."""
    found = paper_formulas.formula(parse("token_mlp:size=14,shift=false,hidden=256"), 14, 14, 512)
    assert found == (2 * 256 * 14 * 14 * 512, "derived", True)


def test_stripes_are_as_wide_and_high_as_their_formula_says():
    """2 x 3 on 6 x 9 tokens: a token meets 6 x 3 keys in half of the channels, 2 x 9 in half."""
    h, w, c = 6, 9, 8
    for size, met in (("2x3", 6 * 3 + 2 * 9), ("1x9", 6 * 9 + 1 * 9), ("6x1", 6 * 1 + 6 * 9)):
        found = paper_formulas.formula(parse(f"cross:size={size}"), h, w, c)
        assert found.divides and found.macs == 4 * h * w * c**2 + 2 * h * w * met * c // 2
