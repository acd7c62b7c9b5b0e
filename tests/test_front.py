"""The command `transom`: every command is found, nothing is imported for it, errors are a line."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from transom import __main__ as front
from transom import cli
from transom.__main__ import ALL
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent


def modules_with_a_command() -> set[str]:
    """Modules that end in `cli.run(main)`, by the name that python -m takes."""
    found = set()
    for package in ("attention", "backbones", "analysis", "training", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            if "    cli.run(main)" in path.read_text():
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found.add(name.removesuffix(".__main__"))
    return found - {"training.worker", "analysis.measure"}  # which no person starts


def test_every_command_has_a_name():
    assert {command.module for command in ALL.values()} == modules_with_a_command()


@pytest.mark.parametrize("name", ALL)
def test_help_calls_it_by_its_name(name, capsys):
    with pytest.raises(SystemExit) as error:
        front.main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert error.value.code == 0 and text.startswith(f"usage: transom {name} ")
    cli._called_as.clear()


def test_the_help_has_every_command_by_question(capsys):
    assert front.main([]) == 0
    text = capsys.readouterr().out
    assert text.count("?\n") == 5 and max(map(len, text.split("\n"))) <= 100
    for name, command in ALL.items():
        assert re.search(rf"^  {name} +{re.escape(command.what[:20])}", text, re.M), name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["flop", "swin_t"], "no command is called 'flop'; did you mean 'flops'?"),
        (["bench", "speeed"], "did you mean 'bench speed'?"),
        (["train"], "train: expected a command of it: train compare, train study"),
        (["qqqq"], "no command is called 'qqqq'; transom --help lists them"),
        (["--completion", "fish"], "--completion: expected one of bash, zsh, tcsh"),
        (["a\nb"], "no command is called 'a\\nb'"),
    ],
)
def test_a_misspelt_command(argv, said):
    with pytest.raises(SpecError) as error:
        front.main(argv)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["flops", "--bakbone", "swin_t"], "no option --bakbone; did you mean --backbone?"),
        (["flops", "swin_t", "--format", "tabel"], "--format tabel: is not known; did you mean "),
        (["flops"], "name a backbone, such as: transom flops swin_t"),
        (["diff", "swin_t"], "the following arguments are required"),
        (["diff", "swin_t", "pale_t", "full_t"], "full_t: is not expected"),
        (["flops", "swin_t", "--img-size", "0"], "--img-size: '0': expected"),
        (["regions", "rech"], "rech: is not known; did you mean 'reach'"),
        (["regions", "reach"], "name a backbone, such as: transom regions reach swin_t"),
        (["regions", "reach", "--img-sze", "64"], "there is no option --img-sze"),
        (["regions", "bias", "swin_t", "pale_t"], "pale_t: is not expected"),
        (["regions", "bias", "swin_t", "--backbone", "pale_t"], "pale_t: is one too many"),
        (["bench", "loop", "swin_t", "--backbone", "pale_t"], "pale_t: is one too many"),
    ],
)
def test_a_misspelt_option_is_one_line(argv, said, capsys):
    with pytest.raises(SystemExit) as error:
        front.main(argv)
    found = capsys.readouterr()
    assert error.value.code == 2 and found.out == "" and found.err.count("\n") == 1
    assert found.err.startswith("error: ") and said in found.err, found.err
    cli._called_as.clear()


def test_names_stand_anywhere(capsys):
    from analysis.flops import build_parser

    args = build_parser().parse_args(["swin_t", "--by", "block", "pale_t", "--backbone", "full_t"])
    assert args.backbone == ["swin_t", "pale_t", "full_t"] and args.by == "block"


def test_names_stand_anywhere_behind_a_subcommand():
    from analysis.regions import build_parser

    def read(*argv):
        return build_parser().parse_args([*argv])

    for command in ("reach", "footprint", "erf"):
        args = read(command, "--img-size", "64", "swin_t", "--backbone", "full_t", "pale_t")
        assert args.backbone == ["swin_t", "full_t", "pale_t"] and args.img_size == (64, 64)
        assert read(command, "swin_t", "--img-size", "64", "pale_t").backbone == [
            "swin_t", "pale_t",
        ]  # fmt: skip
    assert read("footprint", "--mixers", "pale", "full").backbone == []
    for command in ("bias", "attention"):
        for argv in (["--stage", "2", "swin_t"], ["--backbone", "swin_t"], ["swin_t"]):
            assert read(command, *argv).backbone == "swin_t"


def test_one_name_or_none():
    from benchmarks.loop import build_parser

    for argv, name in (["pale_t"], "pale_t"), (["--backbone", "pale_t"], "pale_t"), ([], None):
        assert build_parser().parse_args(["--rounds", "3", *argv]).backbone == name


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["flop"], ["flops", "--bakbone"], ["train", "compare", "--sed"], ["bench"],
     ["flops", "swin_q"], *([*name.split(), "--help"] for name in ALL)],
    ids=" ".join,
)  # fmt: skip
def test_help_and_errors_import_no_torch(argv):
    """Under 0.3 s of user time here; what takes longer is torch, numpy or pandas."""
    script = (
        "import sys\nfrom transom import __main__ as front\n"
        "try: front.main(sys.argv[1:])\nexcept (SystemExit, ValueError): pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True,
                          cwd=ROOT)  # fmt: skip
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("shell", front.SHELLS)
def test_completion_knows_commands_options_and_values(shell):
    pytest.importorskip("shtab")
    text = front.completion([shell])
    options = ["--img-size", "operator", "--keep-weights"] if shell != "tcsh" else []
    for word in "flops", "speed", *options:  # tcsh completes commands alone
        assert word in text
    cli._called_as.clear()


def test_bash_completes_a_command(tmp_path):
    """The script as a shell reads it: `transom fl` becomes flops, `--by` its values."""
    pytest.importorskip("shtab")
    (tmp_path / "c.sh").write_text(front.completion(["bash"]))
    cli._called_as.clear()
    script = f"""
source {tmp_path / "c.sh"}
try() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_transom; echo "${{COMPREPLY[@]}}"
}}
try transom fl
try transom flops --img
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["flops", "--img-size"], done


def test_modules_are_those_of_the_commands():
    for command in ALL.values():
        name = command.module + ".__main__" * (command.module in ("attention", "backbones"))
        module = importlib.import_module(name)
        assert callable(module.main) and callable(module.build_parser)
