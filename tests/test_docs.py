"""The pages: links and anchors lead somewhere, commands exist, outputs are real, notebooks run."""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import backbones
import transom
from transom import __main__ as front
from transom import packages
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def name(path: Path) -> str:
    return path.name


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


# -- links -------------------------------------------------------------------------------------

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<(?:a|img)\s[^>]*?(?:href|src)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.M)


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings that GitHub and Python-Markdown both make."""
    github, site = set(), set()
    for heading in HEADING.findall(prose(text)):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        github.add(re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-"))
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        plain = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        site.add(re.sub(r"[-\s]+", "-", plain))
    return github & site


def broken_links(page: Path) -> list[str]:
    """The links of a page that lead to no file, or to no heading of one."""
    faults = []
    text = page.read_text()
    for markdown, html in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(text))):
        link = markdown or html
        if re.match(r"[a-z]+:", link):  # another site's
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.is_file():
            faults.append(f"{page.name}: {link}: there is no such file")
        elif anchor and anchor not in anchors(target.read_text()):
            faults.append(f"{page.name}: {link}: there is no such heading")
    return faults


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name)
def test_links_lead_to_files_and_headings(page):
    assert broken_links(page) == []


def test_a_broken_link_is_named(tmp_path):
    """Negative control."""
    (tmp_path / "there.md").write_text("# Speed: what `x` is\n\n```\n# No heading\n```\n")
    (tmp_path / "page.md").write_text(
        "# Top\n[a](there.md) [b](gone.md) ![c](gone.png)\n[d](there.md#speed-what-x-is) [e](#top)"
        '\n[f](there.md#no-heading) [g](#bottom) <img src="gone.svg"> [h](https://example.org/x)'
        "\n`[i](code.md)`\n```\n[j](code.md)\n```\n"
    )
    assert broken_links(tmp_path / "there.md") == []
    assert broken_links(tmp_path / "page.md") == [
        "page.md: gone.md: there is no such file",
        "page.md: gone.png: there is no such file",
        "page.md: there.md#no-heading: there is no such heading",
        "page.md: #bottom: there is no such heading",
        "page.md: gone.svg: there is no such file",
    ]


def unreached(pages: list[Path], start: Path) -> list[str]:
    """Pages that no chain of links from the start leads to."""
    seen, waiting = {start}, [start]
    while waiting:
        page = waiting.pop()
        for link, _ in LINK.findall(prose(page.read_text())):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target in pages and target not in seen:
                seen.add(target)
                waiting.append(target)
    return sorted(page.name for page in set(pages) - seen)


def test_every_page_is_reached_from_the_first(tmp_path):
    assert unreached(PAGES, DOCS / "index.md") == []
    pages = [tmp_path / "index.md", tmp_path / "lost.md"]  # negative control
    for page in pages:
        page.write_text("# Page\n")
    assert unreached(pages, pages[0]) == ["lost.md"]


# -- lines -------------------------------------------------------------------------------------

PRINTED = ("speed.md",)  # tables there are what commands print, each below its command


def long_lines(page: Path) -> list[str]:
    """Lines over 100 characters, and rows of tables over 120."""
    faults = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        table = line.startswith("|")
        printed = page.name in PRINTED and line.startswith(("|", "python -m "))
        if len(line) > (120 if table else 100) and not printed:
            faults.append(f"{page.name}:{number}: {len(line)} characters")
    return faults


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_have_their_width(page):
    assert long_lines(page) == []


def test_a_long_line_is_named(tmp_path):
    """Negative control."""
    page = tmp_path / "page.md"
    page.write_text(f"{'x' * 100}\n{'x' * 101}\n|{'x' * 119}\n|{'x' * 120}\n")
    assert long_lines(page) == ["page.md:2: 101 characters", "page.md:4: 121 characters"]


# -- commands ----------------------------------------------------------------------------------

STARTS = ("transom ", "python -m ", "torchrun ")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]{2,}\b|\.\.\.")  # FILE, OUT.safetensors, N is none


def joined(text: str) -> list[str]:
    """Lines, with those that end in a backslash put together."""
    return re.sub(r"\\\n\s*", "", text).splitlines()


def commands(text: str) -> Iterator[str]:
    """The commands of a page: of blocks that are a list of them or of `$ ` lines, and in prose."""
    for _, block in FENCE.findall(text):
        lines = joined(block)
        if block.startswith("$ "):
            yield from (line[2:] for line in lines if line.startswith("$ "))
        elif block.startswith(STARTS):
            yield from (line for line in lines if line.startswith(STARTS))
    for code in re.findall(r"`([^`]+)`", prose(text)):
        code = " ".join(code.split())  # a line of prose may end inside
        if code.startswith(STARTS):
            yield code


def fault(command: str) -> str:
    """Why a command cannot be given, or "": an unknown name, module or option, or a bad value."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|<>&;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words = list(lexer)
    end = next((i for i, word in enumerate(words) if set(word) <= set("|<>&;")), len(words))
    words = words[:end]
    if words[0] == "transom":
        if words[1:2] in (["--help"], ["--version"], ["--completion"], ["COMMAND"]):
            return ""
        try:
            found, argv = front.find(words[1:])
        except SpecError as error:
            return str(error)
        module = found.module
    else:
        start = words.index("-m")
        module, argv = words[start + 1], words[start + 2 :]
    if module == "MODULE":
        return ""
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(module):
            return parsed(module, argv, PLACEHOLDER.search(command) is not None)
    return f"there is no module {module}"


def parsed(module: str, argv: list[str], open_: bool) -> str:
    """Why a module's parser refuses a command; where words stand for others, options alone."""
    package = importlib.util.find_spec(module)
    if package and package.submodule_search_locations:
        module += ".__main__"
    if module.split(".")[0] not in packages.NAMES:
        return ""
    build = getattr(importlib.import_module(module), "build_parser", None)
    if build is None:
        return ""
    parser = build()
    known = options(parser)  # argparse takes a beginning of one, too
    wrong = [w for w in argv if re.match(r"--[a-z]", w) and w.partition("=")[0] not in known]
    if wrong or open_ or not argv:  # without arguments a command is only named
        return f"{module} has no option {wrong[0]}" if wrong else ""
    files = [sorted(glob.glob(str(ROOT / word))) if "*" in word else [] for word in argv]
    argv = [word for word, found in zip(argv, files, strict=True) for word in found or [word]]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser.parse_args(argv)
    except SystemExit as left:
        return said.getvalue().strip() if left.code else ""
    return ""


def options(parser: argparse.ArgumentParser) -> set[str]:
    """All options of a parser and of its commands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*(options(inner) for inner in action.choices.values()))
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name)
def test_commands_and_options_exist(page):
    found = {command: fault(command) for command in commands(page.read_text())}
    assert {command: said for command, said in found.items() if said} == {}


WRONG = {  # command: what is said of it
    "transom flop swin_t": "did you mean 'flops'",
    "transom train comparee a": "did you mean 'train compare'",
    "python -m analysis.flopz swin_t": "there is no module analysis.flopz",
    "python -m analysis.flops --bakcbone swin_t": "has no option --bakcbone",
    "transom flops swin_t --by stages": "--by stages: is not known",
    "transom flops swin_t --img-size x": "--img-size",
    "transom show swin_t pale_t": "pale_t: is not expected",
    "transom convert FILE --too OUT.safetensors": "has no option --too",
    "transom regions masks --mixr window": "has no option --mixr",
    "transom bench speed --quick --sample 3 | head": "has no option --sample",
    "torchrun --nproc-per-node 2 -m training.compare NAME --seedz 2": "has no option --seedz",
}


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_named(command):
    """Negative control: in a block, in a list of a block, and in prose."""
    assert WRONG[command] in fault(command)
    for page in (f"```\n$ {command}\noutput\n```\n", f"```\ntransom flops swin_t\n{command}\n```\n",
                 f"Try `{command}`.\n"):  # fmt: skip
        assert command in list(commands(page))


def test_commands_are_found():
    """The table of commands names every one, in both forms."""
    text = (DOCS / "commands.md").read_text()
    rows = re.findall(r"^\| `(transom [^`]*)` \| .* \| `([\w.]+)` \|$", text, re.M)
    found = {}
    for command, module in rows:
        known, _ = front.find(shlex.split(command)[1:])
        found[known.name] = module
    assert found == {known: command.module for known, command in front.ALL.items()}


def outputs(page: Path) -> list[tuple[str, str]]:
    """Commands of a page that stand with what they print."""
    blocks = [block for _, block in FENCE.findall(page.read_text()) if block.startswith("$ ")]
    pairs = [re.sub(r"\\\n\s*", "", block).partition("\n") for block in blocks]
    return [(first[2:], rest) for first, _, rest in pairs if rest and "$ " not in rest]


@pytest.mark.parametrize(
    ("command", "printed"),
    [pytest.param(*pair, id=f"{page.stem}-{i}")
     for page in PAGES for i, pair in enumerate(outputs(page))],
)  # fmt: skip
def test_outputs_are_what_the_commands_print(command, printed):
    assert command.startswith("transom ")
    argv = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


# -- Python and notation -----------------------------------------------------------------------


def unknown_names(text: str) -> list[str]:
    """Functions of `import transom` that a text calls and that do not exist."""
    return sorted({n for n in re.findall(r"\btransom\.(\w+)\(", text) if n not in transom.__all__})


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES, *NOTEBOOKS], ids=name)
def test_python_names_exist(page):
    assert unknown_names(page.read_text()) == []


def test_an_unknown_name_is_named_and_every_function_has_its_line():
    assert unknown_names("transom.count(x), transom.counts(x), my_transom.y(z)") == ["counts"]
    text = (DOCS / "commands.md").read_text().partition("## In Python")[2]
    functions = {n for n in transom.__all__ if n[0].islower()}
    assert functions == set(re.findall(r"`transom\.(\w+)\(", text))


def blocks(page: str, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall((DOCS / page).read_text()) if kind == language]


def test_the_python_of_the_commands_runs():
    names = {"images": torch.zeros(1, 3, 64, 96)}
    (code,) = blocks("commands.md", "python")
    exec(compile(code, "commands.md", "exec"), names)
    assert names["report"].agree and names["maps"][0].shape == (1, 96, 16, 24)
    assert list(names["frame"]["model"]) == ["swin_t", "cswin_t"]


def test_every_notation_parses():
    lines = [line.split()[0] for line in blocks("notation.md", "")[0].splitlines()]
    assert len(lines) == 9
    for text in lines:
        if not text.startswith("mine"):
            assert backbones.parse(f"swin_t/3={text}" if text.startswith("pale") else text).stages


def test_the_toml_file_is_a_backbone(tmp_path):
    (text,) = blocks("notation.md", "toml")
    (tmp_path / "mine.toml").write_text(text)
    spec = backbones.parse(str(tmp_path / "mine.toml"))
    same = backbones.parse("swin_t/norm=res_post/3.depth=4/3=pale:size=7+window")
    assert spec.name == "mine" and (spec.stages, spec.norm) == (same.stages, same.norm)


# -- what pages repeat ---------------------------------------------------------------------------


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [row for row in rows if set("".join(row)) - set("-:")]


def test_the_verdicts_on_speed_are_those_of_the_table():
    """The short table on top has every row with a peer; none is called faster or slower there."""
    text = (DOCS / "speed.md").read_text()
    short = cells(text.partition("## Verdicts")[2].partition("\n**The engine")[0])
    head, *rows = cells(text.partition("<!-- speed -->")[2].partition("<!-- /speed -->")[0])
    full = [dict(zip(head, row, strict=True)) for row in rows]
    keys = ("model", "mode", "batch", "ms", "best peer", "its ms", "speedup")
    wanted = [[row[key] for key in keys] for row in full if row["best peer"]]
    assert short[1:] == sorted(wanted, key=lambda row: -float(row[-1]))
    verdicts = [row["verdict"].partition(":")[0] for row in full if row["best peer"]]
    assert verdicts == ["inconclusive"] * 8  # as the list above the table says


def test_the_notebook_has_the_mixer_of_the_page():
    (snippet,) = blocks("own-mixer.md", "python")
    assert len(snippet.splitlines()) <= 40
    sources = ["".join(cell["source"]) for cell in read(DOCS / "notebooks" / "add-a-mixer.ipynb")]
    assert snippet.strip() in sources


# -- the site ----------------------------------------------------------------------------------


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)


def loaded_from_elsewhere(site: Path) -> list[str]:
    """What the pages of a site load from other hosts: scripts, styles, fonts, images."""
    loads = re.compile(
        r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?(https?:)?//[^>]*>|"
        r"<link\b[^>]*\bhref=\"?(https?:)?//[^>]*>|@import[^;]*//[^;]*"
    )
    return [f"{page.name}: {found[0]}" for page in sorted(site.rglob("*.html"))
            for found in loads.finditer(page.read_text())]  # fmt: skip


def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.glob("*.html")} == {p.stem for p in PAGES} | {"404"}
    assert loaded_from_elsewhere(tmp_path) == []


def test_a_font_from_elsewhere_and_a_lost_page_are_seen(tmp_path):
    """Negative controls."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Page\n")
    config, site = tmp_path / "mkdocs.yml", tmp_path / "site"
    config.write_text("site_name: x\ntheme:\n  name: material\n")
    assert build(config, site).returncode == 0
    assert any("fonts.g" in found for found in loaded_from_elsewhere(site))
    (tmp_path / "docs" / "index.md").write_text("# Page\n[gone](gone.md)\n")
    assert build(config, site).returncode != 0


# -- notebooks -----------------------------------------------------------------------------------

RUNNER = """
import json, sys
path, names = sys.argv[1], {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(path, encoding="utf-8"))["cells"], 1):
    if cell["cell_type"] == "code":
        place = f"{path.rpartition('/')[2]}, cell {number}"
        try:
            exec(compile("".join(cell["source"]), place, "exec"), names)
        except Exception as error:
            sys.exit(f"{place}: {type(error).__name__}: {error}")
"""


def read(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text())["cells"]


def execute(notebook: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the code of a notebook, cell after cell, without Jupyter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", RUNNER, notebook]
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "notebook",
    [one if one.stem == "add-a-mixer" else pytest.param(one, marks=pytest.mark.slow)
     for one in NOTEBOOKS],
    ids=name,
)  # fmt: skip
def test_a_notebook_runs(notebook, tmp_path):
    done = execute(notebook, tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []  # it leaves nothing where it was started


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_a_notebook_stores_no_outputs(notebook):
    cells = read(notebook)
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_a_cell_that_fails_is_named(tmp_path):
    """Negative control."""
    cells = [{"cell_type": "markdown", "source": ["# x"]},
             {"cell_type": "code", "source": ["a = 1\n", "b = a"]},
             {"cell_type": "code", "source": ["assert b == 2, b"]}]  # fmt: skip
    (tmp_path / "bad.ipynb").write_text(json.dumps({"cells": cells}))
    done = execute(tmp_path / "bad.ipynb", tmp_path)
    assert done.returncode == 1 and done.stderr == "bad.ipynb, cell 3: AssertionError: 1\n"
