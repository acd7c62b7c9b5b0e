"""The commands as a user types them: help, errors, exit codes, and nothing imported too early."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from backbones import fit
from transom import cli
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "attention", "backbones", "backbones.show", "backbones.diff", "backbones.fit",
    "backbones.convert", "backbones.export", "analysis.flops", "analysis.complexity",
    "analysis.compare", "analysis.audit", "analysis.sweep", "analysis.regions", "analysis.check",
    "analysis.portable", "analysis.certify", "training.compare",
    "training.study",
)  # fmt: skip


def python(*args, cwd=ROOT):
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)


def without_torch(module, *argv):
    """Runs a command in a Python where importing torch, timm or pandas is an error."""
    block = (
        "import sys, runpy\n"
        "for name in ('torch', 'timm', 'fvcore', 'pandas', 'numpy'): sys.modules[name] = None\n"
        f"sys.argv = {[module, *argv]!r}\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=False)\n"
    )
    return python("-c", block)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_needs_no_torch(module):
    done = without_torch(module, "--help")
    assert done.returncode == 0 and f"usage: python -m {module}" in done.stdout
    assert "--plugin" in done.stdout
    assert "--format" in done.stdout or module == "analysis.regions"  # pictures, by --out


FLOPS_ERRORS = {  # request: what the line must say
    "swin_tt": ["'swin_tt'", "did you mean 'swin_t'"],
    "swin_t/3=pal": ["stage 3", "'pal'", "did you mean 'pale'"],
    "swin_t/3=pale:siz=7": ["stage 3", "'siz'", "did you mean 'size'"],
    "swin_t/3=pale:size=0": ["stage 3", "size='0'", "7 or 7x14"],
    "swin_t/5=full": ["no stage 5", "1 to 4"],
    "swin_t/3.head=4": ["stage 3", "'head'", "did you mean 'heads'"],
    "swin_t/1.heads=5": ["stage 1", "96", "5 heads"],
    "swin_t/1=axial": ["stage 1", "3", "even"],
    "swin_t/3=full:position=bias": ["stage 3", "position=bias", "log_cpb"],
    "swin_t/3=window:position=lepe": ["stage 3", "lepe", "shift=false"],
    "swin_t/norm=post": ["norm='post'", "pre, res_post"],
    "swin_t/nrm=pre": ["'nrm'", "did you mean 'norm'"],
    "none.toml": ["none.toml", "No such file"],
    "": ["''"],
}


@pytest.mark.parametrize("request_", FLOPS_ERRORS)
def test_a_bad_backbone_is_one_line_and_exit_two(request_):
    done = without_torch("analysis.flops", "--backbone", request_)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1), done
    for words in FLOPS_ERRORS[request_]:
        assert words in lines[0]


@pytest.mark.parametrize(
    "argv",
    [
        ["--backbone", "swin_t", "--img-size", "0"],
        ["--backbone", "swin_t", "--img-size", ""],
        ["--backbone", "swin_t", "--img-size", "7x7x7"],
        ["--backbone", "swin_t", "--max-memory", "lots"],
        ["--backbone", "swin_t", "--format", "xml"],
        ["--backbone", "swin_t", "--plugin", "no_such_module"],
        ["--backbone"],
        [],
    ],
)
def test_a_bad_option_is_exit_two_without_a_traceback(argv):
    done = without_torch("analysis.flops", *argv)
    assert done.returncode == 2 and done.stdout == ""
    assert "error: " in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("backbones.show", "default: strip, or by the ending of --out"),
        ("backbones.diff", "default: table, or by the ending of --out"),
    ],
)
def test_help_names_the_default_format(module, words):
    assert words in " ".join(without_torch(module, "--help").stdout.split())


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "no/such/file.bin", ""])
def test_a_missing_file_of_weights_is_said_without_torch(name):
    done = without_torch("backbones.convert", name, "--to", "x.safetensors")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
    assert done.stderr.startswith(f"error: {name}: cannot be read: No such file or directory; ")
    assert not (ROOT / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "meant"), [("4", "4G"), ("0.5", "0.5G"), ("63", "63G"), ("512", "512M")]
)
@pytest.mark.parametrize("module", ["analysis.flops", "analysis.complexity"])
def test_a_memory_without_a_unit_is_asked_about(module, text, meant, capsys):
    named = ["--backbone", "swin_t"] if module == "analysis.flops" else []
    with pytest.raises(SystemExit) as left:
        import_module(module).main([*named, "--max-memory", text])
    assert left.value.code == 2
    assert f"{text!r} is in bytes; did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 2**32), ("512m", 2**29), (f"{2**32}", 2**32), ("0", 0), ("1K", 1024)]
)
def test_a_memory_with_its_unit_is_read(text, size):
    assert cli.memory_size(text) == size


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        ("pale_t --macs 4.5", "the backbone has 4,202,551,296; did you mean 4.5G?"),
        ("pale_t --macs 900", "did you mean 900M?"),
        ("swin_t --params 28", "the backbone has 28,288,354; did you mean 28M?"),
        ("swin_t --params 0028.0", "did you mean 0028.0M?"),
        ("swin_t --macs 4.5 --img-size 7168", "did you mean 4.5T?"),
    ],
)
def test_a_budget_without_a_unit_is_asked_about(argv, meant, monkeypatch):
    """At once, by the backbone's own count at the size that is asked for."""
    monkeypatch.setattr(fit, "fit", lambda *args, **budget: pytest.fail("searched"))
    option = argv.split()[1]
    with pytest.raises(SpecError, match=f"^{option} ") as error:
        fit.main(argv.split())
    assert meant in str(error.value)


@pytest.mark.parametrize("text", ["4500000000", "4.5G", "4.5M", "900K", "100000000000"])
def test_a_budget_that_is_meant_is_not_asked_about(text):
    fit.check_unit(text, 4_202_551_296, "--macs")


def test_the_main_job_prints_only_its_answer():
    """Nothing from fvcore, torch or warnings on either stream."""
    done = python("-m", "analysis.flops", "--backbone", "swin_t")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("swin_t at 224x224: 28,288,354 parameters, 4.491 GMACs")
    assert (
        "three counts agree: formula = fvcore = torch = 4,490,566,656 MACs; "
        "uncounted operators: none" in done.stdout
    )


def test_listings_are_complete():
    from attention import names
    from backbones.specs import variants

    done = without_torch("attention", "--format", "json")
    rows = json.loads(done.stdout)["rows"]
    assert [row["mixer"] for row in rows] == list(names())
    assert all(row["source"] and row["options"] for row in rows)
    done = without_torch("backbones", "--format", "json")
    rows = json.loads(done.stdout)["rows"]
    assert [row["backbone"] for row in rows] == list(variants.names())
    assert all(row["params"] and row["macs"] and row["source"] for row in rows)
    text = without_torch("backbones").stdout
    assert all(f"{row['macs']:,}" in text for row in rows)
    assert "pale:" in without_torch("attention").stdout


def test_a_closed_pipe_is_quiet():
    line = f"{sys.executable} -m backbones | head -1"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1
