"""docs/adding-a-task.md: what it shows runs as printed, from data files to tables."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from logitbank import tasks
from logitbank.tasks import DataSettings
from logitbank.tasks.common import HubSource, Source
from logitbank.tasks.data import cells, demonstration_pool, load_examples, training_examples
from logitbank.tasks.demonstrations import draw_demonstrations
from logitbank.tasks.outside import open_tasks
from logitbank.tasks.prompts import PromptEncoder
from tests import processes, tiny
from tests.tasks.scores import score as score_outputs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-task.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's files: its training rows, the same as validation and test, the task and the settings."""
    (rows,) = blocks("json")
    for split in ("train", "validation", "test"):
        (tmp_path / f"reviews-{split}.jsonl").write_text(rows.replace(".", f" ({split}).", 8), encoding="utf-8")
    (tmp_path / "reviews.py").write_text(blocks("python")[0], encoding="utf-8")
    (tmp_path / "reviews.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    return tmp_path


@pytest.fixture
def own(folder: Path) -> Iterator[tasks.Task]:
    """The page's task, opened as a configuration opens it."""
    (name,) = open_tasks([f"{folder}/reviews.py:Reviews"])
    yield tasks.TASKS[name]
    tasks.TASKS.unregister(name)


@pytest.fixture
def reviews(own: tasks.Task) -> tasks.Task:
    """The page's task with data of the hub."""
    own.sources = {
        "my-org": Source(lambda split, language: HubSource("my-org/reviews", "default", split), ("en",), ("en",))
    }
    return own


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    """Plain CSV files as a user would put them down; row 2 of every split is unusable."""
    folder = tmp_path / "my-org" / "reviews"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [f"{split} text {number},{('bad', 'good')[number % 2]}" for number in range(12)]
        rows[2] = "no label,none"
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return str(tmp_path)


def shape(line: str) -> str:
    """A printed line without what differs between models, machines and runs."""
    return re.sub(r"\b[0-9a-f]{16}\b|[\d.,]+", "#", " ".join(line.split()))


def test_the_page_runs_as_written(folder: Path) -> None:
    tokenizer = tiny.chat_tokenizer()
    tiny.save_model(folder / "model", tokenizer, rows=len(tokenizer))
    settings = folder / "reviews.yaml"
    shorter = settings.read_text().replace("Qwen/Qwen3-1.7B", "model").replace("max_steps: 40", "max_steps: 2")
    settings.write_text(shorter)
    printed = ""
    for command in "".join(blocks("bash")).splitlines():
        words = shlex.split(command)
        done = processes.run(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    lines = {shape(line) for line in printed.splitlines()}
    for line in "".join(blocks("text")).splitlines():
        # what a model answers decides whether answers were cut short, and how wide a column is
        if "accuracy" not in line:
            assert shape(line) in lines, line
    tables = processes.run("query-results", "--results", "runs/results", "tables", cwd=folder)
    assert re.search(r"\| reviews \(accuracy\) \|.*±|\| reviews \(accuracy\) \|.*\[", tables.stdout), tables.stdout
    for condition in ("base", "distilled"):
        assert re.search(rf"\] {condition} reviews/en  accuracy \d+\.\d .* 8 examples in", printed)
        assert re.search(rf" {condition} +reviews +accuracy +\d", printed)


def test_training_needs_the_store_alone(folder: Path) -> None:
    """The store goes where neither task nor data are."""
    tokenizer = tiny.chat_tokenizer()
    tiny.save_model(folder / "model", tokenizer, rows=len(tokenizer))
    small = ["model.name=model", "training.max_steps=1", "training.warmup_steps=0", "training.num_workers=0"]
    small += ["training.global_batch_size=4", "training.use_lora=false", "distillation.lambda_per_task.reviews=0.5"]
    own = ["tasks=[./reviews.py:Reviews]", *small]
    built = processes.run("build-teacher-cache", "--store", "store", "--view", "zeroshot", *own, cwd=folder)
    assert built.returncode == 0, built.stderr
    for name in ("reviews.py", "reviews-train.jsonl", "reviews-validation.jsonl"):
        (folder / name).rename(folder / f"{name}.away")
    train = ["train-student", "--store", "store", "--view", "zeroshot", "--output", "student"]
    refused = processes.run(*train, *own, cwd=folder)
    assert refused.returncode == 2
    assert "reviews.py; relative paths" in refused.stderr
    assert refused.stderr.strip().endswith(
        "or name the task as the store does, for training needs no more: tasks=[NAME]"
    )
    trained = processes.run(*train, "tasks=[reviews]", *small, cwd=folder)
    assert trained.returncode == 0, trained.stderr
    assert "examples: reviews 8" in trained.stderr
    shown = processes.run("inspect-cache", "--store", "store", "--verify", cwd=folder)
    assert shown.returncode == 0, shown.stderr


def test_a_changed_source_is_another_evaluation(folder: Path) -> None:
    """Scores of two parsers are never paired; the store that both would read is the same."""
    tokenizer = tiny.chat_tokenizer()
    tiny.save_model(folder / "model", tokenizer, rows=len(tokenizer))
    own = ["model.name=model", "tasks=[./reviews.py:Reviews]", "evaluation.max_samples=2"]
    evaluate = ["evaluate-model", "--condition", "base", "--results", "results", *own]
    build = ["build-teacher-cache", "--store", "store", "--view", "zeroshot", *own]
    for command in (evaluate, build):
        assert processes.run(*command, cwd=folder).returncode == 0
    assert "1 of 1 cells are already finished, skipped" in processes.run(*evaluate, cwd=folder).stdout
    source = folder / "reviews.py"
    source.write_text(source.read_text() + "\n    def parse(self, output: str) -> str | None:\n        return 'good'\n")
    again = processes.run(*evaluate, cwd=folder)
    assert "base: the source of the task reviews has changed; evaluating all cells again" in again.stdout
    assert "parse failures 0.0%" in again.stdout
    resumed = processes.run(*build, cwd=folder)
    assert "nothing left to do" in resumed.stdout, resumed.stderr
    assert "source changed since the store was started, but prompts and answers are the same: reviews" in resumed.stderr
    source.write_text(source.read_text().replace("Output one word.", "Answer."))
    other = processes.run(*build, cwd=folder)
    assert other.returncode == 2
    assert "created with examples.hash = " in other.stderr


def test_files_beside_the_task_are_read_from_anywhere(
    own: tasks.Task, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    test = load_examples("reviews", "test", "en", DataSettings())
    assert [example.example_id for example in test] == [f"reviews/en/test/{number}" for number in range(8)]
    assert [example.answer for example in test[:2]] == ["good", "bad"]
    drawn = load_examples("reviews", "test", "en", DataSettings(seed=3), limit=5)
    assert load_examples("reviews", "test", "en", DataSettings(seed=3), limit=2) == drawn[:2]
    assert {example.example_id for example in drawn} < {example.example_id for example in test}
    assert load_examples("reviews", "test", "en", DataSettings(seed=4), limit=5) != drawn
    assert len(training_examples("reviews", ["en"], DataSettings())) == 8
    assert len(demonstration_pool("reviews", "en", DataSettings(), stage="eval")) == 8


def test_rows_of_a_file_that_cannot_be_used_are_counted_or_named(
    own: tasks.Task, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*rows: dict[str, Any]) -> None:
        (folder / "reviews-test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    monkeypatch.setattr("logitbank.tasks.data._reported", set())
    fine = {"text": "x", "label": "good"}
    write(fine, {"text": None, "label": "bad"}, {"label": "bad"}, fine, {"text": "y", "label": "fair"})
    with caplog.at_level("INFO", logger="logitbank.tasks.data"):
        found = load_examples("reviews", "test", "en", DataSettings())
    assert [example.example_id for example in found] == ["reviews/en/test/0", "reviews/en/test/3"]
    assert (
        "reviews/en/test: skipped 3 rows (2, 3, 5) without text, label or answer: file reviews-test.jsonl"
        in caplog.text
    )
    write({"body": "x", "label": "good"})
    with pytest.raises(tasks.TaskError, match=r"reviews-test.jsonl, line 1: expected a column 'text', got body, label"):
        load_examples("reviews", "test", "en", DataSettings())
    write({"text": "x", "label": "fair"})
    with pytest.raises(
        tasks.TaskError, match=r"file reviews-test.jsonl: none of its 1 rows has the text, label or answer"
    ):
        load_examples("reviews", "test", "en", DataSettings())
    write({"text": 17, "label": "good"})
    with pytest.raises(
        tasks.TaskError, match=r"reviews-test.jsonl, line 1: reviews cannot read it: AttributeError: 'int'"
    ):
        load_examples("reviews", "test", "en", DataSettings())
    (folder / "reviews-test.jsonl").unlink()
    with pytest.raises(tasks.TaskError, match=rf"reviews: .*{folder}/reviews-test.jsonl"):
        load_examples("reviews", "test", "en", DataSettings())


def test_the_page_s_task_works(reviews: tasks.Task, mirror: str, make_tokenizer: Callable[..., Any]) -> None:
    assert cells(["reviews"], ["en", "de"]).absent == [("reviews", "de")]
    training = training_examples("reviews", ["en"], DataSettings(mirror=mirror), limit=100)
    assert len(training) == 11
    assert {example.answer for example in training} == {"good", "bad"}
    query = load_examples("reviews", "test", "en", DataSettings(mirror=mirror))[0]
    assert (query.example_id, query.answer) == ("reviews/en/test/0", "bad")
    pool = demonstration_pool("reviews", "en", DataSettings(mirror=mirror), stage="eval")
    shown = draw_demonstrations(pool, query, reviews.num_demonstrations, seed=0)
    encoder = PromptEncoder(make_tokenizer())
    prompt = encoder.encode_prompt(reviews, query, shown, max_tokens=2048)
    assert prompt is not None
    assert prompt.demonstrations == 3
    assert encoder.tokenizer.decode(prompt.ids).endswith("Review: test text 0\n")
    assert score_outputs(reviews, ["Bad.", "good"], ["bad", "bad"], "en") == {"accuracy": 0.5, "parse_failure": 0.0}


def test_unusable_rows_are_reported_once(
    reviews: tasks.Task, mirror: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitbank.tasks.data._reported", set())
    with caplog.at_level("INFO", logger="logitbank.tasks.data"):
        load_examples("reviews", "train", "en", DataSettings(mirror=mirror))
        load_examples("reviews", "train", "en", DataSettings(mirror=mirror))
    assert [record.getMessage() for record in caplog.records] == [
        "reviews/en/train: skipped 1 row (2) without text, label or answer: "
        "data set my-org/reviews, configuration default, split train"
    ]


def _write(mirror: str, content: str) -> None:
    for split in ("train", "validation", "test"):
        (Path(mirror) / "my-org" / "reviews" / f"{split}.csv").write_text(content, encoding="utf-8")


def test_a_missing_column_names_data_set_split_and_row(reviews: tasks.Task, mirror: str) -> None:
    _write(mirror, "body,label\nx,good\n")
    place = "data set my-org/reviews, configuration default, split test, row 0"
    with pytest.raises(tasks.TaskError, match=f"{place}: expected a column 'text', got body, label"):
        load_examples("reviews", "test", "en", DataSettings(mirror=mirror))


def test_a_row_with_none_is_skipped_and_named(
    reviews: tasks.Task, mirror: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitbank.tasks.data._reported", set())
    _write(mirror, "text,label\ngood one,good\n,good\nbad one,bad\n,bad\n")
    with caplog.at_level("INFO", logger="logitbank.tasks.data"):
        examples = load_examples("reviews", "test", "en", DataSettings(mirror=mirror))
    assert [example.answer for example in examples] == ["good", "bad"]
    assert "skipped 2 rows (1, 3) without text, label or answer: data set my-org/reviews" in caplog.text
    assert "split test" in caplog.text
    _write(mirror, "text,label\n,good\n,bad\n")
    with pytest.raises(tasks.TaskError, match=r"split test: none of its 2 rows has the text, label or answer"):
        load_examples("reviews", "test", "en", DataSettings(mirror=mirror))


def test_a_value_of_the_wrong_kind_names_the_row(reviews: tasks.Task, mirror: str) -> None:
    _write(mirror, "text,label\n17,good\n")
    with pytest.raises(tasks.TaskError, match=r"split test, row 0: reviews cannot read it: AttributeError: 'int'"):
        load_examples("reviews", "test", "en", DataSettings(mirror=mirror))


@pytest.mark.parametrize(
    ("content", "says"), [("text,label\n", "split test: has no rows"), ("", r"split test: test.csv.* has no rows")]
)
def test_an_empty_file_has_no_rows(reviews: tasks.Task, mirror: str, content: str, says: str) -> None:
    _write(mirror, content)
    with pytest.raises(tasks.TaskError, match=says):
        load_examples("reviews", "test", "en", DataSettings(mirror=mirror))


@pytest.mark.parametrize(
    ("damage", "message"),
    [("missing", 'split validation: cannot be opened: Unknown split "validation"'), ("empty", "cannot be opened")],
)
def test_missing_and_damaged_files_are_one_line(reviews: tasks.Task, mirror: str, damage: str, message: str) -> None:
    file = Path(mirror) / "my-org" / "reviews" / "validation.csv"
    file.unlink() if damage == "missing" else file.write_text("body,label\nx,good\n", encoding="utf-8")
    with pytest.raises(tasks.TaskError, match=message) as caught:
        load_examples("reviews", "validation", "en", DataSettings(mirror=mirror))
    assert "\n" not in str(caught.value)
    assert "An error occurred while" not in str(caught.value)
