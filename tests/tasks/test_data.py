"""Loading: every cell of the study, from a local mirror of the hub, as the study splits it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitbank.tasks import LANGUAGES, TASKS, TaskError
from logitbank.tasks.data import cells, demonstration_pool, load_examples, training_examples

CELLS = [(name, language) for name, task in TASKS.items() for language in task.languages]


@pytest.mark.parametrize(("name", "language"), CELLS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_cell_has_examples(shared: Path, name: str, language: str, split: str) -> None:
    task = TASKS[name]
    examples = load_examples(name, split, language, mirror=str(shared / "hub"), limit=20)
    assert len(examples) == 20
    assert len({example.example_id for example in examples}) == 20
    for example in examples:
        assert example.example_id.startswith(f"{name}/{language}/{split}/")
        assert task.user_message(example).strip()
        means = task.statistics(example.answer, task.reference(example), language)
        assert means["parse_failure"] == 0
        perfect = task.score([example.answer], [task.reference(example)], language)
        empty_ner = name == "ner" and means["gold"] == 0
        assert perfect[task.primary_metric] == (0 if empty_ner else 1)


def test_cells_of_the_grid() -> None:
    grid = cells(["nli", "pa", "qa"], ["en", "hi", "fr"])
    assert grid.absent == [("pa", "hi"), ("qa", "fr")]
    assert len(grid.present) == 7
    assert len(cells(["nli", "pa", "qa", "ner", "pos"], LANGUAGES).present) == 28


def test_a_cell_that_does_not_exist_says_so() -> None:
    with pytest.raises(TaskError, match="pa does not exist in hi; its languages are en, es, de, fr, zh"):
        cells(["pa"], ["hi"])
    with pytest.raises(TaskError, match="qa does not exist in fr"):
        load_examples("qa", "test", "fr")
    with pytest.raises(TaskError, match="expected one of en, hi, es, de, fr, zh, got 'xx'"):
        cells(["nli"], ["xx"])
    with pytest.raises(TaskError, match="got 'nope'"):
        cells(["nope"], ["en"])


def test_limits_are_prefixes_and_follow_the_seed(shared: Path) -> None:
    mirror = str(shared / "hub")
    ids = [e.example_id for e in load_examples("pos", "train", "de", mirror=mirror, limit=50, seed=3)]
    few = [e.example_id for e in load_examples("pos", "train", "de", mirror=mirror, limit=7, seed=3)]
    other = [e.example_id for e in load_examples("pos", "train", "de", mirror=mirror, limit=7, seed=4)]
    assert few == ids[:7]
    assert few != other


def test_training_languages(shared: Path) -> None:
    mirror = str(shared / "hub")

    def languages(task: str, mode: str, wanted: list[str]) -> dict[str, int]:
        examples = training_examples(task, wanted, train_languages=mode, mirror=mirror, limit=100)
        assert len(examples) == 100
        return {code: sum(e.language == code for e in examples) for code in LANGUAGES}

    assert languages("ner", "english", ["de", "zh"])["en"] == 100
    in_language = languages("ner", "in_language", ["de", "zh", "hi"])
    assert in_language == {"en": 0, "hi": 33, "es": 0, "de": 34, "fr": 0, "zh": 33}
    assert languages("nli", "in_language", ["de", "zh"])["en"] == 100


def test_demonstration_pools(shared: Path) -> None:
    mirror = str(shared / "hub")

    def origin(task: str, language: str, stage: str, source: str | None = None) -> set[str]:
        pool = demonstration_pool(task, language, stage=stage, mirror=mirror, source=source)
        return {example.example_id.rsplit("/", 1)[0] for example in pool}

    assert origin("ner", "zh", "train") == {"ner/zh/train"}
    assert origin("nli", "zh", "train") == {"nli/en/train"}
    assert origin("nli", "zh", "eval") == {"nli/zh/validation"}
    assert origin("qa", "hi", "eval", "xquad") == {"qa/hi/validation"}
    assert origin("gsm8k", "en", "eval") == {"gsm8k/en/train"}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"mirror": "/nowhere"}, "no directory /nowhere/"), ({"split": "dev"}, "split: expected one of")],
)
def test_what_is_missing_is_one_line(shared: Path, change: dict[str, str], message: str) -> None:
    arguments = {"task": "ner", "split": "test", "language": "en", "mirror": str(shared / "hub"), **change}
    with pytest.raises(TaskError, match=message) as caught:
        load_examples(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_two_mirrors_and_a_changed_one_each_give_their_own_rows(tmp_path: Path) -> None:
    def write(mirror: Path, question: str) -> None:
        folder = mirror / "openai" / "gsm8k"
        (folder / "main").mkdir(parents=True, exist_ok=True)
        rows = pa.table({"question": [question] * 3, "answer": ["#### 3"] * 3})
        pq.write_table(rows, folder / "main" / "test-00000-of-00001.parquet")
        card = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test-*\n---\n"
        (folder / "README.md").write_text(card, encoding="utf-8")

    def question(mirror: Path) -> str:
        return str(load_examples("gsm8k", "test", "en", mirror=str(mirror))[0].fields["question"])

    write(tmp_path / "a", "first")
    write(tmp_path / "b", "second")
    assert (question(tmp_path / "a"), question(tmp_path / "b")) == ("first", "second")
    write(tmp_path / "a", "third question")
    assert question(tmp_path / "a") == "third question"
