"""Progress bars on a terminal, read as a screen shows them: what is done, the time left, texts as
they are; and nothing in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny

from analysis import regions
from analysis.checking import certificates
from analysis.papers import ledger, published
from training.launch import moved
from transom import progress
from transom.progress import Bar

ROOT = Path(__file__).resolve().parent.parent
SMALL = "swin_t/stages=2/1.dim=8/1.heads=2/2.dim=8/2.heads=2/img_size=64"


def frames(text: str) -> list[list[str]]:
    """What a terminal shows before every erasure of a line, and at the end: lines without colours,
    to the last that is not empty.

    Knows what a bar writes: line ends, lines up, erased lines; anything else that moves the cursor
    is an error.
    """
    lines, row, column, found = [""], 0, 0, []

    def shown() -> list[str]:
        return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")

    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.", text, re.S):
        if part == "\x1b[2K":
            found.append(shown())
            lines[row] = ""
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.startswith("\x1b"):
            assert re.fullmatch(r"\x1b\[([\d;]*m|\?25[lh])", part), part
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [*found, shown()]


def on_a_terminal(*argv: str, **environment: str) -> tuple[str, str]:
    """(stdout in a pipe, stderr on a terminal of 80 columns) of Python with these words."""
    leader, follower = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("LINES", "NO_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": "80", "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [sys.executable, *argv], stdout=subprocess.PIPE, stderr=follower, cwd=ROOT, env=env
    )
    os.close(follower)
    found: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # Linux says so at the end
                return
            if not part:
                return
            found.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    out = process.communicate(timeout=300)[0]
    reader.join()
    os.close(leader)
    return out.decode(), b"".join(found).decode()


# -- on a terminal ---------------------------------------------------------------------------


def test_a_bar_shows_what_is_done_and_the_time_left_and_vanishes():
    script = """
from transom.progress import Bar
shown = Bar("abc", unit="row")
for name in shown:
    shown.say("at " + name)
    print("row", name)
"""
    out, err = on_a_terminal("-c", script)
    assert out == "row a\nrow b\nrow c\n"
    seen = frames(err)
    (first,) = {line for (line,) in seen if line.endswith("at a")}
    assert re.fullmatch(r"row 0/3 ━{20} \d:\d\d at a", first)
    (second,) = {line for (line,) in seen if line.endswith("at b")}
    assert re.fullmatch(r"row 1/3 \S+ \d:\d\d, about \d:\d\d left at b", second)
    assert seen[-1] == [""] and err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1


def test_texts_are_shown_as_they_are():
    """Markup, styles, replacements of emoji and controls of a name do nothing."""
    script = """
from transom.progress import Bar
with Bar([], unit="[bold]row[/bold]", total=5) as shown:
    shown.advance(0.25)
    for text in ("[red]swin[/red]", "[/]", ":smile:", "a\\x1b[2Jb\\nc", "{task.total}"):
        shown.say(text)
"""
    seen = [line for frame in frames(on_a_terminal("-c", script)[1]) for line in frame]
    for text in ("[red]swin[/red]", "[/]", ":smile:", "a [2Jb c", "{task.total}"):
        assert any(line.endswith(f" left {text}") for line in seen), text
    assert any(line.startswith("[bold]row[/bold] 0.25/5 ━") for line in seen)


def test_a_bar_inside_a_bar_stands_below_it():
    """Whichever ends first; the outer one goes on."""
    script = """
from transom.progress import Bar
outer = Bar(["a", "b"], unit="model")
for name in outer:
    outer.say(name)
    inner = Bar(range(2), unit="seed")
    for seed in inner:
        inner.say(f"{name}{seed}")
first, second = Bar([1], unit="first"), Bar([1], unit="second")
first.__enter__(), second.__enter__()
first.__exit__()
second.say("alone")
second.__exit__()
"""
    seen = frames(on_a_terminal("-c", script)[1])
    below = [tuple(re.sub(r" +━.* ", " ", line) for line in frame) for frame in seen]
    assert ("model 0/2 a", "seed 1/2 a1") in below and ("model 1/2 b", "seed 0/2 b0") in below
    assert any(frame[0] == "second 0/1 alone" for frame in below)
    assert all(line == "" for line in seen[-1])


@pytest.mark.parametrize("way", ["for _ in Bar([1, 2], unit='row'):", "with Bar([1], unit='row'):"])
def test_a_bar_vanishes_at_an_error(way):
    script = f"from transom.progress import Bar\ntry:\n  {way}\n    1 / 0\nexcept ArithmeticError:"
    script += "\n  import sys\n  sys.stderr.write('error')"
    seen = frames(on_a_terminal("-c", script)[1])
    assert any(line.startswith("row 0/") for frame in seen for line in frame)
    assert seen[-1] == ["error"]


def test_a_terminal_that_cannot_erase_has_no_bar():
    script = "from transom.progress import Bar\nfor _ in Bar([1], unit='row'): print('done')"
    assert on_a_terminal("-c", script, TERM="dumb") == ("done\n", "")


def test_a_command_shows_its_bar_and_its_stdout_is_that_of_a_pipe():
    argv = ["-m", "analysis.regions", "reach", SMALL, "--format", "csv"]
    piped = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
    out, err = on_a_terminal(*argv)
    assert (out, piped.stderr) == (piped.stdout, "") and out.count("\n") == 3
    seen = frames(err)
    assert any(line.startswith("backbone 0/1 ") for frame in seen for line in frame)
    assert seen[-1] == [""]


# -- elsewhere -------------------------------------------------------------------------------


def test_in_a_pipe_nothing_is_drawn_and_nothing_imported():
    script = """
import sys
from transom.progress import Bar
shown = Bar(range(3), unit="row")
for row in shown:
    shown.say("text")
with Bar([], unit="run") as shown:
    shown.advance(0.5)
print([*Bar(iter("ab"), unit="row")], {"rich", "tqdm"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("['a', 'b'] set()\n", "")


def test_the_time_left_is_by_the_mean(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Bar[int]([], unit="run", total=4) as shown:
        assert shown._fields() == {"count": "run 0/4", "clock": "0:00", "text": ""}
        now[0] += 60
        shown.advance(0.5)
        assert shown._fields()["clock"] == "1:00, about 7:00 left"
        now[0] += 3600
        shown.advance(3.5)
        assert shown._fields()["count"] == "run 4/4"
        assert shown._fields()["clock"] == "1:01:00, about 0:00 left"
    endless = Bar(iter(()), unit="row")
    endless.advance(1234)
    assert endless._fields()["count"] == "row 1,234" and "left" not in endless._fields()["clock"]


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda: certificates.certify(tiny.create("swin"), 64, seeds=2, name="net"),
         ("seed", 2, ["net"])),
        (lambda: ledger.ledger(published.of("swin_t", "imagenet")), ("row", 2, [])),
        (lambda: regions.main(["reach", SMALL, "micro_pale"]),
         ("backbone", 2, [SMALL, "micro_pale"])),
    ],
    ids=["certify", "ledger", "reach"],
)  # fmt: skip
def test_long_work_has_a_bar(call, wanted, monkeypatch):
    made = []

    class Kept(Bar):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.said = []
            made.append(self)

        def say(self, text):
            self.said.append(text)

    for module in (certificates, ledger, progress):
        monkeypatch.setattr(module, "Bar", Kept)
    call()
    assert [(bar.unit, bar.total, bar.said) for bar in made] == [wanted]


def test_events_of_runs_move_the_bar():
    """By what is new in an event, also of a run that began anew."""
    done = {"a": 0.0, "b": 0.0}
    shown = Bar([1, 2], unit="run")
    event = {"slot": "a", "accuracy": 0.5, "done": 0.25}
    assert moved(shown, done, event) == "a: 50.0%"
    moved(shown, done, event | {"slot": "b", "done": 1.0})
    moved(shown, done, event | {"done": 0.75})
    assert shown.done == 1.75 and done == {"a": 0.75, "b": 1.0}
