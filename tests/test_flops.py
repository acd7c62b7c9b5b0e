"""analysis.flops: three counts of one model, exact, and honest where they cannot be made."""

import csv
import io
import json
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import analysis
import backbones
from analysis import flops
from analysis.counting import backward, counters
from analysis.counting.count import Budget
from analysis.models import lookup
from attention.softmax.branch import Branch
from attention.softmax.dpb import DynamicBias
from attention.softmax.position import LogCPB
from backbones.specs import variants
from transom.errors import SpecError

GIGANTIC = {  # the published shape of SwinV2-G: 3 billion parameters
    "name": "swinv2_g",
    "norm": "res_post",
    "downsample": "merge_post",
    "img_size": 640,
    "stages": [
        {"dim": 512 * 2**i, "depth": depth, "heads": 16 * 2**i, "mixers": "cosine:size=16"}
        for i, depth in enumerate((2, 2, 42, 4))
    ],
}


def on_meta(what):
    with torch.device("meta"):
        return backbones.create(what)


def run(capsys, *argv):
    """(exit code, standard output) of the command, in this process."""
    code = flops.main(list(argv))
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def test_json_says_what_was_promised(capsys):
    code, out = run(capsys, "--backbone", "swin_t", "--format", "json")
    data = json.loads(out)
    assert code == 0 and "2 x MACs" in data["convention"]
    (row,) = data["rows"]
    stages = row.pop("stages")
    assert row == {
        "backbone": "swin_t", "img_size": [224, 224], "params": 28288354, "macs": 4490566656,
        "flops": 8981133312, "macs_formula": 4490566656, "macs_fvcore": 4490566656,
        "macs_torch": 4490566656, "norm_elements": 3725568, "activations": 17055352,
        "padding_macs": 0, "uncounted": [], "agree": True, "note": "",
    }  # fmt: skip
    assert [stage["stage"] for stage in stages] == ["1", "2", "3", "4", "head", "total"]
    for column in ("params", "macs", "projection", "mixing", "mlp", "resample", "norm_elements"):
        assert sum(stage[column] for stage in stages[:-1]) == stages[-1][column], column
    # 2 norms a block, the stem's, the merges' on 4 C of a quarter of the tokens, the last
    tokens, dim = 56 * 56, 96
    norms = tokens * dim * (1 + 2 * 2)
    for depth in (2, 6, 2):
        norms += tokens // 4 * 4 * dim
        tokens, dim = tokens // 4, dim * 2
        norms += tokens * dim * 2 * depth
    assert row["norm_elements"] == norms + tokens * dim


def first_of_its_paper(name: str) -> bool:
    """The others of a paper have its parts at other sizes."""
    source = variants.get(name).source
    return name == next(n for n in variants.names() if variants.get(n).source == source)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if first_of_its_paper(name) else [pytest.mark.slow])
    for name in variants.names() if variants.get(name).macs < 7e9
])  # fmt: skip
def test_every_variant_counts_as_its_row_says(name):
    """Formula, torch on meta and fvcore; the large ones behind -m slow."""
    row = variants.get(name)
    report = analysis.count(on_meta(name), row.spec.img_size, budget=Budget(2**40, 1e9))
    assert report.agree, report.trust
    assert (report.params, report.macs) == (row.params, row.macs)
    assert report.macs_fvcore is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in variants.names() if variants.get(n).macs >= 7e9])
def test_every_large_variant_traces_to_its_row(name):
    row = variants.get(name)
    report = analysis.count(on_meta(name), row.spec.img_size, budget=Budget(2**40, 1e9))
    assert report.agree and report.macs_fvcore == row.macs, report.trust


MIXERS = [
    "window:size=3", "window:size=2x3,position=none", "cosine:size=3", "shuffle:size=3",
    "axial", "axial:order=sequential", "axial:position=log_cpb", "cross:size=2",
    "cross:size=2x3,mask_padding=true", "pale:size=2", "pale:size=3,scores=cosine",
    "token_mlp:size=3", "full", "full:position=lepe", "window:shift=false,position=lepe,size=3",
    "shuffle:size=2x3,interval=2,position=dpb", "cross:size=2,position=dpb",
    "sra:ratio=3", "sra:ratio=2x3,remainder=pad", "sra:pool=2",
]  # fmt: skip


@st.composite
def specs(draw):
    stages = [
        {
            "dim": 8 * draw(st.integers(1, 3)), "depth": draw(st.integers(1, 3)), "heads": 4,
            "mixers": draw(st.lists(st.sampled_from(MIXERS), min_size=1, max_size=2)),
            "mlp_ratio": draw(st.sampled_from((0.5, 2, 4))),
        }
        for _ in range(draw(st.integers(2, 4)))
    ]  # fmt: skip
    downsample = draw(st.sampled_from(
        ("merge", "merge_post", "conv_norm", "conv", "norm_conv", "cross_scale", "mbconv",
         "mbconv_even", "patch_norm")
    ))  # fmt: skip
    stem = draw(st.sampled_from(
        ("patch", "overlap", "overlap_same", "conv_bn", "conv_relu6", "cross_scale")
    ))  # fmt: skip
    patches = (2, 4) if "mbconv" in downsample else (1, 2, 4)
    if stem in ("conv_relu6", "cross_scale"):
        patches = (8 if "mbconv" in downsample else 4,)
    return {
        "stages": stages, "num_classes": draw(st.sampled_from((0, 5))),
        "patch_size": draw(st.sampled_from(patches)), "stem": stem,
        "local": draw(st.sampled_from((0, 0, 3))),
        "norm_layer": draw(st.sampled_from(("layer", "batch"))),
        "stem_dim": draw(st.sampled_from((None, 16))), "downsample": downsample,
        "head": draw(st.sampled_from(("linear", "tanh"))),
        "norm": draw(st.sampled_from(("pre", "res_post"))),
        "position": draw(st.sampled_from(("none", "absolute", "cpe", "cpe_once"))),
        "stage_norms": draw(st.booleans()),
        "mlp": draw(st.sampled_from(("gelu", "conv", "relu_conv"))),
        "img_size": [draw(st.integers(1, 24)), draw(st.integers(1, 24))],
    }  # fmt: skip


def assert_counts_agree(data):
    report = analysis.count(on_meta(data), tuple(data["img_size"]))
    assert report.agree and report.macs_fvcore is not None, (report.trust, data)


@given(specs())
@settings(max_examples=12)
def test_any_spec_at_any_size_counts_alike(data):
    assert_counts_agree(data)


@pytest.mark.slow
@given(specs())
@settings(max_examples=1000)
def test_a_thousand_specs_count_alike(data):
    assert_counts_agree(data)


def test_a_wrong_formula_is_found(monkeypatch):
    """One MAC too many in the MLP of one block is a disagreement, and exit code 1."""
    from backbones.parts.mlp import MLP

    real = MLP.cost
    monkeypatch.setattr(MLP, "cost", lambda self, h, w: real(self, h, w) + 1)
    report = analysis.count(on_meta("swin_t"), 32)
    assert not report.agree and report.trust.startswith("counts differ: formula")
    assert flops.main(["--backbone", "swin_t", "--img-size", "32", "--out", "/dev/null"]) == 1


def test_macs_in_the_wrong_stage_are_found(monkeypatch):
    """Equal totals are not enough: the modules must agree too."""
    from backbones.model.backbone import HierarchicalBackbone

    real = HierarchicalBackbone.cost

    def moved(self, h, w):
        def stem(part):
            return part._replace(module="stem") if "stages.3" in part.module else part

        return [stem(part) for part in real(self, h, w)]

    monkeypatch.setattr(HierarchicalBackbone, "cost", moved)
    report = analysis.count(on_meta("swin_t"), 32)
    assert not report.agree and "totals agree, but not in stem" in report.note


class WithUnknown(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.layer, self.operator = nn.Conv2d(3, 4, 1), operator

    def forward(self, x):
        return self.operator(self.layer(x))


@torch.library.custom_op("transom_test::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@twist.register_fake
def _(x):
    return torch.empty_like(x)


@pytest.mark.parametrize(
    ("operator", "name"),
    [(twist, "transom_test::twist"), (lambda x: torch.cdist(x, x), "aten::cdist")],
)
def test_an_unknown_operator_is_an_error_that_names_it(operator, name):
    report = analysis.count(WithUnknown(operator), 4)
    assert name in report.uncounted and not report.agree
    assert f"uncounted operators: {', '.join(report.uncounted)}" in report.trust
    assert ">= " in flops.render([report], "table", "stage", "")


def test_an_unknown_operator_is_named_without_a_trace_too():
    report = analysis.count(WithUnknown(twist), 4, budget=Budget(memory=1))
    assert report.macs_fvcore is None and "transom_test::twist" in report.uncounted


OPERATORS = {
    "broadcast matmul": lambda x: x @ torch.ones(5, 1, 8, 6, device=x.device),
    "vector": lambda x: x @ torch.ones(8, device=x.device),
    "einsum": lambda x: torch.einsum("bchw,bchv->bcwv", x, x),
    "einsum with a free index": lambda x: torch.einsum("bchw,kc->bkhw", x, x.new_ones(7, 3)),
    "addmm": lambda x: torch.addmm(x.new_ones(8, 8), x[0, 0], x[0, 1]),
    "baddbmm": lambda x: torch.baddbmm(x[0], x[0], x[0]),
    "strided convolution": lambda x: F.conv2d(x, x.new_ones(6, 3, 3, 2), stride=2, padding=1),
    "grouped convolution": lambda x: F.conv2d(x, x.new_ones(3, 1, 3, 3), groups=3, padding="same"),
    "transposed convolution": lambda x: F.conv_transpose2d(x, x.new_ones(3, 5, 3, 3), stride=2),
    "1-d convolution": lambda x: F.conv1d(x[0], x.new_ones(4, 8, 3)),
    "fused attention": lambda x: F.scaled_dot_product_attention(x, x[:, :, :5], x[:, :, :5, :4]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_handles_equal_torchs_counter(name):
    """fvcore's own handles are wrong or missing for half of these."""
    model = WithUnknown(OPERATORS[name])
    model.layer = nn.Conv2d(3, 3, 1)
    report = analysis.count(model, 8)
    assert report.agree and report.macs > 8 * 8 * 9, report.trust


@pytest.mark.parametrize("fused", ["0", "1", "2"])
def test_timms_fused_attention_counts_as_its_plain_one(fused):
    import timm.layers

    timm.layers.set_fused_attn(fused != "0", fused == "2")
    try:
        vit = lookup.find("timm:vit_tiny_patch16_224").make((224, 224))
        swin = lookup.find("timm:swin_tiny_patch4_window7_224").make((224, 224))
    finally:
        timm.layers.set_fused_attn(True)
    kinds = analysis.count(vit, 224).operators
    assert ("attention" in [row["operator"] for row in kinds]) == (fused != "0")
    tokens, dim = 197, 192
    macs = 196 * dim * 768 + 12 * (12 * tokens * dim**2 + 2 * tokens**2 * dim) + dim * 1000
    assert analysis.count(vit, 224).macs_fvcore == macs == analysis.count(vit, 224).macs
    assert analysis.count(swin, 224).macs_fvcore == 4490566656


@pytest.mark.parametrize(
    ("name", "macs"),
    [("swin_t", 4490566656), ("swin_v2_t", 5939690496), ("vit_b_16", 17563828224)],
)
def test_torchvisions_models_are_counted(name, macs):
    subject = lookup.find(f"torchvision:{name}")
    report = analysis.count(subject.make(subject.img_size), subject.img_size)
    assert report.agree and report.macs == macs, report.trust
    assert report.macs_formula is None and "no formula" in report.trust
    assert sum(row["macs"] for row in report.stages[:-1]) == report.macs


def test_a_module_by_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out = run(capsys, "--backbone", "my_net:Net", "--img-size", "8", "--format", "json")
    (row,) = json.loads(out)["rows"]
    assert code == 0 and row["macs"] == 36 * 5 * 27 + 360 and row["macs_formula"] is None
    for bad in ("my_net:Nett", "no_such_module:Net", "my_net:nn"):
        with pytest.raises(SpecError, match=bad):
            flops.main(["--backbone", bad])


def test_what_does_not_fit_is_counted_without_memory():
    """Full attention at 4096 px and three billion parameters: formula and torch, no fvcore."""
    report = analysis.count(on_meta("full_t"), 4096)
    assert report.agree and report.macs_fvcore is None
    assert "fvcore skipped" in report.trust and "--max-memory" in report.trust
    assert report.trust.startswith("two counts agree: formula = torch")
    report = analysis.count(on_meta(GIGANTIC), 640)
    assert report.agree and 2.9e9 < report.params < 3.1e9 and "fvcore skipped" in report.note
    report = analysis.count(on_meta("swin_t"), 224, budget=Budget(seconds=0.01))
    assert "--max-seconds" in report.note and report.agree


def test_counting_leaves_the_model_as_it_was():
    model = tiny.create("hybrid")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.stages[1].eval()
    report = analysis.count(model, 64)
    assert report.agree and model.training and not model.stages[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_shared_and_unused_parameters():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.unused = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(5, 5, bias=False)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(x))

    report = analysis.count(Shared(), 4)
    assert report.agree and report.params == 9 + 25 and report.macs == 2 * 9 * 16


def test_a_mixer_without_a_cost_has_two_counts(monkeypatch):
    from attention.mixers.window import WindowMixer

    monkeypatch.setattr(WindowMixer, "cost", _no_cost)
    report = analysis.count(on_meta("swin_t"), 64)
    assert report.agree and report.macs_formula is None and "no formula" in report.note
    assert sum(row["macs"] for row in report.stages[:-1]) == report.macs


def _no_cost(self, h, w):
    raise NotImplementedError


def test_csv_and_json_and_markdown_say_the_same(capsys):
    argv = ["--backbone", "swin_t", "pale_t", "--img-size", "40x70", "--max-seconds", "0.0001"]
    code, text = run(capsys, *argv, "--format", "json")
    rows = json.loads(text)["rows"]
    _, text = run(capsys, *argv, "--format", "csv")
    flat = list(csv.DictReader(io.StringIO(text)))
    assert code == 0 and len(flat) == sum(len(row["stages"]) for row in rows)
    expected = [(row["backbone"], stage) for row in rows for stage in row["stages"]]
    for (name, stage), line in zip(expected, flat, strict=True):
        assert (line["backbone"], line["stage"]) == (name, stage["stage"])
        for key in ("params", "macs", "projection", "mixing", "norm_elements", "padding_macs"):
            assert int(line[key]) == stage[key]
    assert [line["stage"] for line in flat].count("total") == 2 and flat[-1]["stage"] == "total"
    _, text = run(capsys, *argv, "--format", "md")
    assert all(f"{row['macs']:,}" in text for row in rows)
    assert all(float(line["padding_%"]) > 0 for line in flat if line["stage"] == "total")


@pytest.mark.parametrize("by", ["block", "operator"])
def test_breakdowns_sum_to_the_total(by, capsys):
    argv = ("--backbone", "swin_t", "--img-size", "64", "--by", by)
    _, text = run(capsys, *argv, "--format", "json")
    (row,) = json.loads(text)["rows"]
    assert sum(part["macs"] or 0 for part in row[by + "s"]) == row["macs"]
    assert sum(part.get("norm_elements") or 0 for part in row[by + "s"]) == row["norm_elements"]
    assert run(capsys, *argv)[0] == 0
    _, text = run(capsys, *argv, "--format", "csv")
    assert list(csv.DictReader(io.StringIO(text)))[-1][by] == "total"


def test_out_is_written_whole_and_its_ending_chooses_the_format(tmp_path, capsys):
    argv = ["--backbone", "swin_t", "--img-size", "32", "--out"]
    assert run(capsys, *argv, str(tmp_path / "a.json")) == (0, "")
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["img_size"] == [32, 32]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(SpecError, match="--out"):
        flops.main([*argv, str(tmp_path / "none" / "a.json")])


def test_a_size_that_a_foreign_model_refuses_is_one_line():
    with pytest.raises(SpecError, match="its forward fails on a 1x1 image"):
        analysis.count(nn.Sequential(nn.Conv2d(3, 3, 5)), 1)
    with pytest.raises(SpecError, match="img_size"):
        analysis.count(nn.Identity(), 0)


def test_the_memory_estimate_follows_what_lives_together():
    """A chain frees what it leaves; a concatenation holds its parts."""
    chain = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(8)])
    image = 4 * 3 * 16 * 16
    assert counters.on_meta(chain, (1, 3, 16, 16)).peak_bytes in (image, 2 * image)

    class Held(nn.Module):
        def forward(self, x):
            return torch.cat([x * i for i in range(1, 5)])

    assert counters.on_meta(Held(), (1, 3, 16, 16)).peak_bytes == 8 * image


def test_the_memory_estimate_is_of_the_largest_moment():
    """64 wide maps beside one, long before the end."""
    narrow = [nn.Conv2d(1, 1, 1) for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 1, 1), *narrow)
    assert counters.on_meta(model, (1, 3, 16, 16)).peak_bytes == 4 * (64 + 1) * 16 * 16


class Several(nn.Module):
    """Two maps, in whatever they are handed over."""

    def __init__(self, pack):
        super().__init__()
        self.fine, self.coarse, self.pack = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 2, 2), pack

    def forward(self, x):
        fine = self.fine(x)
        return self.pack(fine, F.relu(self.coarse(fine)))


@pytest.mark.parametrize("pack", [
    lambda *maps: maps[-1], lambda *maps: list(maps), lambda *maps: (*maps, *maps),
    lambda *maps: dict(zip(("fine", "coarse"), maps, strict=True)),
    lambda *maps: {"all": [list(maps), maps[0]]},
    lambda *maps: {"maps": maps, "names": ["fine", "coarse"], "strides": 4, "loss": None},
], ids=["tensor", "list", "tuple", "dict", "nested", "other things"])  # fmt: skip
def test_activations_are_of_products_whatever_a_model_returns(pack):
    report = analysis.count(Several(pack), 8)
    assert report.activations == 4 * 8 * 8 + 6 * 4 * 4
    assert report.agree and report.macs == 3 * 4 * 64 + 4 * 4 * 6 * 16


def test_activations_of_an_operator_with_several_outputs_are_of_its_first():
    """Fused attention gives log-sums beside its result: they are no activations."""

    class Fused(nn.Module):
        def forward(self, x):
            operator = torch.ops.aten._scaled_dot_product_efficient_attention
            return operator(x, x, x, None, True)[0]

    out = torch.ops.aten._scaled_dot_product_efficient_attention(
        *[torch.empty(2, 3, 8, 16, device="meta")] * 3, None, True
    )
    assert out[1].numel() > 0
    tally = counters.on_meta(Fused(), (2, 3, 8, 16))
    assert tally.activations == 2 * 3 * 8 * 16 and tally.macs[""] == 2 * (2 * 3 * 8 * 8 * 16)


def test_a_budget_of_memory_holds_the_weights():
    model = nn.Conv2d(3, 64, 9)
    witness = counters.on_meta(model, (1, 3, 16, 16))
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert weights > witness.peak_bytes > 0
    need = weights + witness.peak_bytes
    assert analysis.count(model, 16, budget=Budget(memory=need)).macs_fvcore is not None
    report = analysis.count(model, 16, budget=Budget(memory=need - 1))
    assert report.macs_fvcore is None and "--max-memory" in report.note


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_one_row_that_differs_is_exit_code_one(bad, monkeypatch):
    from analysis.counting import count as counting

    real, made = counting.count, []

    def count(model, size, **options):
        report = real(model, size, trace=False, name=options["name"])
        made.append(report)
        report.agree = len(made) - 1 != bad
        return report

    monkeypatch.setattr(counting, "count", count)
    argv = ["--backbone", "swin_t", "pale_t", "--img-size", "32", "--out", "/dev/null"]
    assert flops.main(argv) == (1 if bad < 2 else 0)


# -- the tree of modules -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swin_t/stages=2/num_classes=10", "torchvision:resnet18"])
def test_the_tree_of_modules(name):
    """Every linear layer and convolution against its own formula, from the shape that is shown."""
    model = lookup.find(name).make((64, 64))
    found = analysis.count(model, 64, trace=False)
    rows = {row["module"]: row for row in found.modules}
    assert rows[""]["macs"] == found.macs and rows[""]["params"] == found.params
    checked = 0
    for path, module in model.named_modules():
        if path not in rows or rows[path]["macs"] is None:
            continue  # it did not run by itself
        elements = math.prod(map(int, rows[path]["output"].split("x")))
        if isinstance(module, nn.Linear):
            assert rows[path]["macs"] == elements * module.in_features, path
            checked += 1
        elif isinstance(module, nn.Conv2d):
            assert rows[path]["macs"] == elements * module.weight[0].numel(), path
            checked += 1
    assert checked >= 5


def test_the_tree_is_indented_to_a_depth(capsys):
    argv = ["swin_t/stages=2", "--img-size", "64", "--by", "module"]
    assert flops.main([*argv, "--depth", "1"]) == 0
    lines = capsys.readouterr().out.split("\n")
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    names = [line.split()[0] for line in lines[rule + 1 :][:5]]
    assert names == [".", "stem", "stages", "norm", "head"]
    assert lines[rule + 2].startswith("  stem  ") and "1x96x16x16" in lines[rule + 2]
    assert flops.main([*argv, "--format", "csv"]) == 0
    assert "stages.1.blocks.1.mlp.fc2" in capsys.readouterr().out


# -- the backward pass -------------------------------------------------------------------------


def frozen_stem(model):
    """A network whose first convolution is not trained, so that one gradient less is needed."""
    model[0].requires_grad_(False)
    return model


GRADIENTS = {  # (network, MACs of its forward on 8x8, MACs of its backward), worked out by hand
    "the image needs none": (nn.Conv2d(3, 8, 1), 1536, 1536),
    "of a grouped convolution": (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        1536 + 4608, 1536 + 2 * 4608,
    ),
    "of a transposed convolution": (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, stride=2)),
        1536 + 8192, 1536 + 2 * 8192,
    ),
    "none of a frozen layer": (
        frozen_stem(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))),
        1536 + 2 * 4096, 4096 + 2 * 4096,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_every_gradient_is_a_product(name):
    model, forward, backward = GRADIENTS[name]
    trainable = [p.requires_grad for p in model.parameters()]
    report = analysis.count(model, 8, backward=True)
    assert (report.macs, report.macs_backward) == (forward, backward)
    assert report.macs_backward_foretold == backward and report.agree
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", [*tiny.SOME, "timm:pvt_v2_b0"])
def test_backward_is_twice_the_forward_without_the_images_gradient(name):
    """And without that of the steps of log-CPB and dynamic bias, which are no parameters."""
    foreign = name.startswith("timm:")
    model = lookup.find(name).make((64, 64)) if foreign else tiny.create(name)
    report = analysis.count(model, 64, backward=True, trace=False)
    stems = [next(m for m in model.modules() if isinstance(m, nn.Conv2d))]
    stems += getattr(getattr(model, "stem", None), "larger", [])  # which read the image, too
    missing = sum((64 // stem.stride[0]) ** 2 * stem.weight.numel() for stem in stems)
    for mixer in model.modules():
        branch = getattr(mixer, "branch", None)
        if isinstance(branch, Branch) and isinstance(branch.bias, (LogCPB, DynamicBias)):
            gh, gw = mixer.config.size
            first = next(m for m in branch.bias.modules() if isinstance(m, nn.Linear))
            missing += (2 * gh - 1) * (2 * gw - 1) * first.weight.numel()
    assert report.macs_backward == report.macs_backward_foretold == 2 * report.macs - missing


def test_a_product_that_backward_hides_is_found(monkeypatch):
    monkeypatch.setattr(backward, "GRADIENTS", {})  # torch's rule, wrong for groups
    model = GRADIENTS["of a grouped convolution"][0]
    report = analysis.count(model, 8, backward=True)
    assert not report.agree and "counts differ" in report.backward


def test_flops_prints_the_backward_pass(capsys):
    argv = "--backbone", "micro_window", "--backward"
    code, out = run(capsys, *argv)
    assert code == 0 and "two counts agree: its operators = " in out
    _, text = run(capsys, *argv, "--format", "json")
    (row,) = json.loads(text)["rows"]
    assert row["macs_backward"] == row["macs_backward_foretold"] > row["macs"]
    _, text = run(capsys, *argv, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {r["macs_backward"] for r in rows} == {str(row["macs_backward"])}
    assert "backward" not in run(capsys, *argv[:2])[1]


def test_sampling_is_named_and_counts_nothing():
    """Deformable attention interpolates: the counts agree, and a note says what is not in them."""
    report = analysis.count(tiny.create("dat"), 64)
    assert report.agree and "counts 0: aten::grid_sampler_2d" in report.trust
    assert "sampl" not in analysis.count(tiny.create("swin"), 64).trust
