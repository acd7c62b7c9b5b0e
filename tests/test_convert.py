"""Weights of timm, torchvision, transformers and the authors, converted by the command itself:
every parameter drawn anew, logits equal to the source's own model, mistakes caught by --check."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_golden import CASES, GOLDEN, spec_of
from test_golden import read as read_golden
from test_peers import distance, small_torchvision, theirs
from tiny import images, randomise, state_hash

import backbones
from backbones import convert, weights
from backbones.files.detect_source import source_of
from backbones.files.storage import WeightsError
from backbones.names.key_rules import FAMILIES
from backbones.specs import construct, variants
from backbones.specs.writing import to_toml
from backbones.weights import resize
from backbones.weights.resize import Adapt

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

DIM, DEPTHS, HEADS = 16, [2, 2, 2, 2], [1, 2, 4, 8]
SMALL = {
    "embed_dim": DIM, "depths": DEPTHS, "num_heads": HEADS, "num_classes": 10, "img_size": 128,
    "window_size": 4,
}  # fmt: skip


def swin_timm(**fields):
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(**{**SMALL, **fields})


def swinv2_timm(**fields):
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return SwinTransformerV2(**{**SMALL, **fields})


def swin_hf(version: str = "Swin", **fields):
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    small = {
        "image_size": 128, "window_size": 4, "embed_dim": DIM, "depths": DEPTHS,
        "num_heads": HEADS, "num_labels": 10, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    config = getattr(transformers, f"{version}Config")(**{**small, **fields})
    return getattr(transformers, f"{version}ForImageClassification")(config)


def stored(model, folder, *, split: bool = False):
    """A peer's file after drawing everything anew."""
    path = folder / "theirs.safetensors"
    save_file({k: v.contiguous().clone() for k, v in theirs(model, split=split).items()}, path)
    return path


def run(capsys, *args) -> tuple[int, str]:
    code = convert.main([str(arg) for arg in args])
    return code, capsys.readouterr().out


V2_TOLD = ("--source-window", "4", "--pretrained-window", "0", "--source-img-size", "128")
AT_384 = {"img_size": 384, "window_size": 12}
FROM_12 = {"pretrained_window_sizes": (12, 12, 12, 6)}
TIMM = {  # our name, theirs, and what makes it of another one
    "swin_t": ("swin_tiny_patch4_window7_224", {}),
    "swin_s": ("swin_small_patch4_window7_224", {}),
    "swin_b": ("swin_base_patch4_window7_224", {}),
    "swin_t_384": ("swin_tiny_patch4_window7_224", AT_384),
    "swin_s_384": ("swin_small_patch4_window7_224", AT_384),
    "swin_b_384": ("swin_base_patch4_window12_384", {}),
    "swinv2_t_w8": ("swinv2_tiny_window8_256", {}),
    "swinv2_s_w8": ("swinv2_small_window8_256", {}),
    "swinv2_b_w8": ("swinv2_base_window8_256", {}),
    "swinv2_t_w16": ("swinv2_tiny_window16_256", {}),
    "swinv2_s_w16": ("swinv2_small_window16_256", {}),
    "swinv2_b_w16": ("swinv2_base_window16_256", {}),
    "swinv2_t_w12to16": ("swinv2_tiny_window16_256", FROM_12),
    "swinv2_s_w12to16": ("swinv2_small_window16_256", FROM_12),
    "swinv2_b_w12to16": ("swinv2_base_window12to16_192to256", {}),
}
TORCHVISION = {
    "swin_t": "swin_t", "swin_s": "swin_s", "swin_b": "swin_b",
    "swinv2_t_w8": "swin_v2_t", "swinv2_s_w8": "swin_v2_s", "swinv2_b_w8": "swin_v2_b",
}  # fmt: skip
HF_TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24],
           "num_labels": 1000}  # fmt: skip
HF = {
    "swin_t": ("Swin", {"image_size": 224, "window_size": 7}),
    "swinv2_t_w8": ("Swinv2", {"image_size": 256, "window_size": 8}),
}
FULL = [(source, name) for source, names in (("timm", TIMM), ("torchvision", TORCHVISION),
                                             ("transformers", HF)) for name in names]  # fmt: skip
IN_SECONDS = {("timm", "swin_t"), ("torchvision", "swinv2_t_w8")}  # the others: narrower, below


def full_size(source: str, name: str):
    if source == "timm":
        theirs_, fields = TIMM[name]
        return timm.create_model(theirs_, **fields)
    if source == "torchvision":
        return getattr(torchvision.models, TORCHVISION[name])()
    version, fields = HF[name]
    return swin_hf(version, **fields, **HF_TINY)


def told_of(source: str, name: str) -> tuple[str, ...]:
    """What no shape in these files says."""
    if "v2" not in name:
        return "--source-img-size", "384" if "384" in name else "224"
    old, _, new = name.split("_w")[1].rpartition("to")
    window = () if source == "torchvision" else ("--source-window", new)
    pretrained = "12,12,12,6" if old else "0"
    return "--source-img-size", "256", "--pretrained-window", pretrained, *window


def shape_of(spec):
    """Its stages, but for shift, which nothing tells apart where one window is the map."""
    mixers = [stage.mixers[0] for stage in spec.resolve().stages]
    return [
        (stage.dim, stage.depth, stage.heads, dataclasses.replace(mixer, shift=True))
        for stage, mixer in zip(spec.stages, mixers, strict=True)
    ]


@pytest.mark.parametrize(("source", "name"), [
    pytest.param(*case, marks=[] if case in IN_SECONDS else [pytest.mark.slow]) for case in FULL
])  # fmt: skip
def test_full_size(source, name, tmp_path, capsys):
    """The file alone gives the variant's stages, but for what it is told; --check agrees, the
    written file's logits are the peer's, and written back in their names it is what it was."""
    peer = full_size(source, name)
    path = stored(peer, tmp_path, split="v2" in name and source == "torchvision")
    if source == "transformers":  # whose files have other names than its modules
        peer.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    out, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    code, text = run(capsys, path, "--to", out, "--check", *told_of(source, name))
    assert code == 0 and "check: equal" in text and f"names of {source}" in text
    ours = weights.load(None, out).model.eval()
    if name in variants.names():
        assert shape_of(ours.spec) == shape_of(backbones.parse(name))
    x = images(1, 3, *ours.spec.img_size, seed=3)
    with torch.no_grad():
        wanted = peer(x)
        assert distance(ours(x), wanted if source != "transformers" else wanted.logits) <= 1
    assert run(capsys, out, "--to", back, "--as", source)[0] == 0
    assert_same_weights(load_file(back), load_file(path))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: swinv2_timm(img_size=256, window_size=8), ("--source-window", "8")),
        (lambda: small_torchvision("swin", (256, 256), 4), ()),
        (lambda: small_torchvision("swinv2", (256, 256), 8), ()),
    ],
)
def test_small_parity(make, told, tmp_path, capsys):
    """The same narrower: Swin V2 w8 of timm, and torchvision, whose files tell V2's windows."""
    path = stored(make(), tmp_path, split=True)
    out = tmp_path / "o.safetensors"
    told = (*told, "--pretrained-window", "0", "--source-img-size", "256")
    code, text = run(capsys, path, "--to", out, "--check", *told)
    assert code == 0 and "check: equal" in text


@pytest.mark.parametrize("version", ["Swin", "Swinv2"])
def test_transformers_parity(version, tmp_path, capsys):
    peer = swin_hf(version)
    theirs(peer)
    peer.save_pretrained(tmp_path)
    told = ("--source-img-size", 128) if version == "Swin" else V2_TOLD
    path = tmp_path / "model.safetensors"
    code, text = run(capsys, path, "--to", tmp_path / "o.safetensors", "--check", *told)
    assert code == 0 and "check: equal" in text and "names of transformers" in text
    ours = weights.load(None, tmp_path / "o.safetensors").model.eval()
    x = images(2, 3, 128, 128)
    with torch.no_grad():
        assert distance(ours(x), peer(x).logits) <= 1


@pytest.mark.parametrize("case", [case for case in CASES if "dense" not in case])
def test_authors_files(case, tmp_path, capsys):
    """The authors' own files: spec from the shapes (or told), outputs as stored."""
    about, _, io = read_golden(case)
    out = tmp_path / "o.safetensors"
    told = []
    side = "x".join(map(str, io["input"].shape[2:]))
    told += ["--source-img-size", side]
    if about["family"] == "cswin":
        args = about["constructor"]
        told += ["--source-window", ",".join(map(str, args["split_size"]))]
        told += ["--heads", ",".join(map(str, args["num_heads"]))]
    if about["family"] in FAMILIES:  # whose shapes are compared with the variants'
        told = ["--spec", str(tmp_path / "spec.toml")]
        (tmp_path / "spec.toml").write_text(to_toml(backbones.parse(spec_of(case, about))))
    path, stored_io = (GOLDEN / case / f"{name}.safetensors" for name in ("weights", "io"))
    code, text = run(capsys, path, "--to", out, "--check", stored_io, *told)
    assert code == 0 and "check: equal" in text, text.splitlines()[-1]
    assert f"names of {about['family']}" in text


def test_dense_cswin(tmp_path):
    case = next(case for case in CASES if "dense" in case)
    about, state, io = read_golden(case)
    args = about["constructor"]
    windows = [(s, s) for s in args["split_size"]]
    ours = weights.load(
        None, state, window=windows, heads=args["num_heads"], img_size=tuple(io["input"].shape[2:])
    ).model
    assert ours.spec.stages == backbones.parse(spec_of(case, about)).resolve().stages
    with torch.no_grad():
        maps = ours.eval().features(io["input"])
    assert all(distance(m, io[f"out{i}"]) <= 1 for i, m in enumerate(maps))


MSG = "msg_t/1.dim=16/2.dim=32/3.dim=64/4.dim=128/2.depth=1/3.depth=2/4.depth=1/num_classes=5"


@pytest.mark.parametrize("regions", [(4, 4, 2, 1), (2, 4, 1, 1), (4, 2, 2, 1)])
def test_messengers(regions):
    """Heads and windows are told by the tables, regions after the first stage by nothing: those
    of the variants are taken where the first is theirs, and others need the spec."""
    text = MSG + "".join(
        f"/{i}=messenger:size=4,region={region}" for i, region in enumerate(regions, 1)
    )
    model = randomise(backbones.create(text))
    state = weights.export(model, "msg")
    assert source_of(state) == "msg" and state["msg_tokens"].shape == (1, regions[0] ** 2, 1, 16)
    assert state_hash(weights.load(text, state).model) == state_hash(model)
    assert_same_weights(weights.export(weights.load(text, state).model, "msg"), state)
    if regions[0] == 4:
        found = weights.load(None, state).model.spec
        told = [stage.messenger.region for stage in found.stages]
        assert told == [4, 4, 2, 1] and (found.stages == model.spec.stages) == (regions[1] == 4)
    else:
        with pytest.raises(WeightsError, match="give --spec"):
            weights.load(None, state)
    hybrid, report = weights.load(
        text.replace(f"3=messenger:size=4,region={regions[2]}", "3=window:size=4"), state,
        partial="replaced",
    )  # fmt: skip
    fresh = {row["tensor"] for row in report if row["status"] == "fresh"}
    again = "stages.3.beside.tokens"  # where messengers begin anew
    assert again in fresh and hybrid.spec.stages[3].messenger
    assert all(name == again or name.startswith("stages.2.blocks.") for name in fresh)
    with pytest.raises(WeightsError, match="msg_tokens is not finite"):
        weights.load(model, {**state, "msg_tokens": state["msg_tokens"] * float("nan")})
    with pytest.raises(WeightsError, match=r"qk_scale=0\.5.*; msg would run it as messenger"):
        weights.export(backbones.create(text.replace("region=1", "region=1,qk_scale=0.5")), "msg")


# -- there and back ----------------------------------------------------------------------------


COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")
TOLD_SMALL = {"window": [(4, 4)], "pretrained_window": [None], "img_size": (128, 128)}
ROUND_TRIPS = {
    "timm swin": swin_timm,
    "timm swinv2": swinv2_timm,
    "torchvision swin": lambda: small_torchvision("swin", (128, 128), 4),
    "torchvision swinv2": lambda: small_torchvision("swinv2", (128, 128), 4),
    "transformers Swin": lambda: swin_hf("Swin"),
    "transformers Swin positions": lambda: swin_hf("Swin", use_absolute_embeddings=True),
    "transformers Swinv2": lambda: swin_hf("Swinv2"),
}


def assert_same_weights(back, state):
    """Every weight of theirs, under their names, bit by bit; what they compute is theirs to do."""
    wanted = {key: value for key, value in state.items() if not key.endswith(COMPUTED)}
    assert back.keys() == wanted.keys()
    assert all(back[key].dtype == wanted[key].dtype for key in wanted)
    assert all(torch.equal(back[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_round_trip_of_libraries(case, tmp_path, capsys):
    """Theirs -> ours -> file -> theirs, by the command, and their own model takes it."""
    peer = ROUND_TRIPS[case]()
    path, ours, back = (tmp_path / f"{name}.safetensors" for name in ("theirs", "ours", "back"))
    target = case.split()[0]
    theirs(peer, split=case == "torchvision swinv2")
    if target == "transformers":  # whose files have other names than its modules
        peer.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        save_file({k: v.clone() for k, v in peer.state_dict().items()}, path)
    assert run(capsys, path, "--to", ours, *V2_TOLD)[0] == 0
    assert run(capsys, ours, "--to", back, "--as", target)[0] == 0
    assert_same_weights(load_file(back), load_file(path))
    before = {k: v.clone() for k, v in peer.state_dict().items()}
    for parameter in peer.parameters():
        parameter.data.zero_()
    if target == "transformers":
        peer = type(peer).from_pretrained(None, config=peer.config, state_dict=load_file(back))
    else:
        missing, unexpected = peer.load_state_dict(load_file(back), strict=False)
        assert not unexpected and all(key.endswith(COMPUTED) for key in missing)
    assert all(torch.equal(before[key], value) for key, value in peer.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_round_trip_of_authors(case):
    """The authors' own state dicts: Swin, Swin V2, Swin-MLP, CSWin, and the dense CSWin."""
    about, state, io = read_golden(case)
    args = about["constructor"]
    told = {"img_size": tuple(io["input"].shape[2:])}
    if about["family"] == "cswin":
        told |= {"window": [(s, s) for s in args["split_size"]], "heads": args["num_heads"]}
    spec = spec_of(case, about) if about["family"] in FAMILIES else None
    ours = weights.load(spec, state, **({} if spec else told)).model
    assert_same_weights(weights.export(ours, about["family"]), state)


AUTHORS = {
    "swin_mlp": "swinmlp", "swinv2": "swinv2", "swin": "swin", "cswin": "cswin",
    "shuffletransformer": "shuffle", "crossformer": "crossformer", "dat": "dat", "msg": "msg",
    **dict.fromkeys(("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"), "pvt"),
    **dict.fromkeys(("vit_tiny", "vit_small", "deit_tiny", "deit3_small"), "vit"),
    "vit_base": "vit_torchvision", "mixer_s": "mixer",
}  # fmt: skip
FAST = ("_t", "_t_w16", "pvt_tiny", "vit_tiny_patch16_224", "mixer_s32_224")
OF_AUTHORS = [
    (name, next(AUTHORS[start] for start in AUTHORS if name.startswith(start)))
    for name in variants.names()
    if name.startswith(tuple(AUTHORS))
]


@pytest.mark.parametrize(("name", "source"), [
    pytest.param(*case, marks=[] if case[0].endswith(FAST) else [pytest.mark.slow])
    for case in OF_AUTHORS
])  # fmt: skip
def test_round_trip_of_variants(name, source):
    """Ours -> their names -> ours, of the authors' variants and of one map: the same bits."""
    model = randomise(backbones.create(name))
    before = state_hash(model)
    there = weights.export(model, source)
    assert source == source_of(there) or (source, source_of(there)) == ("swin", "swinv2")
    again = weights.load(backbones.create(name), there, source).model
    assert state_hash(again) == before


def test_other_names_are_no_other_numbers():
    """Between libraries: timm's weights written for each of the others come back the same."""
    for make, family in ((swin_timm, "swin"), (swinv2_timm, "swinv2")):
        ours = weights.load(None, theirs(make()), **TOLD_SMALL).model
        for target in ("timm", family, "torchvision", "transformers"):
            again = weights.export(ours, target)
            assert source_of(again) == target
            assert state_hash(weights.load(ours, again).model) == state_hash(ours)


@pytest.mark.parametrize(
    ("edit", "target", "asked"),
    [
        ("3=pale:size=4", "timm", "has nothing of the kind"),
        ("3=full", "timm", "stage 3 is full; timm would run it as window:size=4"),
        ("4=window:size=2", "timm", "stage 4 is window:size=2; timm would run it as window:size=4"),
        ("2=window:size=2x4", "swin", "stage 2 is window:size=2x4; swin would"),
        ("2=window:size=4,qk_scale=0.5", "swin", "stage 2 is .*qk_scale=0.5.*; swin would run"),
        ("2=window:size=4+window:size=4,shift=false", "swin", "stage 2 is .*shift=false"),
        ("norm=res_post", "swin", "norm is res_post"),
        ("position=absolute", "timm", "stem.position"),
        ("patch_size=4", "cswin", "cswin has nothing"),
        ("patch_size=4", "tim", "no names of 'tim'"),
    ],
)
def test_what_another_library_would_run_otherwise_is_refused(edit, target, asked):
    """Their names may fit what their code computes in another way."""
    model = weights.load(None, theirs(swin_timm()), **TOLD_SMALL).model
    spec = backbones.from_dict({**model.spec.to_dict(), "name": "small"})
    field, _, value = edit.partition("=")
    if field.isdecimal():
        stages = list(spec.stages)
        mixers = backbones.specs.stage.read_pattern(value)
        stages[int(field) - 1] = dataclasses.replace(stages[int(field) - 1], mixers=mixers)
        spec = dataclasses.replace(spec, stages=tuple(stages))
    else:
        spec = construct.edit(spec, "small", **{field: value})
    with pytest.raises(WeightsError, match=asked):
        weights.export(backbones.HierarchicalBackbone(spec), target)


# -- parts of detectors ------------------------------------------------------------------------


def dense_swin():
    """(a detector's state dict around the authors' dense Swin, the classifier's own)."""
    plain = weights.export(weights.load(None, theirs(swin_timm()), **TOLD_SMALL).model, "swin")
    body = {k: v for k, v in plain.items() if not k.startswith(("norm.", "head."))}
    for i in range(4):
        body[f"norm{i}.weight"], body[f"norm{i}.bias"] = images(2, DIM * 2**i, seed=i)
    detector = {f"backbone.{key}": value.clone() for key, value in body.items()}
    detector |= {"neck.fpn.weight": torch.ones(2), "roi_head.bbox_head.fc_cls.bias": torch.ones(3)}
    return detector, plain


def test_dense_swin_of_a_detector(tmp_path, capsys):
    """mmdet's `backbone.` with the authors' norm0 to norm3: found by itself; the heads are in the
    report, and the maps are the classifier's, normed."""
    (detector, plain), image = dense_swin(), images(1, 3, 128, 128)
    path, out = tmp_path / "detector.safetensors", tmp_path / "o.safetensors"
    save_file(detector, path)
    side = "64"  # whose last map is half a window: dense backbones pad it, classifiers shrink
    with pytest.raises(WeightsError, match=r"did you mean 'backbone\.'"):
        run(capsys, path, "--to", out, "--source-img-size", side, "--prefix", "backbon.")
    told = ("--to", out, "--source-img-size", side, "--format", "json")
    named, found = (run(capsys, path, *told, *prefix) for prefix in (("--prefix", "backbone."), ()))
    assert named == found
    code, text = found
    dropped = {row["from"] for row in json.loads(text)["rows"] if row["status"] == "left out"}
    assert code == 0 and dropped == {"neck.fpn.weight", "roi_head.bbox_head.fc_cls.bias"}
    dense = weights.load(None, out).model.eval()
    assert dense.spec.out_norms and dense.spec.num_classes == 0 and not dense.spec.final_norm
    classifier = weights.load(None, plain, img_size=tuple(image.shape[2:])).model.eval()
    with torch.no_grad():
        bare, maps = classifier.features(image), dense.features(image)
    for i, (found, wanted) in enumerate(zip(maps, bare, strict=True)):
        scale, shift = (detector[f"backbone.norm{i}.{part}"] for part in ("weight", "bias"))
        wanted = torch.nn.functional.layer_norm(
            wanted.movedim(1, -1), wanted.shape[1:2], scale, shift
        ).movedim(-1, 1)
        assert distance(found, wanted) <= 1
    loaded = weights.load(dense, detector, prefix="backbone.")
    assert {row["from"] for row in loaded.report if row["status"] == "left out"} == dropped
    body = {k.removeprefix("backbone."): v for k, v in detector.items() if k not in dropped}
    assert_same_weights(weights.export(dense, "swin"), body)


# -- mistakes of equal shapes ------------------------------------------------------------------


def permuted_merge(state):
    for key in [k for k in state if "downsample.reduction.weight" in k]:
        parts = state[key].chunk(4, -1)
        state[key] = torch.cat([parts[i] for i in (0, 2, 1, 3)], -1)


def swapped_qk(state):
    for key in [k for k in state if "mixer.qkv.weight" in k]:
        q, k, v = state[key].chunk(3)
        state[key] = torch.cat([k, q, v])


def transposed_table(state):
    for key in [k for k in state if k.endswith("bias.table")]:
        side = round(len(state[key]) ** 0.5)
        state[key] = state[key].unflatten(0, (side, side)).transpose(0, 1).flatten(0, 1)


def swapped_pairs(state):
    """Two equal halves of stage 2, each a window and a shifted window block."""
    for key in [k for k in state if k.startswith(("stages.1.blocks.0.", "stages.1.blocks.1."))]:
        other = key.replace(".blocks.0.", ".blocks.2.").replace(".blocks.1.", ".blocks.3.")
        state[key], state[other] = state[other], state[key]


def swapped_blocks(state):
    for key in [k for k in state if ".blocks.0." in k]:
        other = key.replace(".blocks.0.", ".blocks.1.")
        state[key], state[other] = state[other], state[key]


MISTAKES = [(make, m) for make in (swin_timm, swinv2_timm)
            for m in (permuted_merge, swapped_qk, transposed_table, swapped_blocks, swapped_pairs)
            if not (make is swinv2_timm and m is transposed_table)]  # fmt: skip


@pytest.mark.parametrize(("make", "mistake"), MISTAKES)
def test_check_catches_wrong_orders(make, mistake, tmp_path, capsys, monkeypatch):
    """A converter that makes this mistake: same shapes, exit code 1 and DIFFERS."""
    from backbones.weights import loading, match

    path = stored(make(depths=[2, 4, 2, 2]), tmp_path)
    right = match.plan

    def wrong(*args, **kwargs):
        found, rows = right(*args, **kwargs)
        before = {name: tensor.clone() for name, tensor in found.items()}
        mistake(found)
        assert any(not torch.equal(before[name], found[name]) for name in found)
        return found, rows

    monkeypatch.setattr(loading, "plan", wrong)
    code, text = run(capsys, path, "--to", tmp_path / "o.safetensors", "--check", *V2_TOLD)
    assert code == 1 and "DIFFERS" in text


# -- another window, size, head, input ---------------------------------------------------------


@pytest.mark.parametrize("make", [swin_timm, swinv2_timm])
@pytest.mark.parametrize("way", ["bicubic", "timm"])
def test_another_window_and_size(make, way, tmp_path, capsys):
    """Windows 7 -> 12 and 224 -> 384, a new head and one input channel: built as timm builds it,
    and equal to timm where timm's way is taken."""
    path = stored(make(img_size=224, window_size=7), tmp_path)
    out = tmp_path / "o.safetensors"
    code, text = run(
        capsys, path, "--to", out, "--source-window", 7, "--pretrained-window", 0,
        "--source-img-size", 224, "--window", 12, "--img-size", 384, "--resize", way, "--check",
    )  # fmt: skip
    assert code == 0
    ours = weights.load(None, out).model.eval()
    assert [s.mixers[0].size for s in ours.spec.stages] == [(12, 12)] * 4
    fields = {} if make is swin_timm else {"pretrained_window_sizes": (7, 7, 7, 7)}
    peer = make(img_size=384, window_size=12, **fields).eval()
    state = load_file(path)
    if make is swin_timm:
        from timm.models.swin_transformer import checkpoint_filter_fn

        state = checkpoint_filter_fn(state, peer)
        assert "resized" in text
    else:
        assert [s.mixers[0].pretrained_window for s in ours.spec.stages] == [(7, 7)] * 4
    peer.load_state_dict(state)
    x = images(1, 3, 384, 384)
    with torch.no_grad():
        far = distance(ours(x), peer(x))
    assert far <= 1 if way == "timm" or make is swinv2_timm else far > 10


@pytest.mark.parametrize("make", [swin_timm, swinv2_timm])
@pytest.mark.parametrize("way", ["bicubic", "timm"])
def test_the_same_window_and_size_keep_the_bits(make, way, tmp_path, capsys):
    """Asked for what they are already: nothing is resized, not even by a bit."""
    path = stored(make(), tmp_path)
    plain, same = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run(capsys, path, "--to", plain, *V2_TOLD)[0] == 0
    code, text = run(capsys, path, "--to", same, *V2_TOLD, "--window", 4, "--img-size", 128,
                     "--resize", way)  # fmt: skip
    assert code == 0 and "0 resized" in text
    wanted, found = load_file(plain), load_file(same)
    assert wanted.keys() == found.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def authors_resize(table, old, new):
    """utils.py of microsoft/Swin-Transformer, lines 65 to 81, as they stand for a square."""
    length, heads = table.shape
    s1, s2 = int(length**0.5), 2 * new - 1
    resized = torch.nn.functional.interpolate(
        table.permute(1, 0).view(1, heads, s1, s1), size=(s2, s2), mode="bicubic"
    )
    return resized.view(heads, s2 * s2).permute(1, 0)


def test_tables():
    """Bicubic is the authors'; the same window keeps the bits; a constant stays one."""
    table = images(13 * 13, 3)
    assert torch.equal(resize.table(table, (7, 7), (12, 12)), authors_resize(table, 7, 12))
    for way in ("bicubic", "timm"):
        assert torch.equal(resize.table(table, (7, 7), (7, 7), way), table)
        flat = resize.table(torch.full((7 * 15, 3), 0.7), (4, 8), (7, 5), way)
        limit = 3e-6  # 16 products in float32
        assert flat.shape == (13 * 9, 3) and (flat - 0.7).abs().amax() < limit
        wide = resize.table(images(7 * 15, 3), (4, 8), (4, 8), way)
        assert torch.equal(wide, images(7 * 15, 3))
    assert torch.equal(resize.positions(images(1, 3, 4, 6), (4, 6)), images(1, 3, 4, 6))
    with pytest.raises(ValueError, match="no square window"):
        resize.square(7 * 15, "table")
    with pytest.raises(backbones.SpecError, match="did you mean 'bicubic'"):
        Adapt(resize="bicubik")


def test_positions_classes_and_channels(tmp_path, capsys):
    """Absolute positions on another grid, a new head, other channels; nothing without asking."""
    small = "swin_t/position=absolute/img_size=64/num_classes=10" + "".join(
        f"/{i}.dim={8 * 2**i}/{i}.heads=2/{i}.depth=2/{i}=window:size=2" for i in range(1, 5)
    )
    model = backbones.create(small)
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    weights.save(model, path)
    code, text = run(capsys, path, "--to", out, "--img-size", "96x128", "--num-classes", 3,
                     "--in-channels", 1, "--format", "json")  # fmt: skip
    rows = json.loads(text)["rows"]
    status = {row["tensor"] or row["from"]: row["status"] for row in rows if row["tensor"]}
    assert code == 0 and status["stem.position"] == "resized" == status["stem.conv.weight"]
    assert status["head.weight"] == status["head.bias"] == "fresh"
    assert {row["from"] for row in rows if row["status"] == "left out"} == {
        "head.weight", "head.bias",
    }  # fmt: skip
    new = weights.load(None, out).model
    assert new.spec.num_classes == 3 and new.stem.position.shape[2:] == (24, 32)
    grey = images(1, 1, 64, 64).expand(-1, 3, -1, -1)
    with torch.no_grad():
        assert torch.allclose(new.stem.conv(grey[:, :1]), model.stem.conv(grey), atol=1e-5)
        five = resize.inputs(model.stem.conv.weight, 6)
        same = torch.nn.functional.conv2d(grey[:, :1].expand(-1, 6, -1, -1), five, stride=4)
        bare = torch.nn.functional.conv2d(grey, model.stem.conv.weight, stride=4)
        assert torch.allclose(same, bare, atol=1e-5)
    before = state_hash(new)
    for how, hint in ((None, "Adapt"), (Adapt(new_head=True), "resize")):
        with pytest.raises(WeightsError, match=hint):
            weights.load(new, path, how=how)
    assert state_hash(new) == before


# -- what is asked for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "told", "asked"),
    [
        (swin_timm, {}, "--source-img-size"),
        (swinv2_timm, {"img_size": (128, 128)}, "--source-window"),
        (swinv2_timm, {"img_size": (128, 128), "window": [(4, 4)]}, "--pretrained-window"),
    ],
)
def test_unknown_is_asked_for_by_name(make, told, asked):
    state = make().state_dict()
    with pytest.raises(WeightsError, match=asked) as info:
        weights.load(None, state, **told)
    assert "--spec" in str(info.value) and "\n" not in str(info.value)


def test_cswin_asks_for_stripes_and_heads():
    _, state, _ = read_golden("cswin/sq64_s1222")
    with pytest.raises(WeightsError, match="--heads"):
        weights.load(None, state)
    with pytest.raises(WeightsError, match="--source-window"):
        weights.load(None, state, heads=[2, 4, 8, 16])
    with pytest.raises(WeightsError, match="no known source"):
        weights.load(None, {"a": torch.zeros(2)})


def test_warnings_are_errors_of_disagreeing_folders(tmp_path):
    """config.json that someone edited: the header counts, and it is said."""
    model = weights.load(None, swin_timm().state_dict(), img_size=(128, 128)).model
    weights.save_pretrained(model, tmp_path)
    config = tmp_path / "config.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.from_pretrained(tmp_path)
    edited = json.loads(config.read_text())
    edited["spec"]["img_size"] = 64
    config.write_text(json.dumps(edited))
    with pytest.warns(UserWarning, match="is not the spec"):
        weights.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json"):
        weights.from_pretrained(tmp_path)
