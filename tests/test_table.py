"""Whatever a text contains, a cell stays a cell: in HTML, Markdown, LaTeX, CSV, JSON and on a
terminal; and every format, parsed by a reader written here, gives the cells back."""

from __future__ import annotations

import csv as reader
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from transom import cli, table
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent

PAYLOADS = [
    "</script>", "</script><script>alert(1)</script>", "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "<svg><animate onbegin=alert(1)>",
    '"><img src=x onerror=alert(1)>', "'><img src=x onerror=alert(1)>", '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='", '" style="background:url(//e.org)"', "javascript:alert(1)",
    "JaVaScRiPt:alert(1)", "data:text/html,<script>alert(1)</script>", "<a href=//e.org>x</a>",
    "<!--", "-->", "<!-- <script>", "--!>", "<![CDATA[", "]]>", "<?php echo 1 ?>", "<!DOCTYPE a>",
    "</td></tr></table>", "</title><script>alert(1)</script>", "</style><style>*{}</style>",
    "</html>", "</body><body onload=alert(1)>", "<base href=//e.org>", "<iframe srcdoc='<p>'>",
    "<meta http-equiv=refresh content=0>", "<link rel=stylesheet href=//e.org>", "<math><mi>",
    "<template>", "<noscript>", "<textarea>", "<plaintext>", "<xmp>", "<form action=//e.org>",
    "&lt;script&gt;", "&#60;img&#62;", "&amp;lt;", "&", "&copy;", "\u2028alert(1)", "\u2029x",
    "\u202egnp.exe", "\u2066a\u2069", "\u200fb", "\u200b=1", "\ufeffx", "\0<b>", "\x1b[31mr\x1b[0m",
    "\x1b]8;;https://e.org\x07link\x1b]8;;\x07", "\x1b]0;title\x07", "\x9b2J", "a\nb\r\nc\td",
    "`<b>`", "${alert(1)}{{7*7}}", "{title}{0}{}%s%(x)s",
]  # fmt: skip
FIELDS = ("column", "cell", "list", "title", "note")
BENIGN = "plain"


def page(payload: str, field: str, style: str = "html") -> str:
    """A report with the payload in one field, and harmless text in the others."""
    texts = dict.fromkeys(FIELDS, BENIGN) | {field: payload}
    rows = [
        {texts["column"]: 1, "model": texts["cell"], "n": -1.5, "made": [texts["list"]]},
        {texts["column"]: 2, "model": "swin_t", "n": None, "made": None},
    ]
    return table.render(rows, style, title=texts["title"], note=texts["note"])


def test_there_are_sixty_payloads():
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 60


# -- HTML (J1) -------------------------------------------------------------------------------


class Dom(HTMLParser):
    """Tags with their attributes (data-v apart), and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple] = []
        self.values: list[str] = []
        self.other: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple((k, v) for k, v in attrs if k != "data-v")))
        self.values += [v for k, v in attrs if k == "data-v"]
        self.tags += [("data-v",)] * sum(k == "data-v" for k, _ in attrs)
        if tag != "meta":
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        self.tags.append(("/", tag))
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def handle_comment(self, data):
        self.other.append(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def shape(text: str) -> tuple:
    """What a browser would build, without the texts."""
    dom = Dom(text)
    return dom.tags, dom.other, dom.texts["script"], dom.texts["style"]


@pytest.mark.parametrize("field", FIELDS)
def test_no_text_changes_the_page(field):
    """60 payloads in every string field: the same tags, attributes, script and style."""
    benign = shape(page(BENIGN, field))
    assert len(benign[0]) > 30
    for payload in PAYLOADS:
        text = page(payload, field)
        assert shape(text) == benign, payload
        assert all(c.isprintable() or c == "\n" for c in text), payload


def test_the_page_loads_nothing():
    """One policy that forbids everything but its own style and script, and no address at all."""
    text = page(BENIGN, "cell")
    (policy,) = [dict(a) for tag, *a in Dom(text).tags if tag == "meta" for a in a if len(a) == 2]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none';")
    assert text.index("Content-Security-Policy") < text.index("<title>") < text.index("<script>")
    assert not re.search(r"https?:|//\w|\bsrc=|\bhref=|@import|url\(", text)


@pytest.mark.parametrize(
    "broken",
    ["<td>{}</td>", '<td data-v="{}">x</td>', "<script>const name = '{}'</script>"],
)
def test_an_unescaped_page_is_seen(broken):
    """Negative control: the comparison notices a page that puts the text in as it is."""
    plain = "<html><style></style><script></script>"
    benign = shape(plain + broken.format(BENIGN))
    assert any(shape(plain + broken.format(payload)) != benign for payload in PAYLOADS)


# -- Markdown, LaTeX and the terminal (J2) ---------------------------------------------------


def raw_html(text: str) -> bool:
    """Whether a < or & stands in Markdown without a backslash, or as an entity but &amp;."""
    return bool(re.search(r"(?<!\\)(?:\\\\)*[<>]|&(?!amp;)", text))


@pytest.mark.parametrize("style", ["table", "md", "latex"])
@pytest.mark.parametrize("field", FIELDS)
def test_no_text_leaves_its_row(style, field):
    """The same number of lines, of cells in Markdown, and nothing that a terminal would obey."""
    benign = page(BENIGN, field, style)
    for payload in PAYLOADS:
        text = page(payload, field, style)
        if field != "note":  # a note may have several lines
            assert len(text.splitlines()) == len(benign.splitlines()), payload
        assert all(c.isprintable() or c == "\n" for c in text), payload
        assert not any(unicodedata.bidirectional(c) in BIDI for c in text), payload
        if style == "md":
            assert not raw_html(text), payload
            assert [len(row) for row in read_md(text.split("\n\n")[0])] == [4, 4, 4], payload


BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@pytest.mark.parametrize("text", ["a <b>", "a &lt;", "\\\\<b>"])
def test_raw_html_is_seen(text):
    """Negative control of the reader above."""
    assert raw_html(text) and not raw_html("a \\<b\\> &amp; c")


# -- CSV (J3) --------------------------------------------------------------------------------

FORMULAS = [
    lead + start + rest
    for lead in ("", " ", "   ", "\u00a0", "\u3000", "\u200b", "\ufeff", "\n", " \t", "\r", "\0")
    for start in ("=", "+", "-", "@", "\t", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    for rest in ("1+1", "cmd|' /C calc'!A0", "SUM(A1:A9)", "")
]


def test_no_cell_is_a_formula():
    """What a spreadsheet would run begins with an apostrophe, in cells and in headings."""
    assert len(FORMULAS) > 300
    for text in FORMULAS:
        for rows in ([{"a": text, "b": 1}], [{text: 1, "b": 2}]):
            written = table.csv(rows)
            lines = reader.reader(io.StringIO(written, newline=""))
            cells = [cell for line in lines for cell in line]
            assert len(cells) == 4 and sum(cell.startswith("'") for cell in cells) == 1, text
            assert "\0" not in written
        (row,) = table.read_csv(table.csv([{"a": text, "b": 1}]))
        assert row == {"a": text.replace("\0", " ").replace("\r", " "), "b": "1"}


@pytest.mark.parametrize("value", [-1.5, -7, 0, 10**40, -(10**40), 1e-300, -1e300, 0.1 + 0.2])
def test_numbers_are_left_alone(value):
    written = table.csv([{"a": value, "b": None}, {"a": None, "b": value}])
    assert written == f"a,b\n{value!r},\n,{value!r}"


@pytest.mark.parametrize("text", ["swin_t/3=pale", "a - b", "x@y", "'", "''", "it's", "", " "])
def test_other_text_is_left_alone(text):
    written = table.csv([{"a": text, "b": 1}]).splitlines()[1]
    assert written == ("'" if text.startswith("'") else "") + text + ",1"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [*PAYLOADS, *FORMULAS, "'=1", "''", '"', '""', ",", "a,b", "\r", "\n", "\r\n", "'\r"]
)


@settings(max_examples=300)
@given(
    columns=st.lists(texts.map(table.harmless), min_size=1, max_size=4, unique=True),
    data=st.data(),
)
def test_csv_reads_back(columns, data):
    """Any text in any cell and heading, apostrophes, tabs and line ends included; what a terminal
    would obey is spaces."""
    row = st.fixed_dictionaries(dict.fromkeys(columns, texts))
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    wanted = [{c: table.harmless(v) for c, v in row.items()} for row in rows]
    assert table.read_csv(table.csv(rows)) == wanted


@pytest.mark.parametrize("text", ["a\tb\nc", "\u00a0x", "\u4e00\u3000\u4e8c", "a\u200cb", "\u00e9"])
def test_text_of_any_language_is_kept(text):
    assert table.harmless(text) == text
    assert table.read_csv(table.csv([{"a": text, "b": 1}])) == [{"a": text, "b": "1"}]


@pytest.mark.parametrize("c", "\0\x07\b\r\x1b\x7f\x85\x9b\u202e\u2066\u2028\ud800")
def test_what_a_terminal_obeys_is_a_space(c):
    """In csv, on the terminal and in files."""
    assert table.harmless(f"a{c}b") == "a b"
    assert table.csv([{"n": f"a{c}b"}]) == "n\na b"


# -- every format parsed back ----------------------------------------------------------------


def read_md(text: str) -> list[list[str]]:
    """A table of Markdown: cells between bars, backslashes undone, the rule left out."""
    rows = []
    for line in text.splitlines():
        cells = re.findall(r"((?:\\.|[^\\|])*)\|", line.strip()[1:])
        rows.append([re.sub(r"\\(.)", r"\1", c).replace("&amp;", "&").strip() for c in cells])
    return [rows[0], *rows[2:]]


def read_table(text: str) -> list[list[str]]:
    """An aligned table: columns are as wide as the dashes below the headings."""
    head, rule, *body = text.splitlines()
    spans = [m.span() for m in re.finditer("-+", rule)]
    return [[line[a:b].strip() for a, b in spans] for line in (head, *body)]


_LATEX = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\^{}": "^",
    r"\ensuremath{<}": "<", r"\ensuremath{>}": ">",
    **{f"\\{c}": c for c in "&%$#_{}"},
}  # fmt: skip


def read_latex(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    marks = re.compile("|".join(map(re.escape, sorted(_LATEX, key=len, reverse=True))))
    rows = [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]
    return [[marks.sub(lambda m: _LATEX[m[0]], c).strip() for c in row] for row in rows]


def read_html(text: str) -> tuple[list[list[str]], list[str]]:
    """The shown cells row by row, and the exact values that the headings sort by."""
    dom = Dom(text)
    width, cells = len(dom.texts["th"]), dom.texts.get("td", [])
    body = [cells[i : i + width] for i in range(0, len(cells), width)]
    return [dom.texts["th"], *body], dom.values


words = st.text("abc xyz_/=+:.,-<>&|\\{}$%#~^*`'\"[]\u00e9\u4e00", min_size=1, max_size=10).map(
    lambda text: "x" + text.strip() + "x"
)
numbers = (
    st.integers(-(10**45), 10**45)
    | st.integers(-99999, 99999)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
)
table_rows = st.lists(
    st.fixed_dictionaries({"m|o<d>": words, "n": numbers, "k": numbers | st.none()}, optional={
        "note": words | st.none() | st.just(""),
    }),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=200)
@given(rows=table_rows)
def test_every_format_reads_back(rows):
    """Text, whole numbers, fractions, flags and nothing, in six formats, parsed by six readers."""
    columns = table.columns_of(rows)
    shown = [[table.number(row.get(c)) for c in columns] for row in rows]
    kept = [i for i, c in enumerate(columns) if any(row.get(c) not in (None, "") for row in rows)]
    reading = [[line[i] for i in kept] for line in (columns, *shown)]
    if not any(ord(c) > 0x2E80 for line in reading for cell in line for c in cell):
        assert read_table(table.render(rows, "table")) == reading  # wide letters shift columns
    assert read_md(table.render(rows, "md")) == reading
    assert read_latex(table.render(rows, "latex")) == reading
    cells, exact = read_html(table.render(rows, "html", title="t", note="n"))
    assert cells == [columns, *shown]
    whole = [["" if row.get(c) is None else str(row[c]) for c in columns] for row in rows]
    assert exact == [cell for line in whole for cell in line]
    assert [list(row.values()) for row in table.read_csv(table.render(rows, "csv"))] == whole
    assert json.loads(table.render(rows, "json"))["rows"] == rows


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""), ("", ""), (True, "yes"), (False, "no"), (0, "0"), (-1234567, "-1,234,567"),
        (10**30, "1" + ",000" * 10), (0.0, "0"), (-1.5, "-1.5"), (1 / 3, "0.3333"),
        (9999.4, "9,999"), (9999.6, "10,000"), (-9999.9, "-10,000"), (123456.7, "123,457"),
        (1e-9, "1e-09"), (1e300, "1e+300"), (float("nan"), "nan"), (-math.inf, "-inf"),
        ("-1.5", "-1.5"),
    ],
)  # fmt: skip
def test_numbers_as_they_are_read(value, shown):
    assert table.number(value) == shown


@pytest.mark.parametrize("style", table.REPORT_FORMATS)
def test_a_table_without_rows(style):
    text = table.render([], style, title="t", note="n")
    assert style != "json" or json.loads(text) == {"convention": "n", "rows": []}
    assert style != "html" or "<tbody>" in text


@pytest.mark.parametrize("style", ["table", "md", "latex"])
def test_a_column_without_a_value_is_left_out(style):
    text = table.render([{"model": "a", "top1": None, "note": ""}], style)
    assert "model" in text and "top1" not in text and "note" not in text


# -- files (J4) ------------------------------------------------------------------------------


def test_only_the_named_file_is_written(tmp_path, monkeypatch):
    """200 hostile names: the file that was named is written whole, or one line says why not."""
    rng = random.Random(0)
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pieces = ["a", "..", " ", ".", "CON", "\u00e9", "e\u0301", "-x", "~", "$HOME", "*", "\n", "%s",
              "\u202e", "x.html", ";rm", "'", '"', "\\"]  # fmt: skip
    for _ in range(200):
        name = "x" + "".join(rng.choice(pieces) for _ in range(rng.randint(1, 5)))
        cli.emit("text", Path(name))
        assert Path(name).read_text() == "text\n"
        assert os.listdir(folder) == [name]
        Path(name).unlink()
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("name", ["no/such/folder", "folder"])
def test_what_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match="--out"):
        cli.emit("text", tmp_path / name)
    assert os.listdir(tmp_path) == ["folder"]


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    """A write that fails leaves the old file and no other."""
    out = tmp_path / "t.md"
    cli.emit("first", out)

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SpecError, match="No space left"):
        cli.emit("second", out)
    assert out.read_text() == "first\n" and os.listdir(tmp_path) == ["t.md"]


def test_the_ending_names_the_format(tmp_path):
    """--out t.csv is CSV; --format wins over the ending."""
    for argv, start in (
        (["--out", "t.csv"], "mixer,option"), (["--out", "t.json"], "{"),
        (["--out", "t.md"], "| mixer"), (["--out", "t.csv", "--format", "json"], "{"),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "attention", *argv], cwd=tmp_path, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / argv[1]).read_text().startswith(start)
