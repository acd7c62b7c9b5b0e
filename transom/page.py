"""One self-contained HTML page: a table that a click on a heading sorts."""

from __future__ import annotations

from collections.abc import Sequence

STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse }
th, td { padding: .3em .7em; border-bottom: 1px solid #ccc; text-align: left }
th { cursor: pointer; border-bottom: 2px solid #444 }
th[aria-sort=ascending]::after { content: " \\2191" }
th[aria-sort=descending]::after { content: " \\2193" }
.n { text-align: right; font-variant-numeric: tabular-nums }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616 } }
"""
SORT_ON_CLICK = """
for (const th of document.querySelectorAll("th")) th.addEventListener("click", () => {
  const up = th.getAttribute("aria-sort") !== "ascending";
  for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = th.closest("table").tBodies[0], key = row => row.cells[th.cellIndex].dataset.v;
  const order = (a, b) => (a === "") - (b === "") ||
    (up ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  for (const row of [...body.rows].sort((a, b) => order(key(a), key(b)))) body.append(row);
});
"""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>{{ style | safe }}</style></head><body>
<h1>{{ title }}</h1>
<table><thead><tr>
{%- for name, numbers in heads %}<th{{ ' class="n"' | safe if numbers }}>{{ name }}</th>
{%- endfor %}</tr></thead><tbody>
{% for row in rows %}
<tr>
{%- for exact, shown in row -%}
<td{{ ' class="n"' | safe if heads[loop.index0][1] }} data-v="{{ exact }}">{{ shown }}</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody></table>
<p>{{ note }}</p>
<script>{{ script | safe }}</script></body></html>"""


def html(
    heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[tuple[str, str]]], title: str,
    note: str,
) -> str:  # fmt: skip
    """An HTML page with one sortable table; all text is escaped.

    Args:
        heads: (name, whether it holds numbers) per column.
        rows: per row, (exact value, shown text) per cell; columns sort by the exact value.
        title: heading above the table.
        note: paragraph below the table.

    Returns:
        The page, without an address of any other resource.

    Example:
        >>> from transom.page import html
        >>> "<td" in html([("size", True)], [[("1000", "1,000")]], "Sizes", "")
        True
    """
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    style, script = STYLE.strip(), SORT_ON_CLICK.strip()
    return template.render(
        heads=heads, rows=rows, title=title, note=note, style=style, script=script
    )  # fmt: skip
