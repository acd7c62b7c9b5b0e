"""The paper ledger: what agrees with the papers, to which digit, what does not, and that a change
of either is seen.  The heads are counted again by torch, on modules of torchvision and our own."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import analysis
from analysis import audit
from analysis.counting import counters
from analysis.papers import dense_heads, ledger, published
from backbones import create
from backbones.specs import variants
from transom import table
from transom.errors import SpecError


@pytest.fixture(scope="module")
def rows():
    return ledger.ledger(published.rows())


def pick(rows, quantity, *prefixes, dense=None):
    return [
        row
        for row in rows
        if row["quantity"] == quantity
        and row["backbone"].startswith(prefixes)
        and dense in (None, row["task"] != "imagenet")
    ]


# -- what the ledger says ----------------------------------------------------------------------


def test_every_published_number_has_a_row(rows):
    claims = [r[c] for r in published.rows() for c in ("params_m", "flops_g") if r[c] is not None]
    assert Counter(row["claimed"] for row in rows) == Counter(claims)
    keys = [tuple(row[name] for name in audit.KEY) for row in rows]
    assert len(set(keys)) == len(rows) == 310


def test_summary(rows):
    assert audit.summary(rows) == (
        "310 numbers: 250 rounds to, 33 within 1%, 11 cut off to, 7 not reproducible, "
        "5 rounds up to, 4 within 1.5%; 9 unconfirmed"
    )
    assert not audit.summary(pick(rows, "flops", "swin_")).endswith("unconfirmed")


def test_unconfirmed_rows_are_pales_second_hand_ones(rows):
    found = [row for row in rows if row["unconfirmed"]]
    assert Counter(row["task"] for row in found) == {"imagenet": 3, "coco": 3, "ade20k": 3}
    for row in found:
        assert row["backbone"].startswith("pale_") and row["quantity"] == "flops"
        assert row["second_hand"] and "unconfirmed" in row["source"]


CUT_OFF = {
    "timm:twins_pcpvt_large": 60_989_672, "twins_pcpvt_l": 60_989_672, "twins_svt_l": 99_271_400,
    "dinat_large": 200_943_514, "dinat_large_384": 200_943_514, "dinat_large_384_k11": 201_144_250,
}  # fmt: skip


EXPLAINED = {  # (digits of the print, parameters that it is of): without the head, of 224 pixels
    "vit_large_patch32_224": (2, 306_535_400 - 1_025_000),
    "deit3_small_patch16_384": (1, 22_059_496),
}


def test_parameters_agree_to_the_printed_digit(rows):
    """All but one; CSWin's may be rounded up, Shuffle Transformer's and DeiT's are cut off.  Heads
    of detectors and UPerNet included."""
    for row in pick(rows, "params", ""):
        if (row["backbone"], row["method"]) == ("cswin_t", "UPerNet"):
            assert row["verdict"] == "not reproducible: -13.1%" and row["cause"]
            continue
        if row["backbone"] in CUT_OFF:  # printed as 60.9, 99.2 and 200
            assert row["verdict"] == "within 1%" and row["counted"] == CUT_OFF[row["backbone"]]
            continue
        if row["backbone"] in EXPLAINED:
            assert row["verdict"] == "within 1%" and row["cause"]
            digits, counted = EXPLAINED[row["backbone"]]
            assert f"{counted / 1e6:.2f}".startswith(f"{row['claimed']:.{digits}f}")
            continue
        if row["verdict"] == "cut off to":
            assert row["backbone"].startswith(("shuffletransformer", "deit"))
            digits = len(str(row["claimed"]).partition(".")[2])
            assert math.floor(row["counted"] / 1e6 * 10**digits) == row["claimed"] * 10**digits
            continue
        assert row["verdict"] in ("rounds to", "rounds up to")
        if row["verdict"] == "rounds up to":
            assert row["backbone"].startswith("cswin")
            assert math.ceil(row["counted"] / 1e6) == row["claimed"]
        else:
            digits = len(str(row["claimed"]).partition(".")[2])
            assert round(row["counted"] / 1e6, digits) == row["claimed"]


def test_parameters_of_a_classifier_are_the_variants(rows):
    for row in pick(rows, "params", "swin", "cswin", "pale", dense=False):
        assert row["counted"] == variants.get(row["backbone"]).params


def test_classification_flops_round_to_what_is_printed(rows):
    found = pick(rows, "flops", "swin_", "swinv2_", "pale_", dense=False)
    assert len(found) == 28
    for row in found:
        assert row["verdict"] == "rounds to"
        digits = len(str(row["claimed"]).partition(".")[2])
        assert f"{row['counted'] / 1e9:.{digits}f}" == str(row["claimed"])
        assert row["macs"] == variants.get(row["backbone"]).macs


def test_swin_v2_only_fits_without_log_cpb(rows):
    found = pick(rows, "flops", "swinv2_")
    assert all(row["counted"] < row["macs"] and "log-CPB" in row["formula"] for row in found)
    plain = [ledger.compare_claim(row["claimed"], row["macs"], 10**9) for row in found]
    assert sum(verdict != "rounds to" for verdict in plain) >= 5


def test_cswin(rows):
    """T, S, B within 1.5%; L is 5% above, in classification, and not explained."""
    for row in pick(rows, "flops", "cswin_", dense=False):
        if row["backbone"].startswith("cswin_l"):
            assert row["verdict"] == "not reproducible: +5.2%"
            assert row["cause"].startswith("unknown")
        else:
            assert abs(row["difference_%"]) < 1.5
            assert row["verdict"] in ("rounds to", "within 1.5%")
        assert row["counted"] == row["macs"] == variants.get(row["backbone"]).macs


@pytest.mark.parametrize(
    ("name", "claimed"), [("pale_t", 4.226), ("pale_s", 9.012), ("pale_b", 15.581)]
)
def test_pale_with_norms(rows, name, claimed):
    (row,) = pick(rows, "flops", name, dense=False)
    assert round(row["counted"] / 1e9, 3) == claimed and row["second_hand"]


@pytest.mark.parametrize(
    ("name", "coco", "ade"),
    [("pale_t", 306.2, 996.4), ("pale_s", 431.8, 1134.4), ("pale_b", 595.1, 1311.1)],
)
def test_pale_dense(rows, name, coco, ade):
    found = {row["task"]: row for row in pick(rows, "flops", name, dense=True)}
    assert round(found["coco"]["counted"] / 1e9, 1) == coco
    assert round(found["ade20k"]["counted"] / 1e9, 1) == ade
    assert all(row["second_hand"] for row in found.values())


def test_dense_rows_are_within_one_percent(rows):
    """But those that nothing explains, which say by how much, and one that is second hand."""
    odd = {
        ("swin_l", "UPerNet"): "not reproducible: -23.1%",
        ("cswin_l", "UPerNet"): "not reproducible: -4.9%",
        ("swin_t", "Semantic FPN"): "not reproducible: +2.3%",
        ("swin_s", "Semantic FPN"): "not reproducible: +2.0%",
    }
    for row in pick(rows, "flops", "", dense=True):
        key = row["backbone"], row["method"]
        if key in odd:
            assert row["verdict"] == odd[key] and row["cause"].startswith("unknown")
        elif key == ("swin_b", "Semantic FPN"):
            assert row["verdict"] == "within 1.5%" and row["second_hand"]
        else:
            assert abs(row["difference_%"]) < 1 and row["verdict"] in ("rounds to", "within 1%")


def test_swin_dense_fits_with_norms(rows):
    """With them the authors' 9 of 11 round to the print and two are 0.1% off; plain, 5 do."""
    found = [row for row in pick(rows, "flops", "swin_", dense=True) if row["backbone"] != "swin_l"]
    found = [row for row in found if not row["second_hand"]]
    assert Counter(row["verdict"] for row in found) == {"rounds to": 9, "within 1%": 2}
    assert max(abs(row["difference_%"]) for row in found) < 0.08
    plain = Counter(ledger.compare_claim(row["claimed"], row["macs"], 10**9) for row in found)
    assert plain["rounds to"] == 5


@pytest.mark.parametrize(
    ("size", "params", "without", "products"),
    [
        ("small", 24_106_216, 3.667, 3.809),
        ("base", 43_828_456, 6.437, 6.653),
        ("large", 60_989_672, 9.497, 9.808),
    ],
)
def test_twins_pcpvt_only_fits_without_attention_products(rows, size, params, without, products):
    """As published without them, and plain beside it, which no print is."""
    name = f"timm:twins_pcpvt_{size}"
    (row,) = pick(rows, "flops", name)
    assert (round(row["counted"] / 1e9, 3), round(row["macs"] / 1e9, 3)) == (without, products)
    assert row["verdict"] == "rounds to" and row["formula"] == "MACs - attention products"
    assert ledger.compare_claim(row["claimed"], row["macs"], 10**9) != "rounds to"
    assert pick(rows, "params", name)[0]["counted"] == params


@pytest.mark.parametrize("name", [f"twins_{kind}_{s}" for kind in ("svt", "pcpvt") for s in "sbl"])
def test_twins_only_fits_without_attention_products(rows, name):
    """Ours too, and of Twins-SVT not with the half of them that is inside windows, either."""
    (row,) = pick(rows, "flops", name)
    assert row["verdict"] == "rounds to" and row["macs"] == variants.get(name).macs
    assert row["formula"] == "MACs - attention products"
    counts = [row["macs"]]
    if "svt" in name:  # 49 keys for each query in windows of 7, and in the map of the keys
        counts.append((row["counted"] + row["macs"]) // 2)
    for count in counts:
        assert ledger.compare_claim(row["claimed"], count, 10**9) != "rounds to"


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("msg_t", 3824520192), ("msg_s", 8464716288), ("msg_b", 14252364288),
        ("vit_tiny_patch16_224", 1258411200), ("vit_large_patch16_384", 191211058176),
        ("deit_base_patch16_384", 55539742464), ("deit3_medium_patch16_224", 8003576320),
        ("mixer_b16_224", 12620583936),
    ],
)  # fmt: skip
def test_flops_are_those_of_the_authors_tools(rows, name, counted):
    """To the last digit: `flops()` of MSG's authors, and fvcore for timm's models, as measured."""
    found = pick(rows, "flops", name)
    assert {row["counted"] for row in found} == {counted}
    assert all(row["verdict"] in ("rounds to", "cut off to") for row in found)
    assert all(row["macs"] == variants.get(name).macs < counted for row in found)


def test_vits_only_fit_with_norms(rows):
    """With 5 of a layer norm all figures are as printed; plain, at least 20 are not."""
    found = pick(rows, "flops", "vit_", "deit", "mixer_")
    assert {row["verdict"] for row in found} == {"rounds to", "cut off to"}
    plain = [ledger.compare_claim(row["claimed"], row["macs"], 10**9) for row in found]
    assert sum(verdict != "rounds to" for verdict in plain) >= 20


def test_norms_move_a_count_little(rows):
    """The docstring's bound: no verdict but a last digit rests on the inferred conventions."""
    found = [row for row in pick(rows, "flops", "") if " LN" in row["formula"]]
    assert len(found) == 74
    assert all(0 < row["counted"] / row["macs"] - 1 < 0.006 for row in found)


def test_cswin_dense_lies_between_without_and_with_pads(rows):
    for row in pick(rows, "flops", "cswin_", dense=True):
        if row["verdict"] == "within 1%":
            without = float(row["cause"].split()[1])
            assert without < row["claimed"] < row["counted"] / 1e9


@pytest.mark.parametrize(("row", "other"), [("swin_l", 2583), ("cswin_l", 2770)])
def test_what_the_causes_say(row, other):
    """The same row with the windows, or stripes, of the 384 pixel variant."""
    (entry,) = published.of(row, "ade20k")
    counted = ledger.count_flops({**entry, "backbone": row + "_384"}).counted
    assert round(counted / 1e9) == other
    assert f" {other} G" in ledger.UNEXPLAINED[row, "UPerNet", "flops"]


# -- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "counted", "also", "verdict"),
    [
        (4.5, 4_490_000_000, "", "rounds to"),
        (4.5, 4_449_999_999, "", "within 1.5%"),
        (4.5, 4_450_000_000, "", "rounds to"),
        (4.0, 4_049_999_999, "", "rounds to"),  # the printed zero counts
        (4, 4_400_000_000, "", "rounds to"),
        (267, 266_500_000_000, "", "rounds to"),
        (267, 266_400_000_000, "", "within 1%"),
        (23, 22_320_552_000, "", "differs by -3.0%"),
        (23, 22_320_552_000, "rounds up to", "rounds up to"),
        (23, 23_000_000_001, "rounds up to", "rounds to"),
        (22, 23_320_552_000, "rounds up to", "differs by +6.0%"),
        (4.6, 4_672_630_272, "cut off to", "cut off to"),
        (4.6, 4_572_630_272, "cut off to", "rounds to"),
        (4.6, 4_700_000_000, "cut off to", "differs by +2.2%"),
        (100, 101_000_000_000, "", "within 1%"),
        (100, 101_000_000_001, "", "within 1.5%"),
        (100, 98_499_999_999, "", "differs by -1.5%"),
    ],
)
def test_judge(claimed, counted, also, verdict):
    assert ledger.compare_claim(claimed, counted, 10**9, also=also) == verdict


# -- norms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swin_t", "swinv2_t", "cswin_t", "swin_mlp_t", "pale_t"])
@pytest.mark.parametrize("size", [(224, 224), (96, 200)])
def test_norm_elements_are_those_of_the_counters(name, size):
    body = dense_heads.backbone(variants.get(name).spec.name, False)
    norms = dense_heads.norm_elements(body, *size)
    with torch.device("meta"):
        report = analysis.count(create(name), size, trace=False)
    assert sum(norms) == report.norm_elements and (norms.batch > 0) == (name == "pale_t")


class Features(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner.features(x)


@pytest.mark.parametrize("name", ["swin_t", "pale_t"])
def test_norm_elements_of_a_dense_backbone(name):
    model = dense_heads.backbone(name, True)
    tally = counters.on_meta(Features(model), (1, 3, 160, 224))
    assert sum(dense_heads.norm_elements(model, 160, 224)) == tally.norms[""]
    assert sum(part.macs for part in model.cost(160, 224)) == tally.macs[""]


def test_norms_of_pale_by_kind():
    """Layer norms: two a block.  Batch norms: three a block, on the padded map."""
    spec = variants.get("pale_t").spec
    norms = dense_heads.norm_elements(dense_heads.backbone("pale_t", False), 160, 200)
    grids = spec.grids((160, 200))
    stages = list(zip(spec.stages, grids, strict=True))
    assert norms.layer == sum(2 * s.depth * s.dim * h * w for s, (h, w) in stages)
    up = lambda n: -(-n // 7) * 7  # noqa: E731
    assert norms.batch == sum(3 * s.depth * s.dim * up(h) * up(w) for s, (h, w) in stages)


# -- heads -------------------------------------------------------------------------------------

T, S, B = ([width * 2**i for i in range(4)] for width in (64, 96, 128))
COCO = [(200, 320), (100, 160), (50, 80), (25, 40)]
ADE = [(128, 512), (64, 256), (32, 128), (16, 64)]


def giga(layers):
    return round(sum(layer.macs for layer in layers) / 1e9, 1)


@pytest.mark.parametrize(
    ("dims", "mask", "upernet", "auxiliary"),
    [(T, 170.0, 842.3, 2.6), (S, 171.0, 845.4, 3.8), (B, 172.0, 848.5, 5.0)],
)
def test_head_figures(dims, mask, upernet, auxiliary):
    assert giga(dense_heads.layers("Mask R-CNN", dims, COCO)) == mask
    layers = dense_heads.layers("UPerNet", dims, ADE)
    assert giga(layers) == upernet
    assert giga([x._replace(run=True) for x in layers if x.part == "auxiliary"]) == auxiliary


def test_unknown_heads_are_refused():
    with pytest.raises(SpecError, match=r"no head is called 'UperNet'; did you mean 'UPerNet'\?"):
        dense_heads.layers("UperNet", T, ADE)
    with pytest.raises(SpecError, match="stands on 4 maps, not on 3 with 4 grids"):
        dense_heads.layers("UPerNet", T[:3], ADE)


class Detector(nn.Module):
    """torchvision's parts; `stages` box and mask heads, with `convs` 3x3 before one linear."""

    def __init__(self, dims, stages=1, convs=0):
        super().__init__()
        self.fpn = FeaturePyramidNetwork(dims, 256, LastLevelMaxPool())
        self.rpn = RPNHead(256, 3)
        self.boxes, self.masks = nn.ModuleList(), nn.ModuleList()
        for _ in range(stages):
            head = nn.Sequential(TwoMLPHead(256 * 49, 1024), FastRCNNPredictor(1024, 81))
            head[1].bbox_pred = nn.Linear(1024, 4 * 80)  # none for the background in mmdetection
            if convs:
                body = [nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False),
                                      nn.BatchNorm2d(256)) for _ in range(convs)]  # fmt: skip
                head = nn.Sequential(*body, nn.Flatten(), nn.Linear(256 * 49, 1024), head[1])
            self.boxes.append(head)
            self.masks.append(nn.Sequential(
                MaskRCNNHeads(256, (256,) * 4, 1), MaskRCNNPredictor(256, 256, 80)
            ))  # fmt: skip

    def forward(self, x):
        maps = OrderedDict(
            (str(i), x.new_empty(1, dim, *grid))
            for i, (dim, grid) in enumerate(zip(self.dims(), COCO, strict=True))
        )
        self.rpn(list(self.fpn(maps).values()))
        for box, mask in zip(self.boxes, self.masks, strict=True):
            box(x.new_empty(1000, 256, 7, 7))
            mask(x.new_empty(100, 256, 14, 14))

    def dims(self):
        return [block[0].in_channels for block in self.fpn.inner_blocks]


def conv(inputs, outputs, kernel):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class SemanticFPN(nn.Module):
    """Kirillov et al. 2019, written from mmsegmentation's description, to be run."""

    def __init__(self, dims):
        super().__init__()
        self.fpn = FeaturePyramidNetwork(dims, 256)
        self.levels = nn.ModuleList()
        for halvings in (0, 1, 2, 3):
            parts = [conv(256, 128, 3)]
            parts += [conv(128, 128, 3) for _ in range(halvings - 1)]
            self.levels.append(nn.ModuleList(parts))
        self.classes = nn.Conv2d(128, 150, 1)

    def forward(self, x):
        dims = [block[0].in_channels for block in self.fpn.inner_blocks]
        maps = OrderedDict(
            (str(i), x.new_empty(1, dim, *grid))
            for i, (dim, grid) in enumerate(zip(dims, ADE, strict=True))
        )
        total = 0
        for i, (m, parts) in enumerate(zip(self.fpn(maps).values(), self.levels, strict=True)):
            for part in parts:
                m = part(m)
                m = nn.functional.interpolate(m, scale_factor=2) if i else m
            total = total + m
        return self.classes(total)


class UPerNet(nn.Module):
    """Xiao et al. 2018, written from mmsegmentation's description, to be run."""

    def __init__(self, dims):
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), conv(dims[-1], 512, 1)) for s in (1, 2, 3, 6)
        )
        self.bottleneck = conv(dims[-1] + 4 * 512, 512, 3)
        self.lateral = nn.ModuleList(conv(dim, 512, 1) for dim in dims[:3])
        self.smooth = nn.ModuleList(conv(512, 512, 3) for _ in dims[:3])
        self.fuse, self.classes = conv(4 * 512, 512, 3), nn.Conv2d(512, 150, 1)
        self.auxiliary = nn.Sequential(conv(dims[2], 256, 3), nn.Conv2d(256, 150, 1))  # not run

    def forward(self, x):
        resize = nn.functional.interpolate
        maps = [x.new_empty(1, dim, *grid) for dim, grid in zip(self.dims(), ADE, strict=True)]
        pooled = [resize(pool(maps[-1]), ADE[-1]) for pool in self.pools]
        top = self.bottleneck(torch.cat([maps[-1], *pooled], 1))
        levels = [lateral(m) for lateral, m in zip(self.lateral, maps[:3], strict=True)] + [top]
        for i in (2, 1, 0):
            levels[i] = levels[i] + resize(levels[i + 1], ADE[i])
        levels[:3] = [smooth(level) for smooth, level in zip(self.smooth, levels[:3], strict=True)]
        return self.classes(self.fuse(torch.cat([resize(level, ADE[0]) for level in levels], 1)))

    def dims(self):
        return [*(part[0].in_channels for part in self.lateral), self.pools[0][1][0].in_channels]


@pytest.mark.parametrize("dims", [T, S, B])
@pytest.mark.parametrize(
    ("method", "grids", "make"),
    [
        ("Mask R-CNN", COCO, Detector),
        ("Cascade Mask R-CNN", COCO, lambda dims: Detector(dims, stages=3, convs=4)),
        ("UPerNet", ADE, UPerNet),
        ("Semantic FPN", ADE, SemanticFPN),
    ],
)
def test_heads_against_torch(method, grids, make, dims):
    """MACs, parameters and norm elements of the layer table are those of modules that are run."""
    with torch.device("meta"):
        model = make(dims)
    tally = counters.on_meta(model, (1, 3, 8, 8))
    layers = dense_heads.layers(method, dims, grids)
    assert not tally.uncounted
    assert sum(layer.macs for layer in layers) == tally.macs[""]
    assert sum(layer.norm_elements for layer in layers) == tally.norms[""]
    assert sum(layer.params for layer in layers) == sum(p.numel() for p in model.parameters())
    names = [(layer.part, layer.name) for layer in layers]
    assert len(set(names)) == len(names)


# -- the command -------------------------------------------------------------------------------

SMALL = ["--backbone", "swin_t", "cswin_l", "--task", "imagenet"]


def test_the_ledger_is_as_recorded(rows):
    assert audit.deviations(rows, audit.recorded(audit.RECORDED)) == []


def test_check_agrees(capsys):
    assert audit.main([*SMALL, "--check"]) == 0
    out, err = capsys.readouterr()
    assert "6 numbers" in out and err == ""


def test_check_names_a_changed_count(monkeypatch, capsys):
    real = ledger.count_flops
    monkeypatch.setattr(
        ledger, "count_flops", lambda row: real(row)._replace(counted=real(row).counted + 1)
    )
    assert audit.main([*SMALL, "--check"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "swin_t imagenet classification ImageNet-1K 224 flops: " in lines[0]
    assert "counted 4490566657, recorded 4490566656" in lines[0]


def test_check_names_a_changed_verdict(monkeypatch, capsys):
    monkeypatch.setattr(ledger, "UNEXPLAINED", {})
    assert audit.main([*SMALL, "--check"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "cswin_l imagenet classification ImageNet-22K 224 flops: "
        "verdict differs by +5.2%, recorded not reproducible: +5.2%"
    )


def test_check_names_new_and_missing_rows(rows):
    recorded = audit.recorded(audit.RECORDED)
    (new,) = audit.deviations(rows, recorded[1:])
    assert "swin_b_384 imagenet classification" in new and "not recorded: rounds to" in new
    (gone,) = audit.deviations(rows[1:], recorded)
    assert "swin_b_384 imagenet" in gone and gone.endswith("recorded, but in the ledger no more")


def test_check_without_a_record(monkeypatch, tmp_path):
    monkeypatch.setattr(audit, "RECORDED", tmp_path / "none.csv")
    with pytest.raises(SpecError, match=r"--check: .*none.csv: No such file"):
        audit.main([*SMALL, "--check"])


def test_csv_and_json_parse_back(rows, tmp_path):
    assert json.loads(audit.render(rows, "json"))["rows"] == rows
    read = table.read_csv(audit.render(rows, "csv"))
    assert read == [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in rows
    ]


@pytest.mark.parametrize("style", ["table", "md"])
def test_for_reading(rows, style):
    text = audit.render(rows, style)
    assert "second hand" in text and "4.2 G" in text and "310 numbers: 250 rounds to" in text
    assert text.rstrip().endswith("; 9 unconfirmed")
    assert len([line for line in text.splitlines() if "pale" in line]) == 12


def test_filters(tmp_path):
    out = tmp_path / "v2.json"
    words = ["--backbone", "swinv2_t", "pale_t", "--task", "coco", "--out", str(out)]
    assert audit.main(words) == 0
    found = json.loads(out.read_text())["rows"]
    assert [(row["backbone"], row["method"]) for row in found] == [("pale_t", "Mask R-CNN")]
    assert audit.main(["--backbone", "swinv2_t", "--out", str(out)]) == 0  # an alias
    assert {row["backbone"] for row in json.loads(out.read_text())["rows"]} == {"swinv2_t_w8"}
    assert audit.main(["--backbone", "timm:twins_pcpvt_small", "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["rows"]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tt", "no backbone is called 'swin_tt'; did you mean 'swin_t'"),
        ("axial_t", "--backbone axial_t: no published number of it is held here"),
    ],
)
def test_unknown_backbones_are_refused(name, message):
    with pytest.raises(SpecError, match=message.replace("?", r"\?")):
        audit.main(["--backbone", name])


def test_a_missing_plugin_is_refused():
    with pytest.raises(SpecError, match="--plugin no_such_module"):
        audit.main(["--plugin", "no_such_module", *SMALL])
