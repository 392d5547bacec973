"""The report: facts from the rows, plots beside it, one page that needs nothing else and trusts nobody."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.evaluation.report.charts import Chart, Panel, Series
from logitbank.evaluation.report.example_browser import browsed_examples
from logitbank.evaluation.report.interactive import figure_json
from logitbank.evaluation.report.page import html_page, script_json
from logitbank.evaluation.report.png import draw_png
from logitbank.evaluation.report.table import Table
from logitbank.evaluation.report.write import collect, markdown, write_report
from logitbank.experiment import STUDY_CONDITIONS
from logitbank.storage import TeacherStore
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import write_rows
from tests.evaluation.browser import CHROMIUM, OVERFLOW, Browser
from tests.evaluation.conftest import add_run
from tests.evaluation.test_intervals import add_predictions, correct
from tests.evaluation.test_query import run
from tests.storage import stores

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
ANSWER: dict[str, Any] = {
    **{"series": "m c", "condition": "c", "seed": 1},
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
    assert page.count('<div class="chart"') == len(images)
    assert outline.sources == [], "the page loads something"
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two models, five conditions, two λ, every gap, checkpoints, a learning curve, long names."""
    results = tmp_path_factory.mktemp("full")
    rng = np.random.default_rng(0)
    for model in ("org/a-model-with-quite-a-long-name-3b-instruct", "small"):
        for cell in [(task, language) for task in ("nli", "pa") for language in ("en", "hi", "zh")]:
            right = rng.random(40) < 0.5
            for condition in STUDY_CONDITIONS:
                for value in (0.05, 0.5) if condition in ("distilled", "control") else (None,):
                    variant = {"variant": value and f"λ={value:g}", "lambda_distill": value}
                    outcome = correct(right ^ (rng.random(40) < 0.2))
                    add_predictions(results, cell, outcome, model=model, condition=condition, **variant)
    for step in (200, 400):
        add_run(results, {("gsm8k", "en"): step / 1000}, model="small", condition="finetuned", step=step, setup="g")
    _log_one_step(results)
    return write_report(Catalogue([results]), results / "report.md")[-1]


def _log_one_step(results: Path) -> None:
    same = {"run": "t", "model": "small", "condition": "distilled", "view": "fewshot", "seed": 1, "step": 10}
    log = [{**same, "task": "all", "metric": metric, "value": 0.5} for metric in ("student_ce", "teacher_ce")]
    write_rows(results, "training_log", log, "t")


def test_the_page_works_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """The example browser fills itself, sorting reorders rows, code is code, no script of a model runs."""
    table = Table("`T`", ["model", "score"], [["a", "5.0 ±1.0"], ["b", "—"], ["c", "70.1"], ["d", "-3.0"]])
    teacher = [{"view": "fewshot", "position": 0, "gold": ATTACK, "top": [[ATTACK, 0.75], ["no", 0.25]]}]
    page = tmp_path / "page.html"
    page.write_text(html_page([ATTACK], [table], [], [{**EXAMPLE, "teacher": teacher}]), encoding="utf-8")
    browser.open(page, 390)
    assert browser.evaluate("document.title") == "Results", "a model's script ran"
    assert browser.evaluate("document.querySelector('h2 code').textContent") == "T"
    browser.evaluate("document.querySelectorAll('th button')[1].click()")
    assert browser.evaluate("[...document.querySelectorAll('td:first-child')].map(e => e.textContent)") == [*"cadb"]
    assert browser.evaluate("document.querySelectorAll('th')[1].getAttribute('aria-sort')") == "descending"
    text = browser.evaluate("document.getElementById('shown').textContent")
    assert "could not be read" in text
    assert "score 0.00" in text
    assert "75.0%" in text
    assert browser.evaluate("document.querySelectorAll('#shown summary')[0].textContent") == "prompt"


@pytest.mark.parametrize("width", [1280, 480])
def test_a_conversation_is_shown_turn_by_turn(browser: Browser, tmp_path: Path, width: int) -> None:
    call = {"type": "function", "function": {"name": ATTACK, "arguments": {"where": ATTACK * 3}}}
    talk = {
        "messages": [
            {"role": "system", "content": "x" * 400},
            {"role": "user", "content": f"{ATTACK}\nsecond line"},
            {"role": "assistant", "content": "", "reasoning_content": "Let me see.", "tool_calls": [call]},
            {"role": "tool", "name": "weather", "content": ATTACK},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "description": ATTACK}}],
        "answer": {"role": "assistant", "content": "It rains."},
    }
    answers = [
        {**ANSWER, "scores": "token_accuracy 61.2%, kl 0.1034", "written": True},
        {**ANSWER, "series": "m d", "output": "", "scores": "token_accuracy 50.0%", "written": False},
    ]
    page = tmp_path / "page.html"
    example = {**EXAMPLE, "task": "chat", "conversation": talk, "answers": answers}
    page.write_text(html_page([], [], [], [example]), encoding="utf-8")
    browser.open(page, width)
    assert browser.evaluate("document.title") == "Results", "a model's script ran"
    assert browser.evaluate(OVERFLOW) == []
    shown = "[...document.querySelectorAll('#shown .turn')].map(e => [e.className, e.innerText])"
    turns = browser.evaluate(shown)
    assert [name for name, _ in turns] == [
        f"turn {role}" for role in ("system", "user", "assistant", "tool", "assistant")
    ]
    assert turns[1][1] == f"user\n{ATTACK}\nsecond line"
    assert turns[2][1].startswith("assistant\nreasoning")
    assert f"{ATTACK}({json.dumps({'where': ATTACK * 3}, separators=(',', ':'))})" in turns[2][1]
    assert turns[3][1] == f"tool weather\n{ATTACK}"
    assert turns[4][1] == "assistant\nIt rains."
    summaries = browser.evaluate("[...document.querySelectorAll('#shown summary')].map(e => e.textContent)")
    assert summaries == ["tools: weather", "reasoning", "prompt"]
    boxes = browser.evaluate("[...document.querySelectorAll('#shown .answer')].map(e => e.innerText)")
    assert "token_accuracy 61.2%, kl 0.1034" in boxes[0]
    assert ATTACK in boxes[0]
    assert boxes[1] == "m d, seed 1\ntoken_accuracy 50.0%", "nothing was written"


def test_a_script_that_gets_into_the_page_does_not_run(browser: Browser, tmp_path: Path) -> None:
    """Should the escaping ever fail, the content security policy still stands."""
    page = tmp_path / "page.html"
    text = html_page(["fact"], [], [], [])
    page.write_text(text.replace("<li>fact</li>", ATTACK.removeprefix("</script>")), encoding="utf-8")
    browser.open(page, 390)
    assert browser.evaluate("document.title") == "Results"


@pytest.mark.parametrize("width", [1280, 480])
def test_nothing_on_the_page_is_cut(browser: Browser, full_page: Path, width: int) -> None:
    browser.open(full_page, width)
    assert browser.evaluate(OVERFLOW) == []
    assert browser.evaluate("document.querySelectorAll('.chart').length") >= 6
    # what is drawn, is drawn inside its picture
    outside = """[...document.querySelectorAll('.chart')].filter(place => {
        const svg = place.querySelector('svg').getBoundingClientRect(), box = place.getBoundingClientRect();
        return svg.right > box.right + 1 || svg.width < 100 || svg.height > box.height + 1;
    }).map(place => place.id)"""
    assert browser.evaluate(outside) == []


def test_an_overflow_would_be_found(browser: Browser, full_page: Path) -> None:
    browser.open(full_page, 480)
    browser.evaluate("document.querySelector('h1').style.width = '600px'")
    assert any("<h1" in found for found in browser.evaluate(OVERFLOW))


def test_single_points_are_drawn_where_they_are(tmp_path: Path) -> None:
    """A learning curve of one step is a marker: a line through one point would be invisible."""
    add_run(tmp_path, {("nli", "en"): 0.5})
    _log_one_step(tmp_path)
    (chart,) = [chart for chart in collect(Catalogue([tmp_path])).charts if chart.name == "cross-entropy"]
    figure = figure_json(chart)
    for trace in figure["data"]:
        assert trace["x"] == [10]
        assert "markers" in trace["mode"]
    assert figure["layout"]["scattermode"] == "overlay", "points beside one another would be at other steps"
    empty = replace(chart, series=[replace(series, x=[], y=[]) for series in chart.series])
    assert draw_png(chart) != draw_png(empty)


def test_equal_students_are_said_in_words(tmp_path: Path) -> None:
    same = correct([True, False] * 50)
    for condition in ("finetuned", "control"):
        add_predictions(tmp_path, ("nli", "en"), same, condition=condition)
    report = collect(Catalogue([tmp_path]))
    (gaps,) = [chart for chart in report.charts if chart.name == "gaps-0"]
    assert not gaps.drawn
    assert gaps.caption == "m: control and finetuned have the same score in every task."
    page = html_page(report.facts, report.tables, report.charts, report.examples)
    assert gaps.caption in page
    assert 'id="chart-gaps-0"' not in page
    assert gaps.caption in markdown(report, "plots", [])


def test_names_are_no_markup_in_charts() -> None:
    link = "<a href='https://x'>m</a>"
    series = Series(link, [link], [1.0], [(0.0, 2.0)])
    charts = [Chart("c", link, kind, [link], [series], x_title=link, y_title=link) for kind in ("bars", "points")]
    panels = [Panel(link, [link], [link], [[1.0]])]
    text = json.dumps([figure_json(chart) for chart in (*charts, Chart("h", link, "heat", panels=panels))])
    assert "&lt;a href" in text
    assert "<a" not in text
