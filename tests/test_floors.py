"""The house stands: imports go down only, between folders as between packages; no circle of files
or folders; folders of 5 to 12 files; and what is installed is whole."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from transom import packages

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (  # a folder imports itself and those before it
    "transom",
    "attention/configs", "attention/geometry", "attention/execution", "attention/kernels",
    "attention",
    "attention/softmax", "attention/mixers",
    "backbones/families", "backbones/names", "backbones/specs", "backbones/files",
    "backbones/parts", "backbones/model", "backbones/weights", "backbones",
    "analysis/counting", "analysis/models", "analysis/papers", "analysis/pictures",
    "analysis/checking", "analysis/results", "analysis/timing", "analysis", "analysis/facade",
    "training/data", "training/settings", "training/objectives", "training/loop", "training",
    "benchmarks",
)  # fmt: skip
LEAST, MOST = 5, 12  # files of a folder: fewer are no idea of their own, more are two
# a file for every mixer or family, of which there are as many as there are
COLLECTIONS = ("attention/mixers", "backbones/families", "backbones/names")


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


def tree(root: Path = ROOT) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for name in packages.NAMES
        for path in (root / name).rglob("*.py")
    }


def test_imports_go_down():
    assert complaints(tree()) == []


@pytest.mark.parametrize(
    ("path", "line", "said"),
    [
        ("transom/errors.py", "from attention.configs import registry", "a floor above"),
        ("attention/geometry/groups.py", "from attention.mixers import window", "a floor above"),
        ("attention/geometry/axis.py", "from attention.geometry import groups", "in a circle"),
        ("attention/configs/registry.py", "import attention.mixers.pale", "a floor above"),
        ("backbones/specs/spec.py", "def f():\n    from backbones import factory", "a floor above"),
        ("analysis/models/maps.py", "from analysis.counting import report", None),
        ("analysis/counting/report.py", "from analysis.models import maps", "a floor above"),
        ("attention/new/mixer.py", "", "on no floor"),
        ("attention/cost.py", "if TYPE_CHECKING:\n    import attention.mixers.pale", None),
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
    return {
        folder: n for folder, n in found.items()
        if n < LEAST or (n > MOST and folder not in COLLECTIONS)
    }  # fmt: skip


def test_folders_have_five_to_twelve_files(tmp_path):
    assert crowded(ROOT) == {}
    assert {os.path.dirname(path) for path in tree()} == set(FLOORS)  # so that none is missing
    for folder, count in (("transom", 13), ("backbones/files", 4), ("attention", 12)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            (tmp_path / folder / f"f{i}.py").touch()
    (tmp_path / "backbones" / "f.py").touch()
    assert crowded(tmp_path) == {"transom": 13, "backbones/files": 4, "backbones": 1}


# -- what is installed ---------------------------------------------------------------------

COMMANDS = {
    "analysis.flops": ["--backbone", "swin_t", "--max-seconds", "0"],
    "attention": [], "backbones.show": ["swin_t"], "benchmarks.speed": ["--help"],
    "training.compare": ["--help"], "training.study": [],
}  # fmt: skip
WHERE = """
import importlib, json, sys
files = {name: importlib.import_module(name).__file__ for name in sys.argv[1:]}
print(json.dumps([files, [repr(finder) for finder in sys.meta_path]]))
"""


ENDINGS = (".py", ".pyi", "py.typed", ".csv", ".toml")


def missing_or_foreign(source: Iterable[str], wheel: Iterable[str]) -> list[str]:
    """What a wheel (paths, its own records aside) lacks of our packages, or has beside them."""
    ours = {
        path for path in source
        if path.split("/")[0] in packages.NAMES and path.endswith(ENDINGS)
    }  # fmt: skip
    have = {path for path in wheel if ".dist-info/" not in path}
    lacks, foreign = sorted(ours - have), sorted(have - ours)
    return [f"lacks {path}" for path in lacks] + [f"has {path}" for path in foreign]


def run(*command: str | Path, cwd: Path) -> str:
    """The stdout of a command that sees no PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(folder: Path, change: tuple[str, str] = ("", "")) -> tuple[Path, list[str]]:
    """A wheel of a copy of the tree, whose setup.cfg may be changed, and its faults."""
    source, out = folder / "source", folder / "out"
    source.mkdir()
    kept = shutil.ignore_patterns("__pycache__")
    for name in (*packages.NAMES, "tests", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=kept)
        else:
            shutil.copy(ROOT / name, source / name)
    files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    setup = (source / "setup.cfg").read_text()
    assert change[0] in setup
    (source / "setup.cfg").write_text(setup.replace(*change) if change[0] else setup)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--no-build-isolation", "--wheel-dir", out, source, cwd=folder)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return wheel, missing_or_foreign(files, archive.namelist())


def test_the_wheel_is_whole(tmp_path):
    """Built, installed beside nothing of ours, and run from there: every module and command."""
    wheel, faults = build(tmp_path)
    assert faults == []
    venv, cwd = tmp_path / "venv", tmp_path / "elsewhere"
    cwd.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=cwd)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
    run(*pip, "--no-deps", "--no-index", wheel, cwd=cwd)
    # The libraries of this environment, by a .pth file: those that stand in their folder, such
    # as the one of an editable install of ours, are not read through another.
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    modules = [module_of(path) for path in tree(site) if not path.endswith("__main__.py")]
    files, finders = json.loads(run(python, "-c", WHERE, *modules, cwd=cwd))
    assert set(packages.NAMES) <= files.keys()
    assert [path for path in files.values() if not Path(path).is_relative_to(site)] == []
    assert [finder for finder in finders if "__editable__" in finder] == []
    for module, argv in COMMANDS.items():
        assert run(python, "-m", module, *argv, cwd=cwd)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("*.csv, ", ""), ["lacks analysis/papers/published.csv"]),
        (("training = studies/*.toml", ""), ["lacks training/studies/swin-table4.toml"]),
        (("[options.package_data]", "exclude = analysis.papers\n[options.package_data]"),
         ["lacks analysis/papers/__init__.py", "lacks analysis/papers/published.csv"]),
    ],
)  # fmt: skip
def test_a_wheel_that_is_not_whole_is_seen(tmp_path, change, said):
    """Negative controls."""
    assert set(said) <= set(build(tmp_path, change)[1])


def test_a_missing_or_foreign_file_is_named():
    source = ["attention/a.py", "analysis/b.csv", "analysis/b.txt", "tests/c.py", "setup.cfg"]
    whole = ["attention/a.py", "analysis/b.csv", "transom-0.1.0.dist-info/RECORD"]
    assert missing_or_foreign(source, whole) == []
    assert missing_or_foreign(source, [whole[0], "tests/c.py"]) == [
        "lacks analysis/b.csv", "has tests/c.py",
    ]  # fmt: skip
