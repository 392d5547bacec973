"""Reading comparisons: columns, labels, turns and ids, and every fault with its file and row."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitbank.preference import Pair
from logitbank.tasks import TASKS, DataSettings, TaskError
from logitbank.tasks.data import load_examples
from logitbank.tasks.preference import load_pairs, prepare
from tests.tasks.comparisons import ONE_HOT, row, settings, write_csv

TEXT = {"prompt": "p", "response_a": "x", "response_b": "y"}


def read(path: Path, rows: list[dict[str, Any]], split: str = "validation") -> list[Pair]:
    return load_pairs(split, settings(**{split: write_csv(path / "rows.csv", rows)}))


@pytest.mark.parametrize(
    ("labels", "target"),
    [
        ({"winner": "model_a"}, (1, 0, 0)),
        ({"winner": "model_b"}, (0, 1, 0)),
        ({"winner": "tie"}, (0, 0, 1)),
        ({"winner": "tie (bothbad)"}, (0, 0, 1)),
        ({"winner": "Both_Bad"}, (0, 0, 1)),
        (ONE_HOT["b"], (0, 1, 0)),
        ({name: str(value == 1) for name, value in ONE_HOT["tie"].items()}, (0, 0, 1)),
        ({"winner_model_a_prob": 0.5, "winner_model_b_prob": 0.3, "winner_tie_prob": 0.2}, (0.5, 0.3, 0.2)),
        ({"winner_model_a": 0.33, "winner_model_b": "0.33", "winner_tie": 0.33}, (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_a_label_is_a_winner_or_probabilities(labels: dict[str, Any], target: Any, tmp_path: Path) -> None:
    assert read(tmp_path, [TEXT | labels])[0].target == pytest.approx(target)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"winner": "model_c"}, "winner: expected model_a, model_b, tie or tie (bothbad), got 'model_c'"),
        ({"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0}, "whose sum is 1, got 2"),
        ({"winner_model_a": 0.3, "winner_model_b": 0.3, "winner_tie": 0.3}, "whose sum is 1, got 0.9"),
        ({"winner_model_a": 1.5, "winner_model_b": -0.5, "winner_tie": 0}, "between 0 and 1, got '1.5'"),
        ({"winner_model_a": "nan", "winner_model_b": 1, "winner_tie": 0}, "between 0 and 1, got 'nan'"),
        ({"winner_model_a": 1, "winner_model_b": 0}, "winner_tie: expected a probability between 0 and 1, got nothing"),
        ({"winner": ""}, "expected a label (winner, or winner_model_a, winner_model_b, winner_tie), got none"),
        ({}, "expected a label (winner, or winner_model_a, winner_model_b, winner_tie), got none"),
    ],
)
def test_a_broken_label_names_file_and_row(labels: dict[str, Any], says: str, tmp_path: Path) -> None:
    good = TEXT | dict.fromkeys(labels, "") | {"winner": "tie"}
    rows = [TEXT] if not labels else [good, good, TEXT | labels]
    file, fine = write_csv(tmp_path / "rows.csv", rows), write_csv(tmp_path / "fine.csv", [row("p", "x", "y")])
    for split in ("train", "validation", "external"):
        data = settings(
            train=file if split == "train" else fine,
            validation=file if split == "validation" else fine,
            external=[file] if split == "external" else [],
        )
        with pytest.raises(TaskError) as caught:
            prepare(data)
        assert str(caught.value).startswith(f"preference.{split}: {file}, row {len(rows)}: ")
        assert str(caught.value).endswith(says)
        assert "\n" not in str(caught.value)


def test_test_rows_may_lack_labels_but_not_have_broken_ones(tmp_path: Path) -> None:
    assert [pair.target for pair in read(tmp_path, [TEXT, TEXT], "test")] == [None, None]
    assert read(tmp_path, [TEXT | ONE_HOT["b"]], "test")[0].target == (0, 1, 0)
    with pytest.raises(TaskError, match="winner: expected model_a"):
        read(tmp_path, [TEXT | {"winner": "nobody"}], "test")


@pytest.mark.parametrize("text", ["[UK] Who won?", "[1, 2]", '["a", 1]', "[", "[]", '["a"', "[null, {}]", " [x] "])
def test_text_that_is_no_list_of_texts_stays_text(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, [row(text, "x", "y")])[0].prompt == (text,)


def test_a_list_of_texts_is_turns_and_null_has_none(tmp_path: Path) -> None:
    found = read(tmp_path, [row(["a", "b"], ["x", None], ["y", '["z"]'])])[0]
    assert (found.prompt, found.response_a, found.response_b) == (("a", "b"), ("x", ""), ("y", '["z"]'))


def test_an_answer_that_is_json_stays_text_below_a_prompt_that_is_none(tmp_path: Path) -> None:
    found = read(tmp_path, [row("Name two fruits as JSON.", '["apple", "pear"]', '["apple"]')])[0]
    assert (found.response_a, found.response_b) == (('["apple", "pear"]',), ('["apple"]',))


turns = st.lists(st.one_of(st.none(), st.text()), min_size=1, max_size=4)
jsons = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=2)),
    max_leaves=6,
)


@given(st.one_of(st.text(), jsons.map(json.dumps), turns.map(json.dumps), st.text().map(lambda text: f"[{text}]")))
def test_a_cell_is_turns_only_if_it_is_json_of_texts_or_nulls(cell: str) -> None:
    try:
        value = json.loads(cell)
    except ValueError:
        value = None
    is_list = isinstance(value, list) and bool(value) and all(isinstance(item, str | None) for item in value)
    expected = tuple(item or "" for item in value) if is_list else (cell,)
    answer = ["x"] * len(expected) if is_list else "x"
    found = TASKS["preference"].to_example({"prompt": cell, "response_a": answer, "response_b": answer}, "und", "i")
    has_text = any(turn.strip() for turn in expected)
    assert (found is not None) == has_text
    if found is not None:
        halves = str.maketrans(dict.fromkeys(range(55296, 57344), "�"))
        assert found.fields["pair"].prompt == tuple(turn.translate(halves) for turn in expected)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ((["a", "b"], ["x"], ["y", "z"]), "response_a: expected as many turns as prompt has (2), got 1"),
        ((["a", "b"], ["x", "y"], "z"), "response_b: expected as many turns as prompt has (2), got 1"),
    ],
)
def test_unequal_turns_name_file_and_row(cells: tuple[Any, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError) as caught:
        read(tmp_path, [row("p", "x", "y"), row(*cells)])
    assert str(caught.value) == f"preference.validation: {tmp_path / 'rows.csv'}, row 2: {says}"


def test_rows_without_text_go_with_their_labels_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        row("p", "x", "y", "b", id="kept"),
        row("p", "", "y", "a", id="no answer"),
        row(" \n", "x", "y", "a", id="no prompt"),
        row(["p", "q"], [None, None], ["y", "z"], "tie", id="null"),
        TEXT | {"prompt": "", "id": "neither text nor label"},
        row("q", "x", "y", "tie", id="kept too"),
    ]
    with caplog.at_level(logging.INFO):
        found = read(tmp_path, rows)
    assert [(pair.row_id, pair.target) for pair in found] == [("kept", (0, 1, 0)), ("kept too", (0, 0, 1))]
    file = tmp_path / "rows.csv"
    assert f"preference.validation: {file}: 6 rows, 4 of them without text and left out" in caplog.messages
    kept = read(tmp_path, rows, "test")
    assert [pair.row_id for pair in kept] == [one["id"] for one in rows], "a submission has a row for each"
    assert (kept[3].response_a, kept[4].target) == (("", ""), None)
    with pytest.raises(TaskError, match="none of its 4 rows has text"):
        read(tmp_path, rows[1:5])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_missing_column_is_named_with_its_file(kind: str, tmp_path: Path) -> None:
    rows = [{"id": str(n), "prompt": "p", "response_a": "x", "winner": "tie"} for n in range(3)]
    file = tmp_path / f"rows.{kind}"
    if kind == "csv":
        write_csv(file, rows)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(TaskError) as caught:
        load_pairs("validation", settings(validation=str(file)))
    assert str(caught.value) == (
        f"preference.validation: {file}: expected the columns prompt, response_a, response_b, "
        "got id, prompt, response_a, winner"
    )


def test_ids_are_those_of_the_file_or_the_number_of_the_row(tmp_path: Path) -> None:
    found = read(tmp_path, [row("p", "x", "y", id="b/7"), row("p", "x", "y", id=""), row("p", "x", "y", id=9)])
    assert [pair.example_id for pair in found] == [f"preference/und/validation/{name}" for name in ("b/7", "row-2", 9)]
    assert [pair.row_id for pair in found] == ["b/7", "row-2", "9"]
    with pytest.raises(TaskError) as caught:
        read(tmp_path, [row("p", "x", "y", id="b"), row("q", "x", "y"), row("q", "x", "y", id="b")])
    file = tmp_path / "rows.csv"
    assert str(caught.value) == (
        f"preference.validation: {file}, row 3: id: 'b' is also used by {file}, row 1; give each row its own id, or "
        "leave out the column"
    )


def test_files_of_every_kind_and_globs_give_the_same_rows(tmp_path: Path) -> None:
    rows = [row(f"p {n}", "x", "y\nz", won, id=f"{n}") for n, won in enumerate(("a", "b", "tie", "a"))]
    expected = read(tmp_path, rows)
    lines = "".join(json.dumps(one) + "\n" for one in rows).encode()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for number in range(2):
        write_csv(tmp_path / f"part-{number}.csv", rows[2 * number : 2 * number + 2])
    for name in ("rows.jsonl.gz", "rows.json", "rows.parquet", "part-*.csv"):
        assert load_pairs("validation", settings(validation=str(tmp_path / name))) == expected, name


def test_the_hub_is_read_from_a_mirror_and_has_a_default(tmp_path: Path) -> None:
    folder = tmp_path / "lmsys" / "lmsys-arena-human-preference-55k"
    folder.mkdir(parents=True)
    write_csv(folder / "train.csv", [row([f"p {n}", "None"], ["x", "y"], ["NA", "null"], id=n) for n in range(40)])
    found = load_pairs("train", DataSettings(mirror=str(tmp_path)))
    assert 30 < len(found) < 40
    assert found[0].prompt[1:] + found[0].response_b == ("None", "NA", "null"), "words, whatever tables take them for"
    with pytest.raises(TaskError, match=r"^preference.test: expected a file or hub id, got none; add preference.test="):
        load_pairs("test", DataSettings(mirror=str(tmp_path)))
    with pytest.raises(
        TaskError, match=r"^preference.train: no such file, and not readable as a hub id: data.mirror: no directory"
    ):
        load_pairs("train", DataSettings(mirror=str(tmp_path / "lmsys")))


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    """Rows of the arena have them, escaped in JSON; neither UTF-8 nor tokenizers can hold them."""
    file = tmp_path / "rows.csv"
    cells = ['["a \\ud83d b"]', '["\\ud83d\\ude42"]', '["y"]']
    write_csv(file, [dict(zip(TEXT, cells, strict=True)) | ONE_HOT["a"]])
    found = load_pairs("validation", settings(validation=str(file)))[0]
    assert (found.prompt, found.response_a) == (("a \ufffd b",), ("🙂",))


def test_the_task_is_one_of_all(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "rows.csv", [row("p", "x", "y", won, id=won) for won in ("a", "b", "tie")])
    task, examples = TASKS["preference"], load_examples("preference", "test", "und", settings(test=file))
    assert [example.answer for example in examples] == ["A", "B", "C"] == list(task.labels)
    assert task.user_message(examples[0]).startswith("Prompt:\np\n\nAnswer A:\nx\n\nAnswer B:\ny\n\nWhich")
    output = json.dumps({"model_a": 0.2, "model_b": 0.5, "tie": 0.3})
    assert (task.parse(output), task.parse("B"), task.parse("[1]")) == ("model_b", None, None)
    scores = task.metrics(task.statistics(output, (0, 1, 0), "und"))
    assert (scores["accuracy"], scores["parse_failure"]) == (1, 0)
    assert scores["brier"] == pytest.approx(0.2**2 + 0.5**2 + 0.3**2)
    worst = task.metrics(task.statistics("no probabilities", (0, 1, 0), "und"))
    assert (worst["accuracy"], worst["brier"], worst["parse_failure"]) == (0, 2, 1)
