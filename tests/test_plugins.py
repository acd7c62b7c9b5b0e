"""Mixers of others: an installed distribution or --plugin adds a mixer, and one that is broken
disables only itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import strategies

ROOT = Path(__file__).resolve().parent.parent
MIXER = """
from dataclasses import dataclass
from attention import Cost, MixerConfig, TokenMixer, register

@dataclass(frozen=True, kw_only=True)
class Config(MixerConfig):
    gain: float = 1.0

@register("{name}", config=Config)
class Mixer(TokenMixer):
    def forward(self, x):
        return self.config.gain * x
    def cost(self, h, w):
        return Cost(0, 0)
"""


def distribution(folder: Path, name: str, code: str, entry: str = "") -> None:
    """An installed distribution as importlib.metadata sees one, with one module."""
    info = folder / f"{name}_dist-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[transom.mixers]\n{entry or name} = {name}_module\n")
    (folder / f"{name}_module.py").write_text(code)


def python(folder: Path, *argv: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.run(
        [sys.executable, *argv], cwd=folder, env=env, capture_output=True, text=True
    )


def listed(folder: Path) -> tuple[dict[str, str], str]:
    """(source of every mixer, stderr) of the listing."""
    done = python(folder, "-m", "attention", "--format", "json")
    assert done.returncode == 0, done.stderr
    return {row["mixer"]: row["source"] for row in json.loads(done.stdout)["rows"]}, done.stderr


BUILT_IN = set(strategies.BUILT_IN)


def test_an_installed_mixer_is_one_like_any_other(tmp_path):
    """Listed with its module, suggested, built, counted in a hybrid; nobody names its module."""
    distribution(tmp_path, "gain", MIXER.format(name="gain"))
    sources, stderr = listed(tmp_path)
    assert set(sources) == BUILT_IN | {"gain"} and stderr == ""
    assert sources["gain"] == "gain_module"
    code = (
        "import attention, torch\n"
        "x = torch.ones(1, 2, 3, 4)\n"
        "assert torch.equal(attention.create('gain:gain=3', dim=4, heads=2)(x), 3 * x)\n"
    )
    done = python(tmp_path, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    argv = ["-m", "backbones.diff", "swin_t", "swin_t/3=gain:gain=2+window", "--format", "json"]
    done = python(tmp_path, *argv)
    assert done.returncode == 0 and done.stderr == ""
    assert "gain:gain=2+window" in {row["b"] for row in json.loads(done.stdout)["changes"]}
    done = python(tmp_path, "-m", "analysis.flops", "--backbone", "swin_t/3=gian")
    assert done.returncode == 2 and "did you mean 'gain'" in done.stderr


BROKEN = {
    "raises": ("raise RuntimeError('two\\nlines \\x1b[31m')", "RuntimeError: two lines"),
    "needs": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax": ("def", "SyntaxError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit"),
    "half": (MIXER.format(name="half") + "\nraise ValueError('late')", "ValueError: late"),
}


@pytest.mark.parametrize("kind", ["raises", "exits", "half"])
def test_a_broken_plug_in_disables_only_itself(tmp_path, kind):
    """One line on stderr; the other mixers, another plug-in too, work; named, it is exit 2."""
    code, reason = BROKEN[kind]
    distribution(tmp_path, kind, code)
    distribution(tmp_path, "gain", MIXER.format(name="gain"))
    sources, stderr = listed(tmp_path)
    assert set(sources) == BUILT_IN | {"gain"}
    (line,) = stderr.splitlines()
    assert line.startswith(f"transom: the plug-in {kind} ({kind}_module) is off: {reason}")
    done = python(tmp_path, "-m", "analysis.flops", "--backbone", f"swin_t/3={kind}")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert f"{kind!r} cannot be used: {reason}" in last
    done = python(tmp_path, "-c", "import backbones; print(backbones.parse('swin_t/3=gain'))")
    assert done.returncode == 0 and "Config(gain=1.0)" in done.stdout


@pytest.mark.parametrize("entry", ["window", "other"])
def test_a_built_in_keeps_its_name(tmp_path, entry):
    """A distribution that registers `window` is refused in one line, and window is ours."""
    distribution(tmp_path, "shadow", MIXER.format(name="window"), entry)
    distribution(tmp_path, "gain", MIXER.format(name="gain"))
    sources, stderr = listed(tmp_path)
    assert set(sources) == BUILT_IN | {"gain"} and "Swin Transformer" in sources["window"]
    (line,) = stderr.splitlines()
    assert f"the plug-in {entry} (shadow_module) is off" in line and "registered already" in line
    code = (
        "import attention\n"
        "attention.names()\n"
        "print(type(attention.create('window', dim=4, heads=2)).__module__)\n"
        "print(attention.parse('window').size)\n"
    )
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0
    assert done.stdout.split("\n")[:2] == ["attention.mixers.window", "(7, 7)"]


def test_two_plug_ins_of_one_name(tmp_path):
    """One of them is taken, the other is off, in one line."""
    distribution(tmp_path, "one", MIXER.format(name="same"))
    distribution(tmp_path, "two", MIXER.format(name="same"))
    sources, stderr = listed(tmp_path)
    assert set(sources) == BUILT_IN | {"same"} and len(stderr.splitlines()) == 1
    assert "same' is registered already" in stderr


def test_an_unknown_name_stays_one_line(tmp_path):
    """What is not asked for is not imported: built-in names load no plug-in."""
    distribution(tmp_path, "loud", "print('imported')\n" + MIXER.format(name="loud"))
    code = "import attention; attention.parse('window:size=7')"
    assert python(tmp_path, "-c", code).stdout == ""
    assert python(tmp_path, "-c", code.replace("window:size=7", "loud")).stdout == "imported\n"


# -- --plugin --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["syntax", "needs", "window", "absent"])
def test_a_plug_in_that_was_asked_for_must_load(tmp_path, kind):
    """--plugin of a module that fails is exit 2 and one line that names it."""
    if kind != "absent":
        code = MIXER.format(name="window") if kind == "window" else BROKEN[kind][0]
        (tmp_path / f"{kind}_module.py").write_text(code)
    done = python(tmp_path, "-m", "attention", "--plugin", f"{kind}_module")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --plugin {kind}_module: ")


def test_a_plug_in_on_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text(MIXER.format(name="mine"))
    done = python(tmp_path, "-m", "backbones.show", "--plugin", "mine", "swin_t/3=mine:gain=2")
    assert done.returncode == 0 and "= mine:gain=2" in done.stdout
    done = python(tmp_path, "-m", "analysis.flops", "--backbone", "swin_t/3=mine")
    assert done.returncode == 2 and "'mine'" in done.stderr
