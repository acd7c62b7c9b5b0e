"""Rows as one HTML page without any address in it."""

from __future__ import annotations

from collections.abc import Sequence

from transom.table import Row, columns_of, number, numeric, plain

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


def html(rows: Sequence[Row], title: str, note: str) -> str:
    """One page without any address in it: a table that sorts by a click on a heading."""
    from html import escape

    columns = columns_of(rows)
    mark = {c: ' class="n"' if numeric(rows, c) else "" for c in columns}
    head = "".join(f"<th{mark[c]}>{escape(plain(c))}</th>" for c in columns)
    lines = []
    for row in rows:
        cells = []
        for c in columns:
            value = row.get(c)
            exact = "" if value is None else plain(str(value))
            shown = escape(plain(number(value)))
            cells.append(f'<td{mark[c]} data-v="{escape(exact)}">{shown}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return _PAGE.format(
        title=escape(plain(title)), head=head, body="\n".join(lines), note=escape(plain(note))
    )
