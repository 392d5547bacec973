"""The report as one HTML page that needs nothing else: no network, no file beside it.

Whatever a model or a data set said reaches the page as text: escaped where it is markup, as JSON set
through `textContent` where it is script. A content security policy forbids all that is loaded.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.evaluation.report.plots import Plot
from logitbank.evaluation.report.render import Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #2a7a3a; --bad: #b03030; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer; color: inherit; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figure { margin: 1.5rem 0; } figcaption, .note { color: GrayText; font-size: .9rem; }
select { font: inherit; max-width: 100%; } .controls { display: flex; flex-wrap: wrap; gap: .5rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem; border-radius: 4px; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: .8rem; }
.answer { border: 1px solid var(--line); border-radius: 4px; padding: .6rem; min-width: 0; }
.answer h4 { margin: 0 0 .4rem; overflow-wrap: anywhere; } .right { color: var(--good); } .wrong { color: var(--bad); }
"""

SCRIPT = """
"use strict";
function key(text) {
  const found = text.replace("−", "-").match(/^[+-]?[0-9]+(\\.[0-9]+)?/);
  return found ? parseFloat(found[0]) : null;
}
function compare(a, b) {
  const x = key(a), y = key(b);
  if (x !== null && y !== null) return x - y;
  if (x !== null) return -1;
  if (y !== null) return 1;
  return a.localeCompare(b);
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const rows = [...body.rows], text = row => row.cells[column].textContent;
    const shown = rows.filter(row => text(row) !== "—"), missing = rows.filter(row => text(row) === "—");
    shown.sort((a, b) => (down ? 1 : -1) * compare(text(a), text(b)));
    body.append(...shown, ...missing);
  }));
}
const examples = JSON.parse(document.getElementById("examples").textContent);
const cells = [...new Set(examples.map(e => e.task + "/" + e.language))];
const cellSelect = document.getElementById("cell"), exampleSelect = document.getElementById("example");
function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}
function fillExamples() {
  exampleSelect.replaceChildren();
  examples.forEach((e, index) => {
    if (e.task + "/" + e.language === cellSelect.value) {
      const option = element("option", e.example_id);
      option.value = index;
      exampleSelect.append(option);
    }
  });
  showExample();
}
function showExample() {
  const e = examples[exampleSelect.value], place = document.getElementById("shown");
  place.replaceChildren();
  if (!e) return;
  place.append(element("h3", "Question"), element("pre", e.question));
  place.append(element("h3", "Gold"), element("pre", e.gold));
  if (e.answers.length) place.append(element("h3", "Answers"));
  const grid = element("div", "", "answers");
  for (const a of e.answers) {
    const box = element("div", "", "answer"), detail = [a.variant, a.seed === null ? "" : "seed " + a.seed];
    box.append(element("h4", a.model + " " + a.condition + " " + detail.filter(Boolean).join(", ")));
    box.append(element("div", "score " + a.score.toFixed(2), a.score >= 1 ? "right" : "wrong"));
    box.append(element("pre", a.output === "" ? "(empty)" : a.output));
    if (a.parsed === null) box.append(element("div", "could not be read", "wrong"));
    if (a.prompt !== null) {
      const more = element("details", "");
      more.append(element("summary", "prompt"), element("pre", e.prompts[a.prompt]));
      box.append(more);
    }
    grid.append(box);
  }
  place.append(grid);
  if (e.teacher.length) {
    place.append(element("h3", "Teacher: five likeliest tokens at each place of the gold answer"));
    const views = [...new Set(e.teacher.map(t => t.view))], side = element("div", "", "answers");
    for (const view of views) {
      const box = element("div", "", "answer");
      box.append(element("h4", view));
      for (const t of e.teacher.filter(t => t.view === view)) {
        const line = element("div", "", t.top[0][0] === t.gold ? "right" : "wrong");
        line.append(element("code", JSON.stringify(t.gold)), " ← ");
        line.append(t.top.map(([text, p]) => JSON.stringify(text) + " " + (100 * p).toFixed(1) + "%").join("  "));
        box.append(line);
      }
      side.append(box);
    }
    place.append(side);
  }
}
if (examples.length) {
  for (const cell of cells) cellSelect.append(element("option", cell));
  cellSelect.addEventListener("change", fillExamples);
  exampleSelect.addEventListener("change", showExample);
  fillExamples();
} else {
  document.getElementById("browser").hidden = true;
}
"""


def html_page(
    facts: Sequence[str], tables: Sequence[Table], plots: Sequence[Plot], examples: Sequence[Mapping[str, Any]]
) -> str:
    """The whole page as text."""
    body = ["<h1>Results</h1>", "<ul>", *(f"<li>{html.escape(fact)}</li>" for fact in facts), "</ul>"]
    for plot in plots:
        source = f"data:image/png;base64,{base64.b64encode(plot.png).decode()}"
        caption = html.escape(plot.caption)
        body.append(f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>')
    body += [_table(table) for table in tables]
    body.append(
        '<section id="browser"><h2>Examples</h2><p class="note">A few of each cell: those evaluated on which the '
        "answers differ most, and some that the teacher store was built on.</p>"
        '<div class="controls"><label>Cell <select id="cell"></select></label> '
        '<label>Example <select id="example"></select></label></div><div id="shown"></div></section>'
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>Results</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + f'\n<script type="application/json" id="examples">{script_json(examples)}</script>'
        + f"<script>{SCRIPT}</script></body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _table(table: Table) -> str:
    heading = f"<h{table.level}>{html.escape(table.title)}</h{table.level}>"
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    if not table.rows:
        return heading + notes
    head = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in table.rows)
    return f'{heading}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}'
