"""logitbank import: rows of other toolkits become a store whose every number is theirs."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank import TeacherDataset, TeacherStore, open_store
from logitbank.__main__ import main
from tests import tiny
from tests.teacher_cache import foreign
from tests.teacher_cache.foreign import ALL, TOP_K, Row, write
from tests.teacher_cache.imports import Import, refused


def check(store: TeacherStore, *, shift: str = "probabilities", rtol: float = 2e-6) -> None:
    """All numbers of a store against the float64 teacher; ranks up to a constant where only `shift` is known."""
    assert len(store.examples) == len(ALL)
    for number, example in enumerate(ALL):
        record, rows = store.examples[number], store.read([number], "theirs")
        stop = example.positions[-1] + 1
        np.testing.assert_array_equal(record.input_ids, example.ids[:stop])
        np.testing.assert_array_equal(record.answer_positions, example.positions)
        at = example.positions - 1
        np.testing.assert_array_equal(rows.token_ids, example.top()[at])
        log_p = rows.logits.astype(np.float64) - rows.logsumexp[:, None]
        expected = example.top_log_p()[at]
        if shift == "ranks":
            log_p, expected = log_p - log_p[:, :1], expected - expected[:, :1]
        np.testing.assert_allclose(log_p, expected, rtol=rtol, atol=rtol * 20)
        if shift == "probabilities":
            # logits up to 32 and their logsumexp are off by 1e-6 each
            np.testing.assert_allclose(np.exp(rows.log_tail), 1 - np.exp(expected).sum(axis=1), atol=4e-6)


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_plain_rows_are_kept_as_they_are(name: str, take: Import, tmp_path: Path) -> None:
    store = take(write(tmp_path / name, [foreign.plain(example) for example in ALL]))
    check(store)
    assert store.bounded("theirs") == ("logits", "entropy", "gold")
    assert store.info.teacher == {"model": "org/teacher", "engine": "imported"}
    assert (store.examples[3].id, store.examples[3].task, store.examples[3].language) == ("imported/3", "chat", "und")
    assert TeacherDataset(store, view="theirs")[3].info.bounded == ("logits", "entropy", "gold")


@pytest.mark.numeric
def test_rows_that_say_everything_are_bounded_in_nothing(take: Import, tmp_path: Path) -> None:
    rows = [
        {**foreign.exact(example), "id": f"mine/{number}", "task": "nli", "language": "hi"}
        for number, example in enumerate(ALL)
    ]
    store = take(write(tmp_path / "rows.parquet", rows))
    check(store)
    assert store.bounded("theirs") == ()
    assert (store.examples[3].id, store.examples[3].task, store.examples[3].language) == ("mine/3", "nli", "hi")
    for number, example in enumerate(ALL):
        found, at, gold = store.read([number], "theirs"), example.positions - 1, example.ids[example.positions]
        np.testing.assert_allclose(found.logsumexp, np.log(np.exp(example.logits[at]).sum(1)), rtol=1e-6)
        np.testing.assert_allclose(found.entropy, example.entropy()[at], rtol=1e-6)
        np.testing.assert_allclose(found.gold_logit, example.logits[at, gold], rtol=1e-6)
        ranks = (example.logits[at, : foreign.TOKENS] > example.logits[at, gold][:, None]).sum(axis=1)
        np.testing.assert_array_equal(found.gold_rank, ranks)


def test_answer_positions_serve_as_labels_do(take: Import, tmp_path: Path) -> None:
    rows = [foreign.plain(each, labels=None, answer_positions=each.positions.tolist()) for each in ALL]
    check(take(write(tmp_path / "rows.jsonl", rows)))


@pytest.mark.numeric
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("kind", ["rows.parquet", "entries.jsonl", "entries.parquet"])
def test_axolotl_rows_stand_at_the_end_and_tell_what_they_predict(
    kind: str, ahead: int, take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = functools.partial(foreign.axolotl, ahead=ahead, skip=1, entries=kind.startswith("entries"))
    check(take(write(tmp_path / kind, [row(example) for example in ALL])))
    assert f"a row predicts {'the token after it' if ahead else 'its own token'}" in capsys.readouterr().out


@pytest.mark.numeric
def test_padded_rows_lose_their_padding(take: Import, tmp_path: Path) -> None:
    rows = []
    for number, example in enumerate(ALL):
        row = foreign.axolotl(example, ahead=1)
        before, behind = (3, 0) if number % 2 else (0, 2)
        row["attention_mask"] = [0] * before + [1] * len(example.ids) + [0] * behind
        for column, filler in (("input_ids", 0), ("labels", -100), ("target_token_ids", [0] * TOP_K)):
            row[column] = [filler] * before + row[column] + [filler] * behind
        row["logprobs"] = [[-1e9] * TOP_K] * before + row["logprobs"] + [[-1e9] * TOP_K] * behind
        row["target_mask"] = [[int(value > -1e8) for value in values] for values in row["logprobs"]]
        rows.append(row)
    check(take(write(tmp_path / "rows.parquet", rows)))


@pytest.mark.numeric
def test_a_sum_slightly_above_1_is_scaled(take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [foreign.plain(example) for example in ALL]
    values = np.log([0.9, *[0.105 / 7] * 7])
    rows[4]["top_logprobs"][0] = values.tolist()
    store = take(write(tmp_path / "rows.parquet", rows))
    assert "1 answer token with a probability above 1 in all: scaled to 1" in capsys.readouterr().out
    found = store.read([4], "theirs")
    np.testing.assert_allclose(found.logits[0], values, rtol=1e-6)
    np.testing.assert_allclose(found.logsumexp[0], np.log(1.005), rtol=1e-6)
    assert (store.read([3], "theirs").logsumexp == 0).all()


@pytest.mark.numeric
def test_what_was_divided_by_its_sum_is_said_to_be(
    take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [foreign.renormalised(foreign.axolotl(example, ahead=1)) for example in ALL]
    path = write(tmp_path / "rows.parquet", rows)
    store = take(path)
    check(store, shift="ranks")
    assert store.bounded("theirs") == ("logits", "logsumexp", "entropy", "gold")
    assert "sum to 1 over the ranks of each row" in capsys.readouterr().out
    main(["inspect-cache", "--store", store.url])
    assert "bounded: logits, logsumexp, entropy, gold (what needs" in capsys.readouterr().out
    main(["inspect-cache", "--store", store.url, "--format", "json"])
    assert json.loads(capsys.readouterr().out)["views"]["theirs"]["bounded"] == list(store.bounded("theirs"))
    assert "logsumexp" not in take(path, store="other", options=("--normalized", "vocabulary")).bounded("theirs")


def test_without_labels_every_token_with_a_row_is_learned(take: Import, tmp_path: Path) -> None:
    rows = []
    for example in ALL:
        row = foreign.axolotl(example, ahead=1, skip=2)
        del row["labels"]
        rows.append(row)
    store = take(write(tmp_path / "rows.jsonl", rows), options=("--row-predicts", "next"))
    for number, example in enumerate(ALL):
        np.testing.assert_array_equal(store.examples[number].answer_positions, np.arange(3, len(example.ids)))


def test_entries_beyond_the_ranks_are_cut_and_the_fewest_decide(
    take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [foreign.plain(example) for example in ALL]
    rows[2]["top_ids"][1] = rows[2]["top_ids"][1][:5]
    rows[2]["top_logprobs"][1] = rows[2]["top_logprobs"][1][:5]
    path = write(tmp_path / "rows.jsonl", rows)
    assert take(path).info.top_k == 5
    assert "top 5 of 5 to 8" in capsys.readouterr().out
    assert take(path, store="three", options=("--top-k", "3")).info.top_k == 3
    said = refused(capsys, lambda: take(path, store="eight", options=("--top-k", "8")))
    assert said.endswith("line 3, answer token 2 (position 7): expected at least 8 ranks (--top-k), got 5")
    assert not (tmp_path / "eight").exists()


@pytest.mark.numeric
def test_the_token_that_vllm_adds_is_known_though_its_rank_is_not(take: Import, tmp_path: Path) -> None:
    rows, outside = [], 0
    for example in ALL:
        row = foreign.axolotl(example, ahead=1, entries=True)
        for place, (entries, token) in enumerate(zip(row["logprobs"], [*example.ids[1:], 0], strict=False)):
            if token not in example.top()[place]:
                entries.insert(0, {"token": f"token_id:{token}", "logprob": example.log_p[place, token]})
        rows.append(row)
    store = take(write(tmp_path / "rows.jsonl", rows))
    check(store)
    assert store.bounded("theirs") == ("logits", "entropy", "gold")
    for number, example in enumerate(ALL):
        found, gold = store.read([number], "theirs"), example.ids[example.positions]
        np.testing.assert_allclose(found.gold_logit, example.log_p[example.positions - 1, gold], rtol=1e-6)
        outside += int((found.gold_rank == TOP_K).sum())
    assert outside > 0


def test_gold_is_bounded_only_where_some_answer_token_is_not_among_the_ranks(take: Import, tmp_path: Path) -> None:
    every, latest = foreign.TOKENS, 0
    rows = []
    for example in ALL:
        at, gold = example.positions - 1, example.ids[example.positions]
        latest = max(latest, int((example.top(every)[at] == gold[:, None]).argmax(axis=1).max()))
        ranks = {"top_ids": example.top(every)[at].tolist(), "top_logprobs": example.top_log_p(every)[at].tolist()}
        rows.append(foreign.plain(example, **ranks))
    path = write(tmp_path / "rows.parquet", rows)
    for top_k, expected in ((latest, ("logits", "entropy", "gold")), (latest + 1, ("logits", "entropy"))):
        store = take(path, store=str(top_k), options=("--top-k", str(top_k), "--normalized", "vocabulary"))
        assert store.bounded("theirs") == expected


def test_a_store_of_other_examples_is_refused(take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [foreign.plain(example) for example in ALL]
    take(write(tmp_path / "rows.parquet", rows))
    fewer = write(tmp_path / "fewer.parquet", rows[:-1])
    assert "examples" in refused(capsys, lambda: take(fewer))


def test_a_dry_run_writes_nothing(
    take: Import, tmp_path: Path, foreign_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.parquet", [foreign.plain(example) for example in ALL])
    place = ["--store", str(tmp_path / "store"), "--view", "theirs", "--model", str(foreign_base), "--teacher", "x"]
    main(["import", path, *place, "--dry-run"])
    assert "plain: 12 examples, 54 answer tokens, top 8" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()


def changed(number: int, column: str, change: Callable[[Any], Any]) -> list[Row]:
    rows = [foreign.plain(example) for example in ALL]
    rows[number][column] = change(rows[number][column])
    return rows


def first_entry(value: float) -> Callable[[list[list[float]]], list[list[float]]]:
    return lambda lists: [[value, *lists[0][1:]], *lists[1:]]


BAD: dict[str, tuple[list[Row], str]] = {
    "missing column": (changed(4, "top_ids", lambda ids: None), "row 5: expected the columns of the first row, got"),
    "unequal lists": (
        changed(4, "top_logprobs", lambda lists: [lists[0][1:], *lists[1:]]),
        "row 5, top_logprobs: expected as many values as top_ids in list 1 (8), got 7",
    ),
    "unequal rows": (
        changed(4, "top_ids", lambda ids: ids[1:]),
        "row 5, top_ids: expected 4 lists, one for each answer token, got 3",
    ),
    "labels too short": (changed(4, "labels", lambda labels: labels[1:]), "row 5, labels: expected 12 of them"),
    "another label": (
        changed(4, "labels", lambda labels: [*labels[:-1], 7]),
        "row 5, labels: expected -100 or the token at its position (",
    ),
    "nothing learned": (
        changed(4, "labels", lambda labels: [-100] * len(labels)),
        "row 5, top_ids: expected 0 lists",
    ),
    "an id of no token": (
        changed(4, "top_ids", first_entry(60)),
        "row 5, answer token 1 (position 8): expected ids from 0 to 59, got 60",
    ),
    "a token of no row": (
        changed(4, "input_ids", lambda ids: [64, *ids[1:]]),
        "row 5, input_ids: expected ids from 0 to 63, got 64",
    ),
    "a token twice": (
        changed(4, "top_ids", lambda ids: [[ids[0][1], *ids[0][1:]], *ids[1:]]),
        "row 5, answer token 1 (position 8): expected distinct tokens, got",
    ),
    "above 0": (
        changed(4, "top_logprobs", first_entry(0.5)),
        "row 5, answer token 1 (position 8): expected log-probabilities, at most 0, got 0.5",
    ),
    "sum above 1": (
        changed(4, "top_logprobs", lambda lists: [[-0.1] * TOP_K, *lists[1:]]),
        "row 5, answer token 1 (position 8): expected probabilities that sum to at most 1, got 7.2387",
    ),
    "NaN": (
        changed(4, "top_logprobs", first_entry(float("nan"))),
        "row 5, answer token 1 (position 8): expected finite numbers, got nan",
    ),
    "no rank": (
        changed(4, "top_logprobs", lambda lists: [[-1e9] * TOP_K, *lists[1:]]),
        "row 5, answer token 1 (position 8): expected log-probabilities, got none",
    ),
    "text": (
        [{**foreign.plain(example), "top_logprobs": "-0.5"} for example in ALL],
        "row 1, top_logprobs: expected a list of lists of numbers, got string",
    ),
    "other columns": (
        [{"text": "hello"}],
        "row 1: expected the columns of a known layout (plain, axolotl, distillkit), got none of their columns",
    ),
    "no ids": (
        [foreign.plain(example, input_ids=None) for example in ALL],
        "row 1: expected a column input_ids, got labels, top_ids, top_logprobs",
    ),
    "two layouts": (
        [{**foreign.plain(example), "logprobs": [[-0.5]]} for example in ALL],
        "row 1: has columns of several layouts (plain, axolotl); add --format",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_wrong_is_one_line_and_leaves_no_store(
    fault: str, take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, expected = BAD[fault]
    path = write(tmp_path / "rows.parquet", rows, row_group_size=5)
    assert f"{path}, {expected}" in refused(capsys, lambda: take(path))
    assert not (tmp_path / "store").exists()


def test_files_that_are_none_are_named(take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, strange = tmp_path / "empty.jsonl", tmp_path / "strange.parquet"
    empty.touch()
    strange.write_bytes(b"\x00\x01\x02")
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(Path(write(tmp_path / "whole.parquet", [foreign.plain(ALL[0])])).read_bytes()[:-20])
    assert "empty.jsonl has no rows" in refused(capsys, lambda: take(str(empty)))
    assert "strange.parquet, line 1: not valid JSON" in refused(capsys, lambda: take(str(strange)))
    assert "torn.parquet cannot be read" in refused(capsys, lambda: take(str(torn)))
    assert "no file matches" in refused(capsys, lambda: take(str(tmp_path / "*.arrow")))
    mixed = [foreign.axolotl(example, ahead=1) for example in ALL]
    files = write(tmp_path / "a.jsonl", [foreign.plain(ALL[0])]), write(tmp_path / "b.jsonl", mixed)
    assert "b.jsonl, line 1: expected the columns of the first row" in refused(capsys, lambda: take(*files))


def test_axolotl_faults_are_one_line(take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(change: Callable[[Row], Row], *options: str) -> str:
        path = write(tmp_path / "rows.jsonl", [change(foreign.axolotl(example, ahead=1)) for example in ALL])
        return refused(capsys, lambda: take(path, options=options))

    def cut(row: Row) -> Row:
        return {**row, "logprobs": row["logprobs"][6:], "target_token_ids": row["target_token_ids"][6:]}

    late = said(cut, "--row-predicts", "next")
    assert "expected log-probabilities of every token that is learned, got none of the one at position" in late
    long = said(lambda row: {**row, "input_ids": row["input_ids"][1:]})
    assert "logprobs: expected at most 7 lists, as there are input_ids, got 8" in long
    words = [[{"token": " the", "logprob": -0.1}] * 2] * 8
    spelled = said(lambda row: {**row, "logprobs": words})
    assert "expected tokens written as token_id:123, got ' the'" in spelled
    packed = said(lambda row: {**row, "attention_mask": [1] * 4 + [2] * (len(row["input_ids"]) - 4)})
    assert "attention_mask: expected 8 numbers, 1 for one sequence and 0 around it" in packed
    flat: Row = {"input_ids": [5] * 9, "labels": [5] * 9, "logprobs": [[-3.0] * TOP_K] * 9}
    unclear = said(lambda row: {**flat, "target_token_ids": [list(range(2, 2 + TOP_K))] * 9})
    assert "cannot tell from the first 12 rows which token" in unclear
    assert "add --row-predicts own or --row-predicts next" in unclear


def test_an_interrupted_import_goes_on_and_ends_with_the_same_bytes(
    take: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.parquet", [foreign.plain(example) for example in ALL], row_group_size=3)
    few = ("--shard-tokens", "10")
    whole = take(path, options=few, encoding="compact")
    written = []
    with monkeypatch.context() as patch:
        from logitbank import StoreWriter

        write_top_k = StoreWriter.write_top_k

        def dying(self: StoreWriter, example: int, *arguments: Any, **named: Any) -> None:
            if example == 5:
                raise KeyboardInterrupt
            written.append(example)
            write_top_k(self, example, *arguments, **named)

        patch.setattr(StoreWriter, "write_top_k", dying)
        with pytest.raises(SystemExit):
            take(path, store="killed", options=few, encoding="compact")
        assert "run the same command to resume" in capsys.readouterr().err
    assert written == [0, 1, 2, 3, 4]
    assert 0 < len(open_store(str(tmp_path / "killed")).missing_shards("theirs")) < whole.info.shards
    other = write(tmp_path / "other.parquet", changed(11, "top_logprobs", first_entry(-3.0)))
    assert "view theirs" in refused(capsys, lambda: take(other, store="killed", options=few, encoding="compact"))
    capsys.readouterr()
    resumed = take(path, store="killed", options=few, encoding="compact")
    assert re.search(r"view theirs: \d examples written \([1-5] were there already\)", capsys.readouterr().out)
    assert resumed.info.fingerprint == whole.info.fingerprint
    for shard in range(whole.info.shards):
        key = f"manifest/theirs/{shard}.json"
        assert (tmp_path / "killed" / key).read_bytes() == (tmp_path / "store" / key).read_bytes()


def test_a_student_is_trained_from_it_and_what_lacks_is_refused(
    take: Import, tmp_path: Path, foreign_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = take(write(tmp_path / "rows.parquet", [foreign.plain(example) for example in ALL]))
    train = ["train-student", "--store", store.url, "--view", "theirs", "--output", str(tmp_path / "student")]
    keys = [f"model.name={foreign_base}", "tasks=[chat]", *tiny.FOUR_STEPS]
    refusal = refused(capsys, lambda: main([*train, *keys]))
    assert "distillation.loss: mse needs the exact logits, but the view theirs" in refusal
    main([*train, *keys, "distillation.loss=forward_kl"])
    assert (tmp_path / "student/final").is_dir()
