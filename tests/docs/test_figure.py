"""The README's figure and its table of the demo are of one run."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tests.docs.pages import ROOT

FIGURE = ROOT / "docs/demo.svg"


def test_the_figure_shows_the_numbers_of_the_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](docs/demo.svg)" in readme
    header, *rows = re.findall(r"^\| (?:task |gsm8k|nli|pa|qa|ner|pos|task_mean) .*$", readme, re.MULTILINE)
    conditions = [name for name in map(str.strip, header.strip("|").split("|")[1:]) if "−" not in name]
    shown: dict[str, list[str]] = {name: [] for name in conditions}
    for row in rows:
        for name, text in zip(conditions, row.strip("|").split("|")[1:], strict=False):
            shown[name].append(text.split()[0])
    (said,) = (e.text or "" for e in ElementTree.parse(FIGURE).iter("{http://purl.org/dc/elements/1.1/}description"))
    drawn = {part.split(": ")[0]: re.findall(r" (\d+\.\d)(?:,|$)", part) for part in said.split("; ")}
    assert drawn == shown


def test_the_figure_is_small_and_needs_nothing_else() -> None:
    text = FIGURE.read_text(encoding="utf-8")
    assert len(text) < 60_000
    assert re.findall(r"""(?:href="|url\()[^#"]+""", text) == []
