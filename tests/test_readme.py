"""The README's promises: its output is real, its snippets run, its two commands are CI's."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SPEED = (ROOT / "docs" / "speed.md").read_text()


def block(start, language="", page=None):
    """The code block of the front page, or of a page of docs/, that begins so."""
    text = README if page is None else (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.S)
    (found,) = [text for kind, text in blocks if kind == language and text.startswith(start)]
    return found


def shell(command, cwd=ROOT):
    """A command of the pages with this Python; the package comes from the checkout."""
    command = re.sub(r"^(python -m|transom(?= ))",
                     lambda found: f"{sys.executable} -m{' transom' * (found[1] == 'transom')}",
                     command)  # fmt: skip
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    return subprocess.run(command, shell=True, cwd=cwd, env=env, capture_output=True, text=True)


def test_the_first_table_is_what_its_command_prints():
    printed = block("$ transom compare")
    command, rest = re.fullmatch(r"\$ ((?:[^\n]*\\\n)*[^\n]*)\n(.*)", printed, re.S).groups()
    done = shell(command)
    assert (done.returncode, done.stdout, done.stderr) == (0, rest, "")
    assert rest.count("yes") == 6


def test_the_front_page_is_short():
    lines = README.splitlines()
    assert len(lines) <= 160 and max(map(len, lines)) <= 100


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
    snippet = block("from dataclasses import dataclass", "python", "own-mixer.md")
    assert len(snippet.splitlines()) <= 40
    (tmp_path / "my_mixers.py").write_text(snippet)
    commands = block("python -m analysis.flops --plugin", page="own-mixer.md").splitlines()
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


def test_the_five_lines_of_python_run(capsys):
    snippet = block("import transom", "python")
    assert len(list(filter(None, snippet.splitlines()))) <= 5
    names = {}
    exec(compile(snippet, "README", "exec"), names)
    assert list(names["table"]["agree"]) == [True, True] and "swin_t/3" in capsys.readouterr().out
    assert names["model"](torch.zeros(1, 3, 224, 224)).shape == (1, 10)


def test_the_short_mixer_is_one(tmp_path):
    (tmp_path / "my_mixers.py").write_text(block("from torch import nn", "python"))
    done = shell(block("transom flops --plugin").strip(), cwd=tmp_path)
    assert done.returncode == 0 and "linear" in done.stdout and "three counts" not in done.stdout


def test_ci_runs_the_two_commands_that_stand_there():
    marked = README.partition("<!-- ci -->")[2].partition("<!-- /ci -->")[0]
    commands = [line for line in marked.splitlines() if line.startswith(("python3", ".venv"))]
    assert len(commands) == 2 and "transom flops" in commands[0] and "pytest" in commands[1]
    assert "<!-- ci -->" in (ROOT / ".ci" / "run").read_text()
