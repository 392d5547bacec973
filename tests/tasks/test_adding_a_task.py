"""docs/adding-a-task.md: its code runs as printed, from data files to prompts and scores."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from logitbank import registry, tasks
from logitbank.tasks import DataSettings
from logitbank.tasks.data import cells, demonstration_pool, load_examples, training_examples
from logitbank.tasks.demonstrations import draw_demonstrations
from logitbank.tasks.prompts import PromptEncoder
from tests.tasks.scores import score as score_outputs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-task.md"


@pytest.fixture
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tasks.Task]:
    """The page's task, registered under its name."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    file = tmp_path_factory.mktemp("page") / "reviews.py"
    file.write_text(code[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("logitbank.tasks.reviews", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task: tasks.Task = module.Reviews()
    tasks.TASKS.register(task.name, task)
    yield task
    tasks.TASKS.unregister(task.name)


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    """Plain CSV files as a user would put them down; row 2 of every split is unusable."""
    folder = tmp_path / "my-org" / "reviews"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [f"{split} text {number},{number % 2}" for number in range(12)]
        rows[2] = "no label,-1"
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return str(tmp_path)


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
    assert prompt.demonstrations == 5
    assert encoder.tokenizer.decode(prompt.ids).endswith("Review: test text 0\n")
    assert score_outputs(reviews, ["Bad.", "good"], ["bad", "bad"], "en") == {"accuracy": 0.5, "parse_failure": 0.0}


def test_the_page_s_line_is_the_one_in_the_package() -> None:
    diff = re.search(r"^ ( +\"pos\": .*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert diff is not None
    assert f"{diff.group(1)}\n" in Path(registry.__file__).read_text(encoding="utf-8")


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
    _write(mirror, "body,label\nx,1\n")
    place = "data set my-org/reviews, configuration default, split test, row 0"
    with pytest.raises(tasks.TaskError, match=f"{place}: expected a column 'text', got body, label"):
        load_examples("reviews", "test", "en", DataSettings(mirror=mirror))


def test_a_row_with_none_is_skipped_and_named(
    reviews: tasks.Task, mirror: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitbank.tasks.data._reported", set())
    _write(mirror, "text,label\ngood one,1\n,1\nbad one,0\n,0\n")
    with caplog.at_level("INFO", logger="logitbank.tasks.data"):
        examples = load_examples("reviews", "test", "en", DataSettings(mirror=mirror))
    assert [example.answer for example in examples] == ["good", "bad"]
    assert "skipped 2 rows (1, 3) without text, label or answer: data set my-org/reviews" in caplog.text
    assert "split test" in caplog.text
    _write(mirror, "text,label\n,1\n,0\n")
    with pytest.raises(tasks.TaskError, match=r"split test: none of its 2 rows has the text, label or answer"):
        load_examples("reviews", "test", "en", DataSettings(mirror=mirror))


def test_a_value_of_the_wrong_kind_names_the_row(reviews: tasks.Task, mirror: str) -> None:
    _write(mirror, "text,label\n17,1\n")
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
    file.unlink() if damage == "missing" else file.write_text("body,label\nx,1\n", encoding="utf-8")
    with pytest.raises(tasks.TaskError, match=message) as caught:
        load_examples("reviews", "validation", "en", DataSettings(mirror=mirror))
    assert "\n" not in str(caught.value)
    assert "An error occurred while" not in str(caught.value)
