"""Loading: every cell of the study, from a local mirror of the hub, as the study splits it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitbank.tasks import LANGUAGES, TASKS, DataSettings, TaskError
from logitbank.tasks.data import cells, demonstration_pool, load_examples, training_examples
from tests.tasks.scores import score as score_outputs

CELLS = [(name, language) for name, task in TASKS.items() if task.sources for language in task.languages]


@pytest.mark.parametrize(("name", "language"), CELLS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_cell_has_examples(shared: Path, name: str, language: str, split: str) -> None:
    task = TASKS[name]
    examples = load_examples(name, split, language, DataSettings(mirror=str(shared / "hub")), limit=20)
    assert len(examples) == 20
    assert len({example.example_id for example in examples}) == 20
    for example in examples:
        assert example.example_id.startswith(f"{name}/{language}/{split}/")
        assert task.user_message(example).strip()
        means = task.statistics(example.answer, task.reference(example), language)
        assert means["parse_failure"] == 0
        perfect = score_outputs(task, [example.answer], [task.reference(example)], language)
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
        load_examples("qa", "test", "fr", DataSettings())
    with pytest.raises(TaskError, match="expected one of en, hi, es, de, fr, zh, got 'xx'"):
        cells(["nli"], ["xx"])
    with pytest.raises(TaskError, match="got 'nope'"):
        cells(["nope"], ["en"])


def test_limits_are_prefixes_and_follow_the_seed(shared: Path) -> None:
    mirror = str(shared / "hub")
    ids = [e.example_id for e in load_examples("pos", "train", "de", DataSettings(mirror=mirror, seed=3), limit=50)]
    few = [e.example_id for e in load_examples("pos", "train", "de", DataSettings(mirror=mirror, seed=3), limit=7)]
    other = [e.example_id for e in load_examples("pos", "train", "de", DataSettings(mirror=mirror, seed=4), limit=7)]
    assert few == ids[:7]
    assert few != other


def test_training_languages(shared: Path) -> None:
    mirror = str(shared / "hub")

    def languages(task: str, mode: str, wanted: list[str]) -> dict[str, int]:
        examples = training_examples(task, wanted, DataSettings(mirror=mirror), train_languages=mode, limit=100)
        assert len(examples) == 100
        return {code: sum(e.language == code for e in examples) for code in LANGUAGES}

    assert languages("ner", "english", ["de", "zh"])["en"] == 100
    in_language = languages("ner", "in_language", ["de", "zh", "hi"])
    assert in_language == {"en": 0, "hi": 33, "es": 0, "de": 34, "fr": 0, "zh": 33}
    assert languages("nli", "in_language", ["de", "zh"])["en"] == 100


def test_demonstration_pools(shared: Path) -> None:
    mirror = str(shared / "hub")

    def origin(task: str, language: str, stage: str, source: str | None = None) -> set[str]:
        pool = demonstration_pool(
            task, language, DataSettings(mirror=mirror, sources={} if source is None else {task: source}), stage=stage
        )
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
    arguments = {"split": "test", "mirror": str(shared / "hub"), **change}
    with pytest.raises(TaskError, match=message) as caught:
        load_examples("ner", arguments["split"], "en", DataSettings(mirror=arguments["mirror"]))
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
        return str(load_examples("gsm8k", "test", "en", DataSettings(mirror=str(mirror)))[0].fields["question"])

    write(tmp_path / "a", "first")
    write(tmp_path / "b", "second")
    assert (question(tmp_path / "a"), question(tmp_path / "b")) == ("first", "second")
    write(tmp_path / "a", "third question")
    assert question(tmp_path / "a") == "third question"


ROWS = {
    "nli": ("facebook/xnli", "en", {"premise": "a", "hypothesis": "b", "label": 1}),
    "pa": ("google-research-datasets/paws-x", "en", {"sentence1": "a", "sentence2": "b", "label": 1}),
    "qa": ("google/xtreme", "MLQA.en.en", {"context": "a", "question": "b", "answers": {"text": ["a"]}}),
    "ner": ("unimelb-nlp/wikiann", "en", {"tokens": ["a"], "ner_tags": [0]}),
    "pos": ("google/xtreme", "udpos.English", {"tokens": ["a"], "pos_tags": [0]}),
    "gsm8k": ("openai/gsm8k", "main", {"question": "a", "answer": "#### 1"}),
}


def _one_file_mirror(folder: Path, task: str, rows: list[dict[str, object]]) -> str:
    path, config, _ = ROWS[task]
    (folder / path / config).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / path / config / "test.parquet")
    files = f"  data_files:\n  - split: test\n    path: {config}/test.parquet\n"
    (folder / path / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n{files}---\n", encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("task", list(ROWS))
def test_a_row_with_none_is_skipped_in_every_task_and_column(task: str, tmp_path: Path) -> None:
    whole = ROWS[task][2]
    mirror = _one_file_mirror(tmp_path, task, [whole, *({**whole, column: None} for column in whole), whole])
    examples = load_examples(task, "test", "en", DataSettings(mirror=mirror))
    assert [example.example_id for example in examples] == [f"{task}/en/test/{i}" for i in (0, len(whole) + 1)]


@pytest.mark.parametrize("task", list(ROWS))
def test_a_missing_column_names_data_set_split_and_row_in_every_task(task: str, tmp_path: Path) -> None:
    path, config, whole = ROWS[task]
    for column in whole:
        kept = {name: value for name, value in whole.items() if name != column}
        mirror = _one_file_mirror(tmp_path / column, task, [kept])
        place = f"data set {path}, configuration {config}, split test, row 0: expected a column '{column}'"
        with pytest.raises(TaskError, match=place):
            load_examples(task, "test", "en", DataSettings(mirror=mirror))
