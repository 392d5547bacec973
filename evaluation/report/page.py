"""The report as one HTML page that needs nothing else: no network, no file beside it.

Whatever a model or a data set said reaches the page as text: escaped if it is markup, as JSON set
through `textContent` if it is script. A content security policy forbids all that is loaded, and every
script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt

from logitbank.evaluation.report.charts import Chart
from logitbank.evaluation.report.interactive import figure_json, library
from logitbank.evaluation.report.table import Table, block_rows, column_blocks

WIDEST = 1180  # pixels that a table may take on a screen of 1,280
CHARACTER, PADDING = 8, 20  # pixels of a cell
LABEL = 220  # pixels of the first column, whose text may break

MARKDOWN = MarkdownIt("zero").enable("backticks")  # code spans; all else is text


def html_page(
    facts: Sequence[str], tables: Sequence[Table], charts: Sequence[Chart], examples: Sequence[Mapping[str, Any]]
) -> str:
    """The whole page as text."""
    resources = importlib.resources.files(__package__)
    style = resources.joinpath("page.css").read_text(encoding="utf-8")
    scripts = [resources.joinpath("page.js").read_text(encoding="utf-8")]
    if any(chart.drawn for chart in charts):
        scripts.insert(0, library())
    body = ["<h1>Results</h1>", "<ul>", *(f"<li>{_inline(fact)}</li>" for fact in facts), "</ul>"]
    body += [_figure(chart) for chart in charts]
    body += [_table(table) for table in tables]
    body.append(
        '<section id="browser"><h2>Examples</h2><p class="note">A few of each cell: the evaluated ones on which the '
        "answers differ most, and some that the teacher store was built on.</p>"
        '<div class="controls"><label>Cell <select id="cell"></select></label> '
        '<label>Example <select id="example"></select></label></div><div id="shown"></div></section>'
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">'
        f"<title>Results</title><style>{style}</style></head><body>\n"
        + "\n".join(body)
        + f'\n<script type="application/json" id="examples">{script_json(examples)}</script>'
        + "".join(f"<script>{script}</script>" for script in scripts)
        + "</body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it is in."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded, and no script runs but these; Plotly styles its drawings and saves them as images."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}"


def _figure(chart: Chart) -> str:
    caption = f"<figcaption>{_inline(chart.caption)}</figcaption>"
    if not chart.drawn:
        return f"<figure>{caption}</figure>"
    name = html.escape(f"chart-{chart.name}")
    figure = figure_json(chart)
    return (
        f'<figure><div class="chart" id="{name}" style="height: {figure["layout"]["height"]}px"></div>{caption}'
        f'<script type="application/json" id="{name}-figure">{script_json(figure)}</script></figure>'
    )


def _table(table: Table) -> str:
    heading = f"<h{table.level}>{_inline(table.title)}</h{table.level}>"
    notes = "".join(f'<p class="note">{_inline(note)}</p>' for note in table.notes)
    if not table.rows:
        return heading + notes
    widths = [_pixels(table, column) for column in range(len(table.header))]
    blocks = column_blocks(widths, WIDEST, table.groups)
    return heading + "".join(_block(table, block) for block in blocks) + notes


def _block(table: Table, columns: Sequence[int]) -> str:
    heads = [f'<th scope="col"><button type="button">{_inline(table.header[c])}</button></th>' for c in columns]
    rows = []
    for row in block_rows(table, columns):
        cells = [
            f'<td data-column="{html.escape(table.header[c])}">{_cell(row[c], label=c == 0)}</td>' for c in columns
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(text: str, *, label: bool) -> str:
    """A label may break anywhere; a number and its interval only between each other."""
    if label:
        return _inline(text)
    return " ".join(f"<span>{html.escape(part)}</span>" for part in _parts(text))


def _parts(text: str) -> list[str]:
    """`+1.2`, `[-3.0, +5.4]`, `≈0`."""
    parts: list[str] = []
    for word in text.split(" "):
        if parts and parts[-1].startswith("[") and not parts[-1].endswith("]"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts


def _pixels(table: Table, column: int) -> int:
    """Width that a column needs at least."""
    if column == 0:
        return min(LABEL, CHARACTER * max(len(row[0]) for row in table.rows) + PADDING)
    parts = [part for row in table.rows for part in _parts(row[column])]
    return CHARACTER * max(len(text) for text in [*table.header[column].split(), *parts]) + PADDING


def _inline(text: str) -> str:
    return str(MARKDOWN.renderInline(text))
