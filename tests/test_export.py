"""Files that run without our code: what they hold for, what is refused, and their numbers."""

import pytest
import torch
from tiny import create, images, notation, randomise

import backbones
from analysis.portable import FAMILIES, SMALL
from attention import fast
from backbones import export
from transom.cli import AGREED, DIFFER
from transom.errors import SpecError

FULL = notation("full", "1.depth=1", "2.depth=1", "3.depth=1", "4.depth=1")
SHORT = "swin_t/" + SMALL.replace("1.depth=2", "1.depth=1")
SWIN = notation("swin", "1.depth=1", "2.depth=1", "3.depth=1", "4.depth=1")


def test_static_file(tmp_path, capsys):
    """The written file, read back, is eager's function; no other file is left."""
    out = tmp_path / "m.pt2"
    with fast.plain():  # the path that is exported, to the bit
        assert export.main([SWIN, "--out", str(out), "--img-size", "40x56", "--check"]) == AGREED
    assert "largest difference to eager over 1 inputs: 0" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]


def test_dynamic_batch_and_size(tmp_path, capsys):
    """One graph for one image or several, for sizes that windows divide or do not, down to two
    rows in the last stage; smaller ones are refused, not answered otherwise."""
    out = tmp_path / "m.pt2"
    with fast.plain():
        argv = [SHORT, "--out", str(out), "--dynamic", "batch,size", "--check"]
        assert export.main(argv) == AGREED
        said = capsys.readouterr().out
        assert "batch any, height and width from 9 to" in said
        assert "over 9 inputs: 0 " in said
    run = torch.export.load(out).module()
    assert run(images(7, 3, 97, 160)).shape == (7, 10)
    with pytest.raises(Exception, match=r"Guard|assert|>= 9"):
        run(images(2, 3, 8, 96))


def test_check_sees_another_model():
    """Negative control: other weights, other shapes and NaN are differences."""
    one, other = create("full"), create("full", seed=1)
    inputs = export.draw([(2, 64, 64)], 3)
    assert export.largest_difference(one, one, inputs) == 0
    assert export.largest_difference(other, one, inputs) > export.TOLERANCE["onnx"]
    assert export.largest_difference(lambda x: one(x)[:1], one, inputs) == float("inf")
    assert export.largest_difference(lambda x: one(x) * float("nan"), one, inputs) == float("inf")


def test_exit_code_of_a_difference(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "largest_difference", lambda *_: 1.0)
    assert export.main([FULL, "--out", str(tmp_path / "m.pt2"), "--check"]) == DIFFER
    assert "difference to eager over 1 inputs: 1 " in capsys.readouterr().out


def test_a_mixer_that_cannot_is_refused_by_name():
    """What torch.export raises from a mixer becomes one line with the mixers' names."""

    class Stuck(torch.nn.Module):
        def forward(self, x):
            return x * (2 if x.sum().item() > 0 else 3)

    spec = create("swin").spec
    with pytest.raises(SpecError, match="window: a dynamic batch: "):
        export.program(Stuck().eval(), spec, export.Request(True, False))


def test_what_onnx_cannot_is_one_line(monkeypatch):
    """torch's exporter writes pages; the first line is the reason."""

    def stuck(*_, **__):
        raise torch.onnx.errors.OnnxExporterError("no operator for aten.strange\nmany\nlines")

    monkeypatch.setattr(torch.onnx, "export", stuck)
    with pytest.raises(SpecError, match=r"--format onnx: .*aten\.strange") as caught:
        export.onnx_program(None)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    pytest.importorskip("onnx")
    with pytest.raises(SpecError, match=r"needs onnxscript: pip install transom\[export\]"):
        export.require("onnx")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    out = tmp_path / "m.pt2"
    out.write_bytes(b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full_disk)
    with pytest.raises(SpecError, match="No space left"):
        export.write(None, "pt2", out)
    assert out.read_bytes() == b"old" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("argv", [["swin_x"], ["swin_t", "--weights", "none.safetensors"]])
def test_bad_requests(argv):
    with pytest.raises(ValueError):
        export.main(argv)


@pytest.mark.parametrize("spec", [SWIN, FULL], ids=["swin", "full"])
def test_onnx_equals_eager(spec, tmp_path, capsys):
    """One file, any batch, through onnxruntime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    out = tmp_path / "m.onnx"
    argv = [spec, "--format", "onnx", "--out", str(out), "--img-size", "64", "--dynamic", "batch"]
    assert export.main([*argv, "--check"]) == AGREED
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert export.runner("onnx", out)(images(4, 3, 64, 64)).shape == (4, 10)


@pytest.mark.parametrize("family", [
    "full", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "full"),
])  # fmt: skip
def test_onnx_of_any_size(family, tmp_path):
    """One file for any batch, height and width, padded or not, through onnxruntime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    model = randomise(backbones.create(f"{FAMILIES[family]}/{SMALL}")).eval()
    request = export.Request(True, True)
    export.write(export.program(model, model.spec, request), "onnx", tmp_path / "m.onnx")
    run = export.runner("onnx", tmp_path / "m.onnx")
    inputs = export.draw([(1, 9, 9), (2, 64, 64), (3, 57, 30), (5, 33, 100)], 3)
    assert export.largest_difference(run, model, inputs) <= export.TOLERANCE["onnx"]
