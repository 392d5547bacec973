"""The report: facts from the rows, plots beside it, one page that needs nothing else and trusts nobody."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.evaluation.report.example_browser import browsed_examples
from logitbank.evaluation.report.page import html_page, script_json
from logitbank.evaluation.report.render import Table
from logitbank.evaluation.report.write import collect, write_report
from logitbank.storage import TeacherStore
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import write_rows
from tests.evaluation.conftest import add_run
from tests.evaluation.test_intervals import add_predictions, correct
from tests.evaluation.test_query import run
from tests.storage import stores

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

ANSWER: dict[str, Any] = {
    **{"model": "m", "condition": "c", "variant": "", "seed": 1},
    **{"output": ATTACK, "parsed": None, "score": 0.0, "prompt": 0},
}
EXAMPLE: dict[str, Any] = {  # one of the page's browser, as `browsed_examples` makes them
    **{"task": "nli", "language": "en", "example_id": ATTACK},
    **{"question": ATTACK, "gold": ATTACK, "prompts": [ATTACK], "answers": [ANSWER], "teacher": []},
}


class Outline(html.parser.HTMLParser):
    """Elements of a page and everything that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    right = rng.random(120) < 0.5
    for language in ("en", "hi"):
        add_predictions(tmp_path, ("nli", language), correct(right), condition="finetuned")
        better = right | (rng.random(120) < 0.6)
        add_predictions(tmp_path, ("nli", language), correct(better), condition="distilled")
    return tmp_path


def test_markdown_plots_and_page_are_written(results: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out" / "report.md"
    run(results, "report", "--output", str(output))
    assert "wrote" in capsys.readouterr().out
    text = output.read_text()
    assert "- m, distilled against finetuned: higher in nli." in text
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert {"report_plots/bars-0.png", "report_plots/heatmap-0.png", "report_plots/gaps-0.png"} <= set(images)
    for image in images:
        assert (output.parent / image).read_bytes().startswith(b"\x89PNG")
    page = output.with_suffix(".html").read_text()
    outline = Outline(page)
    assert outline.tags.count("img") == len(images)
    assert all(source.startswith("data:image/png;base64,") for source in outline.sources), "the page loads something"
    assert 'name="viewport"' in page


def test_facts_say_what_is_not_resolved(tmp_path: Path) -> None:
    same = correct([True, False] * 50)
    for condition in ("finetuned", "control"):
        add_predictions(tmp_path, ("nli", "en"), same, condition=condition)
    add_run(tmp_path, {("nli", "hi"): 0.1}, model="published")
    add_run(tmp_path, {("nli", "hi"): 0.2}, model="published", condition="finetuned")
    add_run(tmp_path, {("nli", "hi"): 0.3}, model="published", condition="control")
    found = collect(Catalogue([tmp_path])).facts
    assert "m, control against finetuned: not resolved in nli." in found
    assert "published, control against finetuned: without predictions to judge by in nli." in found


def test_examples_put_those_first_on_which_answers_differ(results: Path) -> None:
    examples = collect(Catalogue([results])).examples
    assert len(examples) == 2 * 6
    assert {example["language"] for example in examples} == {"en", "hi"}
    assert [answer["condition"] for answer in examples[0]["answers"]] == ["finetuned", "distilled"]


def test_examples_carry_each_prompt_once_and_the_teachers_five_likeliest_tokens(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    stores.build(store, stores.records(3))
    (example_id, *_) = TeacherStore.open(store).examples.example_id
    task, language = example_id.split("/")[:2]
    for condition, prompt in (("base", "short"), ("fewshot", "long"), ("finetuned", "short")):
        name = add_run(tmp_path, {(task, language): 1.0}, condition=condition)
        same = {"run": name, "model": "m", "condition": condition, "seed": 42, "task": task, "language": language}
        asked = {"split": "test", "method": "generate", "example_id": example_id, "prompt_hash": "0", "prompt": prompt}
        answer = {"demonstrations": 0, "question": "q", "output": "o", "gold": "1", "score": 1.0}
        row = {**same, **asked, **answer, "statistics": {"correct": 1.0, "parse_failure": 0.0}}
        write_rows(tmp_path, "predictions", [row], name)
    found = {example["example_id"]: example for example in browsed_examples(Catalogue([tmp_path], [store]))}
    assert len(found) == 3, "examples of the store alone are shown as well"
    assert all(
        len(other["teacher"]) >= 2 and other["question"] and other["gold"]
        for other in found.values()
        if other is not found[example_id]
    )
    example = found[example_id]
    assert example["prompts"] == ["short", "long"]
    assert [answer["prompt"] for answer in example["answers"]] == [0, 1, 0]
    rows = TeacherStore.open(store).read([0], example["teacher"][0]["view"])
    top = example["teacher"][0]["top"]
    assert [text for text, _ in top] == [f"<{token}>" for token in rows.token_ids[0, :5]], "its tokenizer is not here"
    assert [p for _, p in top] == pytest.approx(np.exp(rows.logits[0, :5] - rows.logsumexp[0]))


def test_model_text_never_becomes_markup() -> None:
    page = html_page([ATTACK], [Table(ATTACK, [ATTACK], [[ATTACK]], [ATTACK])], [], [EXAMPLE])
    outline = Outline(page)
    assert outline.tags.count("script") == 2
    assert "img" not in outline.tags
    assert "default-src 'none'" in page
    embedded = re.search(r'id="examples">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1])[0]["question"] == ATTACK
    assert "<" not in script_json({"a": "<!--<script>", "b": "\u2028"})


def test_the_output_has_to_be_markdown(results: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run(results, "report", "--output", str(tmp_path / "report.html"))
    assert caught.value.code == 2
    assert "expected a name that ends in .md" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the PATH")
def test_the_page_works_in_a_browser(results: Path, tmp_path: Path) -> None:
    """Headless: the example browser fills itself, sorting reorders rows, no script of a model runs."""
    *_, page = write_report(Catalogue([results]), tmp_path / "report.md")
    table = Table("T", ["model", "score"], [["a", "5.0 ±1.0"], ["b", "—"], ["c", "70.1"], ["d", "-3.0"]])
    teacher = [{"view": "fewshot", "position": 0, "gold": ATTACK, "top": [[ATTACK, 0.75], ["no", 0.25]]}]
    text = html_page([ATTACK], [table], [], [{**EXAMPLE, "teacher": teacher}])
    click = "<script>document.querySelectorAll('th button')[1].click()</script>"
    page.write_text(text.replace("</body>", f"{click}</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,844", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    dom = done.stdout
    assert "<title>Results</title>" in dom, "a model's script ran"
    assert re.findall(r"<tr><td>(\w)</td>", dom) == ["c", "a", "d", "b"]
    assert 'aria-sort="descending"' in dom
    assert "could not be read" in dom
    assert "score 0.00" in dom
    assert "<summary>prompt</summary>" in dom
    assert "75.0%" in dom
