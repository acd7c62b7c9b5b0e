"""Tables that fit: no line is longer than the terminal, and what is left out is named."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom import cli, layout, table
from transom.layout import Look

ROOT = Path(__file__).resolve().parent.parent
RUNS = "benchmarks/results/xeon-amx"
WIDTHS = (80, 100, 120, 200)

words = st.text(st.sampled_from("ab/=:, é語👍\x1b\ue000"), max_size=40)
cells = st.one_of(st.none(), st.booleans(), st.integers(-10**9, 10**9), st.floats(), words)
tables = st.lists(
    st.dictionaries(st.sampled_from(["name", "macs", "params, M", "a verdict", "語"]), cells),
    min_size=1, max_size=5,
)  # fmt: skip


def screen_lines(text: str) -> list[str]:
    """Lines as a terminal shows them: without colours."""
    return [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip("\r") for line in text.split("\n")]


@given(tables, st.integers(20, 120))
def test_no_line_is_longer_than_the_terminal(rows, width):
    look = Look(first=("params, M",), best={"macs": "least"}, footnotes=("a verdict",))
    text = table.grid(rows, table.Style("table", width), look)
    assert all(layout.cell_width(line) <= width for line in text.split("\n"))


@given(tables, st.integers(20, 120))
def test_every_column_is_shown_or_named(rows, width):
    """A head is in the table, on the cards, or behind "not shown"."""
    keys = [k for k in table.columns_of(rows)
            if any(row.get(k) not in (None, "") for row in rows)]  # fmt: skip
    text = table.grid(rows, table.Style("table", width))
    flat = "".join(text.split())
    for key in keys[1:]:
        assert "".join(key.split()) in flat or all(
            not table.cell(row.get(key), "table").strip() for row in rows
        )


def test_the_most_important_columns_stay():
    rows = [{"model": "swin_t", "library": "transom", "macs": 4491, "note": "of the paper"}]
    look = Look(first=("note", "macs"))
    text = table.grid(rows, table.Style("table", 32), look)
    assert text.split("\n") == [
        "model    macs  note",
        "------  -----  ------------",
        "swin_t  4,491  of the paper",
        "",
        "not shown at 32 columns:",
        "  library; --width 0 shows all",
    ]
    assert "library" in table.grid(rows, "table", look).split("\n")[0]  # a pipe has everything


def test_a_terminal_too_narrow_has_cards():
    names = [f"swin_t/{i}=pale:size=7" for i in (1, 2)]
    rows = [{"backbone": name, "verdict": "better (p = 0.0006)"} for name in names]
    text = table.grid(rows, table.Style("table", 20))
    assert text.split("\n") == [
        "swin_t/1=pale:size=7", "  verdict  better (p", "           = 0.0006)", "",
        "swin_t/2=pale:size=7", "  verdict  better (p", "           = 0.0006)",
    ]  # fmt: skip


def test_numbers_stand_at_their_points_and_the_best_has_a_star():
    rows = [{"model": "a", "ms": 4.25}, {"model": "b", "ms": 12}, {"model": "c", "ms": 130.5}]
    text = table.grid(rows, "table", Look(heads={"ms": "time, ms"}, best={"ms": "least"}))
    assert text.split("\n") == [
        "model  time, ms", "-----  --------", "a         4.25*", "b        12", "c       130.5", "",
        "* best of its column",
    ]  # fmt: skip
    assert "**4.25**" in table.grid(rows, "md", Look(best={"ms": "least"}))
    assert "*" not in table.grid(rows[:1] * 2, "table", Look(best={"ms": "least"}))  # none is best
    assert json.loads(table.render(rows, "json", look=Look(best={"ms": "least"})))["rows"] == rows


def test_long_texts_stand_below_once():
    sources = {"a": "README", "b": "paper", "c": "README"}
    rows = [{"model": model, "source": source} for model, source in sources.items()]
    text = table.grid(rows, "table", Look(footnotes=("source",)))
    assert text.split("\n")[2:] == [
        "a      [1]", "b      [2]", "c      [1]", "", "[1] README", "[2] paper",
    ]  # fmt: skip


def test_colours_are_carried_out_or_taken_out_and_nobody_can_forge_them():
    rows = [{"model": "\ue000g\x1b[31mx", "agree": False}, {"model": "y", "agree": True}]
    look = Look(bad=lambda key, value: value is False)
    text = table.grid(rows, table.Style("table", 80, colours=True), look)
    assert layout.coloured(text, True).count("\x1b") == 2
    assert "\x1b" not in layout.coloured(text, False)
    assert layout.BAD not in table.grid(rows, "table", look)


def on_a_terminal(argv: list[str], width: int, **environment: str) -> str:
    """What a command writes to a terminal of a width, both streams."""
    import fcntl
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", *argv], stdout=follower, stderr=subprocess.DEVNULL, cwd=ROOT,
        env={**env, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    os.close(follower)
    found = b""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if select.select([leader], [], [], 1)[0]:
            try:
                part = os.read(leader, 65536)
            except OSError:  # Linux says so at the end
                break
            if not part:
                break
            found += part
    assert process.wait() in (0, 1), found
    os.close(leader)
    return found.decode()


CHEAP = [
    ["transom", "variants"],
    ["transom", "mixers"],
    ["transom", "diff", "swin_t", "swin_t/3=pale:size=7/4=full"],
    ["transom", "show", "swin_t/3=pale"],
    ["transom", "train", "compare", "--table", f"{RUNS}/learning/order.jsonl", "--target", "0.95"],
    ["transom", "train", "study"],
]
DEAR = [
    ["transom", "flops", "micro_pale", "swin_t/stages=2"],
    ["transom", "flops", "micro_pale", "--by", "operator"],
    ["transom", "compare", "swin_t", "pale_t", "swin_t/3=pale:size=7", "torchvision:resnet18"],
    ["transom", "complexity"],
    ["transom", "audit", "swin_t", "pale_t"],
    ["transom", "sweep", "micro_pale", "--values", "32", "64"],
    ["transom", "check", "window:size=2", "--only", "batch"],
    ["transom", "certify", "micro_window", "--seeds", "1"],
    ["transom", "fit", "micro_pale", "--macs", "2M"],
    ["transom", "bench", "speed", "--table", f"{RUNS}/speed/eager.jsonl"],
    ["transom", "bench", "ablation", "--table", f"{RUNS}/ablation/today.jsonl"],
    ["transom", "regions", "reach", "--backbone", "swin_t/stages=2"],
]


def check_that_it_fits(argv, width):
    text = on_a_terminal(argv, width)
    lines = screen_lines(text)
    longest = max(lines, key=layout.cell_width)
    assert layout.cell_width(longest) <= width, longest
    assert len(text) > 100


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("argv", CHEAP[::2], ids=lambda argv: " ".join(argv[1:3]))
def test_a_command_fits_the_terminal(argv, width):
    check_that_it_fits(argv, width)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("argv", CHEAP + DEAR, ids=lambda argv: " ".join(argv[1:3]))
def test_every_command_fits_every_terminal(argv, width):
    check_that_it_fits(argv, width)


def test_no_colour_where_none_is_wanted():
    argv = ["transom", "train", "compare", "--table", f"{RUNS}/learning/order.jsonl"]
    assert "\x1b[1;32m" in on_a_terminal(argv, 100)
    assert "\x1b" not in on_a_terminal(argv, 100, NO_COLOR="1")


def test_a_pipe_is_whole_and_a_width_can_be_asked_for(capsys):
    from attention import __main__ as mixers

    rows = [{"name": "x", **{f"column {i}": i for i in range(20)}}]
    parser = cli.parser("x", "")
    cli.add_output(parser)
    for argv, whole in ([], True), (["--width", "0"], True), (["--width", "60"], False):
        args = parser.parse_args(argv)
        cli.emit(table.render(rows, cli.chosen_format(args)), args)
        lines = capsys.readouterr().out.rstrip("\n").split("\n")
        assert ("column 19" in lines[0]) == whole == (max(map(len, lines)) > 60)
    assert mixers.main(["--width", "60"]) == 0
    assert max(map(len, capsys.readouterr().out.split("\n"))) <= 60


@pytest.mark.parametrize("width", [80, 50])
def test_terms_below_a_table_are_a_line_each(width, capsys):
    """Readable at 80 columns; where there are fewer, the rest of a term hangs below it."""
    from analysis.results.reporting import NOTE

    parser = cli.parser("x", "")
    cli.add_output(parser)
    cli.emit(NOTE, parser.parse_args(["--width", str(width)]))
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width
    starts = [line for line in lines if not line.startswith("  ")]
    assert all(re.match(r"[\w %,]+: ", line) for line in starts)
    assert len(starts) == len(NOTE.split("\n")) and (lines == starts) == (width == 80)
