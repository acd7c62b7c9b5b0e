"""The tree keeps its promises: imports point one way, third parties have places, nothing is
unpickled or evaluated, and another distribution's package of the same name is named."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from transom import packages

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = packages.NAMES  # each may import those before it
OTHERS = (
    "backbones/timm_backbone.py", "backbones/timm_models.py",
    "backbones/weights/reference_models.py",
    "backbones/weights/resize.py", "analysis/models/lookup.py", "training/loop/",
    "benchmarks/loop.py",
)  # fmt: skip
PLACES = {
    "timm": OTHERS,
    "torchvision": OTHERS,
    "fvcore": ("analysis/",),
    "einops": ("attention/", "backbones/parts/resample.py"),
    # it unpickles what it submitted, in a folder of ours
    "submitit": ("training/submit.py", "training/cluster.py"),
}
SAFE_LOAD = "backbones/files/standins.py"  # the one place of torch.load, and weights_only there
# import what the user names, or what a table of theirs does
COMPUTED = (
    "transom/__main__.py", "transom/cli.py", "transom/packages.py", "analysis/models/lookup.py",
    "training/loop/subject.py", "attention/configs/registry.py",
)  # fmt: skip
NEVER = ("pytest", "hypothesis", "pickle", "dill", "cloudpickle", "joblib", "yaml", "marshal",
         "shelve")  # fmt: skip
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> list[str]:
    """Every module that a file imports, inside functions and by importlib too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Call) and called(node) in (
            "importlib.import_module", "import_module", "__import__",
        ):  # fmt: skip
            text = node.args[0] if node.args else None
            if isinstance(text, ast.JoinedStr) and text.values:
                text = text.values[0]  # the constant start of an f-string
            name = text.value if isinstance(text, ast.Constant) else None
            found.append(name if isinstance(name, str) else "<computed>")
    return found


def called(node: ast.Call) -> str:
    """``torch.load`` of ``torch.load(...)``."""
    try:
        return ast.unparse(node.func)
    except ValueError:
        return ""


def complaints(text: str, place: str) -> list[str]:
    """What a file at `place` (relative to the root) does that it may not."""
    tree, wrong = ast.parse(text), []
    own = place.split("/")[0]
    for name in imported(tree):
        top = name.split(".")[0]
        if name == "<computed>" and place in COMPUTED:
            continue
        if name.startswith(".") or name == "<computed>":
            wrong.append(f"import of {name}: only absolute, literal names")
        elif top == "tests" or (
            top in PACKAGES and PACKAGES.index(top) > PACKAGES.index(own)
        ):  # fmt: skip
            wrong.append(f"{own} imports {name}")
        elif top in PLACES and not place.startswith(PLACES[top]):
            wrong.append(f"{name} belongs in {', '.join(PLACES[top])}")
        elif top in NEVER:
            wrong.append(f"{name} has no place in a package")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        if name.split(".")[-1] in ("load_module", "load_state_dict_from_url"):
            wrong.append(name)
        safe = "weights_only=True" in {ast.unparse(keyword) for keyword in node.keywords}
        if name == "torch.load" and safe and place == SAFE_LOAD:
            continue
        if name in ("eval", "exec", "compile", "torch.load", "yaml.load", "torch.hub.load"):
            wrong.append(name)
        allowed = {k.arg for k in node.keywords if getattr(k.value, "value", 1)}
        if name in ("np.load", "numpy.load") and "allow_pickle" in allowed:
            wrong.append(f"{name}(allow_pickle)")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_rules(path):
    assert complaints(path.read_text(), str(path.relative_to(ROOT))) == []


def test_all_files_are_seen():
    places = {str(path.relative_to(ROOT)) for path in FILES}
    assert {"attention/softmax/layers.py", "backbones/model/backbone.py"} <= places


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("attention/mixers/full.py", "import backbones"),
        ("attention/mixers/full.py", "def f():\n    from backbones.specs.construct import edit"),
        ("attention/mixers/full.py", "import importlib\nimportlib.import_module('analysis.table')"),
        ("attention/mixers/full.py", "import importlib\nimportlib.import_module(f'backbones.{x}')"),
        ("attention/mixers/full.py", "from . import groups"),
        ("attention/mixers/full.py", "import importlib\nimportlib.import_module(name)"),
        ("backbones/model/backbone.py", "from analysis import table"),
        ("backbones/model/backbone.py", "import benchmarks.speed"),
        ("backbones/model/backbone.py", "import timm"),
        ("backbones/model/backbone.py", "from torchvision import models"),
        ("backbones/timm_models.py", "import fvcore.nn"),
        ("backbones/model/backbone.py", "from einops import rearrange"),
        ("analysis/table.py", "from timm.models import create_model"),
        ("analysis/table.py", "import tests.naive"),
        ("backbones/weights/loading.py", "import torch\ntorch.load(path, weights_only=True)"),
        ("backbones/files/standins.py", "import torch\ntorch.load(path)"),
        ("backbones/files/standins.py", "import torch\ntorch.load(path, weights_only=safe)"),
        ("backbones/weights/loading.py", "from pickle import loads"),
        ("backbones/weights/loading.py", "import numpy as np\nnp.load(path, allow_pickle=True)"),
        ("backbones/specs/spec.py", "eval(text)"),
        ("backbones/specs/spec.py", "exec(text)"),
        ("backbones/specs/spec.py", "import yaml\nyaml.load(text)"),
    ],
)
def test_breaking_a_rule_is_seen(place, text):
    """Negative controls for the walk itself."""
    assert complaints(text, place)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("analysis/models/lookup.py", "import timm, torchvision"),
        ("backbones/timm_models.py", "import timm"),
        ("backbones/files/standins.py", "import torch\ntorch.load(path, weights_only=True)"),
        ("analysis/flops.py", "import fvcore.nn\nimport backbones\nimport attention"),
        ("benchmarks/speed.py", "import analysis.measure\nimport torch"),
        ("attention/factory.py", "import importlib\nimportlib.import_module(f'attention.{x}')"),
        ("backbones/model/backbone.py", "model.eval()\ntorch.compile(model)\nimport attention"),
    ],
)
def test_keeping_the_rules_is_seen(place, text):
    assert complaints(text, place) == []


# -- packages of the same name -----------------------------------------------------------------

PROBE = "import sys; sys.path[:0] = sys.argv[1].split(';'); import {}"


def run(imports: str, *path: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-I", "-c", PROBE.format(imports), ";".join(map(str, path))],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip


@pytest.mark.parametrize("form", ["package", "module"])
def test_foreign_attention_is_named(tmp_path, form):
    """Another `attention` first on the path: an ImportError with its file and with ours."""
    foreign = tmp_path / ("attention/__init__.py" if form == "package" else "attention.py")
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("")
    done = run("backbones", tmp_path, ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError")
    assert str(foreign) in last and str(ROOT / "attention" / "__init__.py") in last
    assert run("backbones", ROOT, tmp_path).returncode == 0


def test_own_packages_import_cleanly():
    """From any folder, and without torch: names and specs are plain Python."""
    assert run("attention, backbones; assert 'torch' not in sys.modules", ROOT).stderr == ""


# -- files -------------------------------------------------------------------------------------


def test_golden_files_are_small():
    """Nothing in the repository's data is over 2 MB."""
    files = [path for path in (ROOT / "tests" / "golden").rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [str(path) for path in files if path.stat().st_size > 2e6] == []


def test_no_test_shadows_a_package():
    """A tests folder or file named like a package would be imported instead of it."""
    names = {path.stem for path in (ROOT / "tests").iterdir()}
    assert not names & set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_is_ascii(path):
    assert path.read_bytes().isascii()
