"""The README's promises: its output is real, its snippets run, its two commands are CI's."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import analysis
import backbones

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SPEED = (ROOT / "docs" / "speed.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)


def block(start, language=""):
    (found,) = [text for kind, text in BLOCKS if kind == language and text.startswith(start)]
    return found


def shell(command, cwd=ROOT):
    """A README command with this Python; the package comes from the checkout."""
    command = command.replace("python -m", f"{sys.executable} -m", 1)
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    return subprocess.run(command, shell=True, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["analysis.compare", "analysis.flops"])
def test_the_outputs_are_what_the_commands_print(command):
    first, _, rest = block(f"$ python -m {command}").partition("\n")
    done = shell(first.removeprefix("$ "))
    assert (done.returncode, done.stdout, done.stderr) == (0, rest, "")


@pytest.mark.usefixtures("neighbours")  # which benchmarks.shift registers
@pytest.mark.parametrize("mark, name, part", [
    ("speed", "speed", 0), ("ablation", "ablation", 0), ("before", "ablation", 0),
    ("mixers", "mixers", 1), ("shift", "shift", 0),
])  # fmt: skip
def test_a_measured_table_is_what_its_command_prints(mark, name, part, capsys):
    """The command that stands above it, on the rows that are committed."""
    above, _, rest = SPEED.partition(f"<!-- {mark} -->\n")
    command = f"python -m benchmarks.{name} --table "
    line = [line for line in above.splitlines() if line.startswith(command)][-1]
    files, _, words = line.removeprefix(command).partition(" --")
    stored = sorted(map(str, ROOT.glob(files)))
    main = importlib.import_module(f"benchmarks.{name}").main
    main(["--table", *stored, *f"--{words}".split()])  # 1 where a peer computes something else
    printed = capsys.readouterr().out.split("\n\n")[part]
    assert printed == rest.partition(f"\n<!-- /{mark}")[0]


def test_a_mixer_of_your_own_in_forty_lines(tmp_path):
    """The plug-in is counted alone and in a hybrid by the commands that stand below it."""
    snippet = block("from dataclasses import dataclass", "python")
    assert len(snippet.splitlines()) <= 40
    (tmp_path / "my_mixers.py").write_text(snippet)
    commands = block("python -m analysis.flops --plugin").splitlines()
    assert len(commands) == 2
    for command in commands:
        done = shell(command, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", done
        assert "pool" in done.stdout
    hybrid = shell(commands[0], cwd=tmp_path).stdout
    assert "pool:size=5+window" in hybrid and "three counts agree" in hybrid
    done = shell("python -m analysis.check my_mixers:Pool", cwd=tmp_path)
    assert done.returncode == 0 and "FAIL" not in done.stdout and "pass" in done.stdout
    for module in ("attention", "backbones"):
        done = shell(f"python -m {module} --plugin my_mixers", cwd=tmp_path)
        assert done.returncode == 0
        assert ("pool: my_mixers" in done.stdout) == (module == "attention")
    done = shell(commands[0].replace("size=5", "size=4"), cwd=tmp_path)
    assert done.returncode == 2 and "stage 3: pool:size=4: size must be odd" in done.stderr
    shadow = snippet.replace('@register("pool"', '@register("window"')
    (tmp_path / "my_mixers.py").write_text(shadow)
    done = shell(commands[0], cwd=tmp_path)
    assert done.returncode == 2 and "registered already" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_notation_parses():
    for line in block("swin_t      ").splitlines():
        text = line.split()[0]
        if text.startswith("mine"):
            continue
        if text.startswith("pale"):
            text = f"swin_t/3={text}"
        assert backbones.parse(text).stages


def test_the_toml_file_is_a_backbone(tmp_path):
    text = block("base", "toml")
    (tmp_path / "mine.toml").write_text(text)
    spec = backbones.parse(str(tmp_path / "mine.toml"))
    assert spec.name == "mine" and [s.depth for s in spec.stages] == [2, 2, 4, 2]
    assert backbones.parse({"name": "mine", **tomllib.loads(text)}) == spec
    same = backbones.parse("swin_t/norm=res_post/3.depth=4/3=pale:size=7+window")
    assert same.stages == spec.stages and same.norm == spec.norm


def test_the_python_snippet_runs():
    names = {"images": torch.zeros(1, 3, 64, 96)}
    code = compile(block("import analysis, backbones", "python"), "README", "exec")
    exec(code, names)
    assert names["report"].agree and names["maps"][0].shape == (1, 96, 16, 24)
    assert isinstance(names["report"], analysis.Report)


def test_ci_runs_the_two_commands_that_stand_there():
    marked = README.partition("<!-- ci -->")[2].partition("<!-- /ci -->")[0]
    commands = [line for line in marked.splitlines() if line.startswith(("python3", ".venv"))]
    assert len(commands) == 2 and "analysis.flops" in commands[0] and "pytest" in commands[1]
    assert "<!-- ci -->" in (ROOT / ".ci" / "run").read_text()
