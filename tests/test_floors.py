"""The house stands: imports go down only, between folders as between packages; no circle of files
or folders; folders of 5 to 12 files; and what is installed is whole."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from transom import packages

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (  # a folder imports itself and those before it
    "transom",
    "attention/geometry", "attention/execution", "attention/kernels", "attention",
    "attention/softmax", "attention/mixers",
    "backbones/specs", "backbones/files", "backbones/model", "backbones/weights", "backbones",
    "analysis/counting", "analysis/models", "analysis/papers", "analysis/pictures",
    "analysis/checking", "analysis/results", "analysis/timing", "analysis",
    "benchmarks",
)  # fmt: skip
LEAST, MOST = 5, 12  # files of a folder: fewer are no idea of their own, more are two


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(text: str, known: Mapping[str, str]) -> set[str]:
    """The paths of our files that a file imports, inside functions too, but not for types alone."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(known[alias.name] for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.update(known[n] for n in (name, node.module) if n in known)
                if name in known:  # of a folder, not of its __init__
                    found.discard(known.get(node.module or "", ""))
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(text))
    return found


def circles(arrows: Mapping[str, set[str]]) -> list[str]:
    """Every node that is reached from itself."""
    found = []
    for start in arrows:
        seen, todo = set(), list(arrows[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += arrows.get(node, ())
        if start in seen:
            found.append(start)
    return sorted(found)


def complaints(files: Mapping[str, str]) -> list[str]:
    """What a tree (text by path) does that it may not."""
    known = {module_of(path): path for path in files}
    arrows = {path: imports(text, known) - {path} for path, text in files.items()}
    wrong = [f"{path} is in a circle" for path in circles(arrows)]
    folders: dict[str, set[str]] = {}
    for path, targets in arrows.items():
        own = os.path.dirname(path)
        folders.setdefault(own, set()).update(os.path.dirname(target) for target in targets)
        if own not in FLOORS:
            wrong.append(f"{path} stands on no floor")
            continue
        wrong += [
            f"{path} imports {target}, a floor above" for target in targets
            if os.path.dirname(target) not in FLOORS[: FLOORS.index(own) + 1]
        ]  # fmt: skip
    between = {own: targets - {own} for own, targets in folders.items()}
    return wrong + [f"{folder} is in a circle of folders" for folder in circles(between)]


def tree() -> dict[str, str]:
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for name in packages.NAMES
        for path in (ROOT / name).rglob("*.py")
    }


def test_imports_go_down():
    assert complaints(tree()) == []


@pytest.mark.parametrize(
    ("path", "line", "said"),
    [
        ("transom/errors.py", "from attention import registry", "a floor above"),
        ("attention/geometry/groups.py", "from attention.mixers import window", "a floor above"),
        ("attention/geometry/axis.py", "from attention.geometry import groups", "in a circle"),
        ("attention/registry.py", "import attention.mixers.pale", "a floor above"),
        ("backbones/specs/spec.py", "def f():\n    from backbones import factory", "a floor above"),
        ("analysis/models/maps.py", "from analysis.counting import report", None),
        ("analysis/counting/report.py", "from analysis.models import maps", "a floor above"),
        ("attention/new/mixer.py", "", "on no floor"),
        ("attention/registry.py", "if TYPE_CHECKING:\n    import attention.mixers.pale", None),
    ],
)  # fmt: skip
def test_a_wrong_import_is_seen(path, line, said):
    """Negative controls, and what is allowed."""
    files = tree()
    files[path] = files.get(path, "") + "\n" + line + "\n"
    found = complaints(files)
    assert any(said in text for text in found) if said else found == []


def crowded(root: Path) -> dict[str, int]:
    """Folders with fewer or more files, code and data, than one idea has."""
    found = {
        folder: sum(path.suffix in (".py", ".csv") for path in (root / folder).iterdir())
        for folder in FLOORS
        if (root / folder).is_dir()
    }
    return {folder: n for folder, n in found.items() if not LEAST <= n <= MOST}


def test_folders_have_five_to_twelve_files(tmp_path):
    assert crowded(ROOT) == {}
    assert {os.path.dirname(path) for path in tree()} == set(FLOORS)  # so that none is missing
    for folder, count in (("transom", 13), ("backbones/files", 4), ("attention", 12)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            (tmp_path / folder / f"f{i}.py").touch()
    (tmp_path / "backbones" / "f.py").touch()
    assert crowded(tmp_path) == {"transom": 13, "backbones/files": 4, "backbones": 1}


def test_what_is_built_is_whole(tmp_path):
    """Every module and table is in what setuptools builds, and runs from there alone."""
    source, built = tmp_path / "source", tmp_path / "built"
    source.mkdir()
    for name in (*packages.NAMES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", build, "-q", "build", "--build-lib", str(built)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    have = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert tree().keys() <= have
    assert {"analysis/papers/published.csv", "analysis/papers/verdicts.csv"} <= have
    environment = {**os.environ, "PYTHONPATH": str(built)}
    for module, argv in {
        "analysis.flops": ["--backbone", "swin_t", "--max-seconds", "0"],
        "attention": [], "backbones.show": ["swin_t"], "benchmarks.speed": ["--help"],
    }.items():  # fmt: skip
        where = f"import {module} as m, sys; sys.stderr.write(m.__file__)"
        place = subprocess.run(
            [sys.executable, "-c", where], cwd=tmp_path, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert place.stderr.startswith(str(built)), place.stderr
        done = subprocess.run(
            [sys.executable, "-m", module, *argv], cwd=tmp_path, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout, done.stderr
