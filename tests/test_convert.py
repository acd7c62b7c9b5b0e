"""Weights of timm, torchvision, transformers and the authors, converted by the command itself:
every parameter drawn anew, logits equal to the source's own model, mistakes caught by --check."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_golden import CASES, GOLDEN, spec_of
from test_golden import read as read_golden
from test_peers import distance, small_torchvision, theirs
from tiny import images, state_hash

import backbones
from backbones import convert, resize, weights
from backbones.resize import Adapt
from backbones.storage import WeightsError

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
    config = getattr(transformers, f"{version}Config")(
        image_size=128, window_size=4, embed_dim=DIM, depths=DEPTHS, num_heads=HEADS,
        num_labels=10, layer_norm_eps=1e-5, **fields,
    )  # fmt: skip
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
FULL_SIZE = {
    "timm-swin_t": (lambda: timm.create_model("swin_tiny_patch4_window7_224"),
                    ("--source-img-size", "224"), "swin_t"),
    "torchvision-swin_t": (lambda: torchvision.models.swin_t(),
                           ("--source-img-size", "224"), "swin_t"),
    "torchvision-swin_v2_t": (lambda: torchvision.models.swin_v2_t(),
                              ("--source-img-size", "256"), "swinv2_t_w8"),
    "timm-swinv2_t_w8": (lambda: timm.create_model("swinv2_tiny_window8_256"),
                         ("--source-img-size", "256", "--source-window", "8",
                          "--pretrained-window", "0"), "swinv2_t_w8"),
}  # fmt: skip
TIMM_SLOW = {
    "swin_small_patch4_window7_224": "swin_s", "swin_base_patch4_window7_224": "swin_b",
    "swin_base_patch4_window12_384": "swin_b_384", "swinv2_small_window8_256": "swinv2_s_w8",
    "swinv2_tiny_window16_256": "swinv2_t_w16", "swinv2_small_window16_256": "swinv2_s_w16",
    "swinv2_base_window8_256": "swinv2_b_w8", "swinv2_base_window16_256": "swinv2_b_w16",
    "swinv2_base_window12to16_192to256": "swinv2_b_w12to16",
}  # fmt: skip


IN_MINUTES = ("timm-swinv2_t_w8", "torchvision-swin_t")  # ten seconds each; small ones below


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=[pytest.mark.slow] * (case in IN_MINUTES)) for case in FULL_SIZE
])  # fmt: skip
def test_full_size_parity(case, tmp_path, capsys):
    """The file alone gives the variant's spec, but for what it is told; --check agrees, and the
    written file's logits are the peer's."""
    make, told, name = FULL_SIZE[case]
    peer = make()
    path = stored(peer, tmp_path, split="v2" in case and "torchvision" in case)
    out = tmp_path / "ours.safetensors"
    code, text = run(capsys, path, "--to", out, "--check", *told)
    assert code == 0 and "check: equal" in text
    ours = weights.load(None, out).model.eval()
    wanted = backbones.parse(name).resolve()
    assert [s.mixers[0].size for s in ours.spec.stages] == [s.mixers[0].size for s in wanted.stages]
    x = images(1, 3, *ours.spec.img_size, seed=3)
    with torch.no_grad():
        assert distance(ours(x), peer(x)) <= 1


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


@pytest.mark.slow
@pytest.mark.parametrize("peer_name", TIMM_SLOW)
def test_full_list_parity(peer_name, tmp_path, capsys):
    peer = timm.create_model(peer_name)
    path = stored(peer, tmp_path)
    name = TIMM_SLOW[peer_name]
    code, text = run(capsys, path, "--to", tmp_path / "o.safetensors", "--spec", name, "--check")
    assert code == 0 and "check: equal" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_s", "swin_b", "swin_v2_s", "swin_v2_b"])
def test_full_list_torchvision(name, tmp_path, capsys):
    path = stored(getattr(torchvision.models, name)(), tmp_path, split="v2" in name)
    size = "256" if "v2" in name else "224"
    out = tmp_path / "o.safetensors"
    assert run(capsys, path, "--to", out, "--source-img-size", size, "--check")[0] == 0


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


# -- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [swin_timm, swinv2_timm])
def test_round_trip_is_bit_equal(make, tmp_path):
    """timm -> ours -> file -> ours -> timm."""
    state = theirs(make())
    told = {"window": [(4, 4)], "pretrained_window": [None], "img_size": (128, 128)}
    ours = weights.load(None, state, **told).model
    weights.save_pretrained(ours, tmp_path / "folder")
    back = weights.export(weights.from_pretrained(tmp_path / "folder"), "timm")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    for target in ("swin", "swinv2"):
        again = weights.export(ours, target)
        assert state_hash(weights.load(ours, again, target).model) == state_hash(ours)
    with pytest.raises(WeightsError, match="no names of 'tim'"):
        weights.export(ours, "tim")


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


def swapped_blocks(state):
    for key in [k for k in state if ".blocks.0." in k]:
        other = key.replace(".blocks.0.", ".blocks.1.")
        state[key], state[other] = state[other], state[key]


MISTAKES = [(make, m) for make in (swin_timm, swinv2_timm)
            for m in (permuted_merge, swapped_qk, transposed_table, swapped_blocks)
            if not (make is swinv2_timm and m is transposed_table)]  # fmt: skip


@pytest.mark.parametrize(("make", "mistake"), MISTAKES)
def test_check_catches_wrong_orders(make, mistake, tmp_path, capsys, monkeypatch):
    """A converter that makes this mistake: same shapes, exit code 1 and DIFFERS."""
    from backbones import planning

    path = stored(make(), tmp_path)
    right = planning.plan

    def wrong(*args, **kwargs):
        found, rows = right(*args, **kwargs)
        before = {name: tensor.clone() for name, tensor in found.items()}
        mistake(found)
        assert any(not torch.equal(before[name], found[name]) for name in found)
        return found, rows

    monkeypatch.setattr(weights, "plan", wrong)
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
        assert flat.shape == (13 * 9, 3) and (flat - 0.7).abs().amax() < 1e-6
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
    assert status["head.weight"] == status["head.bias"] == "missing"
    assert {row["from"] for row in rows if row["status"] == "dropped"} == {
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
