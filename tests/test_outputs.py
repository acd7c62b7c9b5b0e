"""Where commands write and what they print: checked before the work, links followed, devices kept,
and no name that moves a cursor, a direction or a table."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path

import pytest

from analysis import regions, sweep
from analysis.pictures import figure_style
from transom import cli, files, table
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent

# -- files -------------------------------------------------------------------------------------


def test_a_link_is_followed_and_modes_are_kept(tmp_path):
    target, link, chain = tmp_path / "target", tmp_path / "link", tmp_path / "chain"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to("target")
    chain.symlink_to(link)
    cli.emit("new", chain)
    assert link.is_symlink() and chain.is_symlink() and target.read_text() == "new\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    target.unlink()
    cli.emit("again", link)  # to where a dangling link leads
    assert link.is_symlink() and target.read_text() == "again\n"
    assert sorted(os.listdir(tmp_path)) == ["chain", "link", "target"]


def test_a_new_file_has_the_mode_of_any(tmp_path):
    (tmp_path / "other").write_text("")
    cli.emit("text", tmp_path / "t")
    assert (tmp_path / "t").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_pipe_is_written_to(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    cli.emit("text", files.checked(pipe))
    reader.join(10)
    assert read == ["text\n"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to():
    """A terminal of the test's own, which shows the text and stays a device."""
    shows, behind = os.openpty()
    device = Path(os.ttyname(behind))
    cli.emit("text", files.checked(device))
    assert os.read(shows, 100).split() == [b"text"] and stat.S_ISCHR(device.stat().st_mode)


def test_a_path_in_an_error_is_whole(tmp_path):
    """The name of the file stands at the end of the path, where a short text would be cut."""
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    for name in ("missing/table.md", "missing/\x1btable.md"):
        with pytest.raises(SpecError) as error:
            files.checked(folder / name)
        assert str(folder) in str(error.value) and "\x1b" not in str(error.value)
        assert str(error.value).count("table.md") == 1


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_streams_by_their_names(stream, kind, tmp_path):
    """/dev/fd/1 as /dev/stdout: what was printed before stays, and what comes after follows."""
    program = (
        "from pathlib import Path; from transom import cli, files\n"
        "import sys; stream = getattr(sys, sys.argv[1])\n"
        "print('before', file=stream)\n"
        "cli.emit('text', files.checked(Path(f'/dev/fd/{stream.fileno()}')))\n"
        "print('after', file=stream)"
    )
    call = [sys.executable, "-c", program, stream]
    if kind == "pipe":
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
        found = getattr(done, stream)
    else:
        with (tmp_path / "log").open("w") as log:
            subprocess.run(call, cwd=ROOT, **{stream: log})
        found = (tmp_path / "log").read_text()
    assert found == "before\ntext\nafter\n"


@pytest.mark.parametrize("name", ["\u4e00" * 84 + "a", "x" * 255, "x" * 251 + ".csv"])
def test_any_name_that_a_folder_takes(name, tmp_path):
    """253 bytes of 85 letters too: the temporary's name is its own."""
    cli.emit("text", files.checked(tmp_path / name))
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none/t.md", "No such file or directory: folder "), ("folder", "it is a folder"),
        ("folder/", "expected the name of a file"), ("", "expected the name of a file"),
        ("file/t.md", "Not a directory"), ("x" * 256, "File name too long"),
        ("circle", "symbolic links"), ("a\0b", "null"), ("nowhere", "folder "),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_as_it_is_read(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    Path("circle").symlink_to("circle")
    Path("nowhere").symlink_to("none/t.md")
    before = sorted(os.listdir())
    parser = cli.parser("x", None)
    cli.add_output(parser)
    with pytest.raises(SpecError, match=f"^--out .*{words}") as error:
        parser.parse_args(["--out", name])
    assert str(error.value).isprintable()
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("closed", ["folder", "file"])
def test_what_is_not_permitted_is_refused(closed, tmp_path, monkeypatch):
    """Whoever runs the tests may write anywhere: the system is asked, and here it says no."""
    out = tmp_path / "t.md"
    out.touch()
    shut = str(out if closed == "file" else tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != shut)
    with pytest.raises(SpecError, match="cannot be written to"):
        files.checked(out)


WRITERS = {  # every option that names a file to write, and a request whose work would be long
    "attention": [], "backbones": [], "backbones.show": ["swin_t"],
    "backbones.diff": ["swin_t", "pale_t"], "backbones.fit": ["swin_t", "--macs", "5G"],
    "backbones.export": ["swin_t"], "analysis.flops": ["--backbone", "swin_t"],
    "analysis.complexity": [], "analysis.compare": ["--backbone", "swin_t"],
    "analysis.audit": [], "analysis.sweep": ["--mixer", "full"], "analysis.portable": [],
    "analysis.check": ["window"], "analysis.certify": ["swin_t"], "analysis.regions": ["masks"],
    "benchmarks.speed": [], "benchmarks.mixers": [], "benchmarks.shift": [],
    "benchmarks.ablation": [], "benchmarks.kernel": [],
}  # fmt: skip
OPTIONS = [
    *((module, "--out") for module in WRITERS), ("backbones.convert", "--to"),
    ("analysis.sweep", "--figure"), ("benchmarks.speed", "--figure"),
    ("benchmarks.speed", "--store"), ("backbones.convert", "--out"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "option"), OPTIONS)
def test_a_missing_folder_is_said_before_the_work(module, option, monkeypatch):
    monkeypatch.setattr(cli, "load_plugins", lambda modules: pytest.fail("too late"))
    given = WRITERS.get(module, ["none.pth", *(["--to", "x"] if option == "--out" else [])])
    with pytest.raises(SpecError, match=f"^{option} no/such/x.png: No such file.* folder "):
        import_module(module if "." in module else f"{module}.__main__").main(
            [*given, option, "no/such/x.png"]
        )


def test_every_option_that_writes_is_in_the_list():
    """Over the sources: no other option of this kind is read as a bare path."""
    found = [
        (path.relative_to(ROOT), option)
        for package in ("attention", "backbones", "analysis", "benchmarks")
        for path in (ROOT / package).glob("*.py")
        for option in re.findall(r'"(--(?:out|to|figure|store))",\s*type=', path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize("module", ["analysis.regions", "backbones.export"])
def test_the_default_name_is_checked_too(module, monkeypatch):
    monkeypatch.setattr(files, "_refusal", lambda text: "refused" if "." in text else None)
    argv = ["masks"] if module == "analysis.regions" else ["swin_t"]
    with pytest.raises(SpecError, match=r"--out (masks\.png|model\.pt2): refused"):
        import_module(module).main(argv)


def test_what_has_no_option_follows_links_too(tmp_path, monkeypatch):
    """Saved names, and choices of backends."""
    from attention.execution import autotune
    from backbones.specs import aliases

    monkeypatch.chdir(tmp_path)
    for link, save in (("transom.toml", lambda: aliases.save("mine", "swin_t/3=pale")),
                       ("choices.json", lambda: autotune.save("choices.json"))):  # fmt: skip
        Path(link).symlink_to(f"real_{link}")
        save()
        assert Path(link).is_symlink() and Path(f"real_{link}").stat().st_size > 2
    assert aliases.read() == {"mine": "swin_t/3=pale"} and len(os.listdir()) == 4
    with pytest.raises(SpecError, match=r"^no/choices\.json: No such file"):
        autotune.save("no/choices.json")


@pytest.mark.parametrize("ending", figure_style.ENDINGS)
def test_a_picture_follows_links_too(ending, tmp_path):
    target, link = tmp_path / ("\u4e00" * 83 + ending), tmp_path / f"link{ending}"
    link.symlink_to(target.name)
    figure_style.save(figure_style.figure(1, 1), link)
    assert link.is_symlink() and target.stat().st_size > 100
    assert len(os.listdir(tmp_path)) == 2


# -- names -------------------------------------------------------------------------------------

NAMES = {
    "escape": "a\x1b[31mb", "title": "a\x1b]0;t\x07b", "override": "a\u202egnp", "return": "a\rb",
    "svg": '"><svg onload=alert(1)>', "bar": "a|b`c`", "line": "a\n# b", "c1": "a\x9b2Jb",
}  # fmt: skip
COMMANDS = {  # what prints the name of a backbone that a file has
    "show": ("backbones.show", ["FILE"]),
    "diff": ("backbones.diff", ["FILE", "swin_t"]),
    "fit": ("backbones.fit", ["FILE", "--params", "4"]),
    "flops": ("analysis.flops", ["--backbone", "FILE", "--max-seconds", "0"]),
    "compare": ("analysis.compare", ["--backbone", "FILE"]),
    "sweep": ("analysis.sweep", ["--backbone", "FILE", "FILE/1=window", "--values", "32"]),
    "reach": ("analysis.regions", ["reach", "--backbone", "FILE", "--img-size", "32"]),
    "footprint": ("analysis.regions", ["footprint", "--backbone", "FILE", "--img-size", "32"]),
    "check": ("analysis.check", ["FILE", "--only", "batch"]),
    "certify": ("analysis.certify", ["FILE", "--patch", "4", "--seeds", "1"]),
}  # fmt: skip
STYLES = {
    "show": ("strip", "toml", "json"), "diff": ("table", "md"), "compare": table.REPORT_FORMATS,
    "footprint": ("",),
}  # fmt: skip
NET = """
img_size = 32
[[stages]]
dim = 8
heads = 2
depth = 1
mixers = "full"
[[stages]]
dim = 16
heads = 2
depth = 1
mixers = "full"
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hostile_name_is_plain_everywhere(command, tmp_path, monkeypatch, capfd):
    """Nothing that a terminal obeys in any format, and no mark-up in Markdown."""
    monkeypatch.chdir(tmp_path)
    file = "".join(NAMES.values()) + ".toml"
    Path(file).write_text(NET)
    module, argv = COMMANDS[command]
    for style in STYLES.get(command, table.FORMATS):
        try:
            import_module(module).main(
                [word.replace("FILE", file) for word in argv] + ["--format", style] * bool(style)
            )
        except SpecError as error:
            assert command == "fit" and str(error).isprintable()
            continue
        text = capfd.readouterr().out
        assert "onload" in text, (style, text)
        assert all(c.isprintable() or c == "\n" for c in text), (style, text)
        assert style != "md" or "<svg" not in text.replace(r"\<", ""), text
        assert style in ("csv", "json") or "\n# b" not in text


def test_an_error_line_has_no_control_characters():
    program = (
        "from transom import cli\nfrom transom.errors import SpecError\n"
        "def main(): raise SpecError('a\\x1b[31m\\u202eb\\nc')\ncli.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: a [31m b c\n")


@pytest.mark.parametrize("name", ["_hidden", "a$b$", "$x_y$", "_", *NAMES.values()])
def test_a_legend_has_every_series(name, tmp_path):
    """Also where a name begins with _, which matplotlib leaves out, and is XML that can be read."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "f.svg"
    line = {"over": "resolution", "series": name, "padding_%": 0}
    rows = [{**line, "value": n, "mixing": n, "macs_formula": 2 * n} for n in (1, 2)]
    fits = [{"series": name, "mixing": None, "total": None}]
    cross = {"more": name, "less": name, "sampled": 1.5}
    picture = sweep.draw_curves.draw(rows, fits, [cross], [name], "resolution")
    legends = [axes.get_legend().get_texts() for axes in picture.axes]
    assert [len(texts) for texts in legends] == [1, 1]
    figure_style.save(picture, out)
    ET.parse(out)


@pytest.mark.parametrize("name", ["a$b$", "$\\frac$", *NAMES.values()])
def test_a_title_is_no_mathematics(name, tmp_path):
    pytest.importorskip("matplotlib")
    from analysis.pictures import draw_heatmaps, draw_maps

    out, values = tmp_path / "f.svg", draw_maps.torch.ones(2, 2, dtype=int)
    panel = draw_maps.Panel(name, values, name)
    for picture in (
        draw_maps.draw_footprint([panel], [1], name), draw_heatmaps.draw_erf([panel], name),
    ):  # fmt: skip
        figure_style.save(picture, out)
        ET.parse(out)


def test_a_hostile_name_reads_back_from_toml(tmp_path, monkeypatch, capsys):
    """Nothing is lost in a file of ours: what is not shown is written by its number."""
    import backbones
    from backbones import show
    from backbones.specs.writing import to_toml

    name = "".join(NAMES.values()) + "\U000e0001"
    spec = backbones.from_dict({**backbones.parse("swin_t").to_dict(), "name": name})
    (tmp_path / "n.toml").write_text(to_toml(spec))
    assert all(c.isprintable() or c == "\n" for c in to_toml(spec))
    assert show.main([str(tmp_path / "n.toml"), "--format", "toml"]) == 0
    (tmp_path / "m.toml").write_text(capsys.readouterr().out)
    assert backbones.parse(str(tmp_path / "m.toml")).name == name


def test_regions_says_what_it_wrote_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "a\x1b[31m\u202e.svg"
    argv = ["masks", "--grid", "4", "--mixer", "window:size=2", "--out", name]
    assert regions.main(argv) == 0
    assert capsys.readouterr().out.startswith("wrote a [31m .svg: ")
    assert os.listdir() == [name]
