"""One HTML page without any address in it: a table that sorts by a click on a heading."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
table {{ border-collapse: collapse }}
th, td {{ padding: .3em .7em; border-bottom: 1px solid #ccc; text-align: left }}
th {{ cursor: pointer; border-bottom: 2px solid #444 }}
th[aria-sort=ascending]::after {{ content: " \\2191" }}
th[aria-sort=descending]::after {{ content: " \\2193" }}
.n {{ text-align: right; font-variant-numeric: tabular-nums }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #161616 }} }}
</style></head><body>
<h1>{title}</h1>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<p>{note}</p>
<script>
for (const th of document.querySelectorAll("th")) th.addEventListener("click", () => {{
  const up = th.getAttribute("aria-sort") !== "ascending";
  for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = th.closest("table").tBodies[0], key = row => row.cells[th.cellIndex].dataset.v;
  const order = (a, b) => (a === "") - (b === "") ||
    (up ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  for (const row of [...body.rows].sort((a, b) => order(key(a), key(b)))) body.append(row);
}});
</script></body></html>"""


def html(
    heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[tuple[str, str]]], title: str,
    note: str,
) -> str:  # fmt: skip
    """The page as text; marks in it are escaped.

    Args:
        heads: of each column its name, and whether it holds numbers.
        rows: of each cell the exact value, by which a column is sorted, and what is shown.
        title: above the table.
        note: below it.

    Example:
        >>> "<td" in html([("size", True)], [[("1000", "1,000")]], "Sizes", "")
        True
    """
    marks = [' class="n"' if numbers else "" for _, numbers in heads]
    head = "".join(f"<th{m}>{escape(name)}</th>" for m, (name, _) in zip(marks, heads, strict=True))
    lines = [
        "<tr>" + "".join(
            f'<td{m} data-v="{escape(exact)}">{escape(shown)}</td>'
            for m, (exact, shown) in zip(marks, row, strict=True)
        ) + "</tr>"
        for row in rows
    ]  # fmt: skip
    body = "\n".join(lines)
    return _PAGE.format(title=escape(title), head=head, body=body, note=escape(note))
