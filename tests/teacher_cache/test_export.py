"""logitbank export: Parquet rows that others read, and that come back as they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from logitbank import TeacherStore, open_store
from logitbank.__main__ import main
from logitbank.storage import verify
from tests import tiny
from tests.servers import FileServer, serving
from tests.storage import stores
from tests.teacher_cache.imports import refused

EXAMPLES, TOP_K = 24, 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.word_tokenizer(stores.TOKENIZER_SIZE)
    return tiny.save_model(tmp_path_factory.mktemp("base"), tokenizer, rows=stores.VOCAB_SIZE)


@pytest.fixture(scope="module", params=["exact", "compact"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TeacherStore:
    url = str(tmp_path_factory.mktemp("store") / request.param)
    layout = {"encoding": request.param, "top_k": TOP_K, "shard_tokens": 32}
    stores.build(url, stores.records(EXAMPLES), views=("fewshot",), **layout)
    return open_store(url)


def export(store: TeacherStore | str, folder: Path, *options: str) -> Any:
    """Export a view, and read the files as others do."""
    url = store if isinstance(store, str) else store.url
    main(["export", url, "--view", "fewshot", "--output", str(folder), *options])
    return datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(folder / "cache"))


def bring_back(folder: Path, base: Path, encoding: str, *options: str) -> TeacherStore:
    """Import what was exported."""
    url = str(folder / "again")
    place = ["--store", url, "--view", "fewshot", "--model", str(base), "--teacher", "tiny", "--encoding", encoding]
    main(["import", f"{folder}/*.parquet", *place, *options])
    assert verify(url) == []
    return open_store(url)


def everything(store: TeacherStore) -> Any:
    return store.read(range(EXAMPLES), "fewshot")


def by_token(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and logits with equal logits in the order of their tokens, which `compact` does not keep."""
    order = np.lexsort((rows.token_ids, -rows.logits), axis=1)
    return np.take_along_axis(rows.token_ids, order, 1), np.take_along_axis(rows.logits, order, 1)


@pytest.mark.numeric
def test_logits_come_back_bit_by_bit(store: TeacherStore, base: Path, tmp_path: Path) -> None:
    rows = export(store, tmp_path, "--logits")
    assert rows.column_names == [
        *("id", "task", "language", "input_ids", "labels", "top_ids", "logits"),
        *("logsumexp", "entropy", "gold_logit", "gold_rank"),
    ]
    again = bring_back(tmp_path, base, store.info.encoding)
    assert again.bounded("fewshot") == ()
    for before, after in zip(store.examples, again.examples, strict=True):
        assert (before.id, before.task, before.language) == (after.id, after.task, after.language)
        assert before.sequence == after.sequence
    before, after = everything(store), everything(again)
    for mine, theirs in zip(by_token(before), by_token(after), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("logsumexp", "entropy", "gold_logit"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


@pytest.mark.numeric
def test_log_probabilities_are_those_of_float64(store: TeacherStore, base: Path, tmp_path: Path) -> None:
    rows, before, first = export(store, tmp_path), everything(store), 0
    for number, row in enumerate(rows):
        record = store.examples[number]
        assert row["id"] == record.id
        assert row["input_ids"] == record.input_ids.tolist()
        labels = np.full(len(record.input_ids), -100)
        labels[record.answer_positions] = record.answer_ids
        assert row["labels"] == labels.tolist()
        mine = slice(first, first + len(record.answer_ids))
        first = mine.stop
        assert row["top_ids"] == before.token_ids[mine].tolist()
        exact = before.logits[mine].astype(np.float64) - before.logsumexp[mine, None]
        np.testing.assert_array_equal(np.array(row["top_logprobs"], np.float32), exact.astype(np.float32))
        gold = before.gold_logit[mine].astype(np.float64) - before.logsumexp[mine]
        np.testing.assert_array_equal(np.array(row["gold_logprob"], np.float32), gold.astype(np.float32))
    again = bring_back(tmp_path, base, "exact")
    assert again.bounded("fewshot") == ()
    # a log-probability and a logsumexp, each rounded to float32
    np.testing.assert_allclose(by_token(everything(again))[1], by_token(before)[1], atol=4e-6)


@pytest.mark.numeric
@pytest.mark.parametrize("normalized", ["top-k", "vocabulary"])
def test_axolotl_rows_predict_the_next_token(normalized: str, store: TeacherStore, base: Path, tmp_path: Path) -> None:
    rows, before, first = (
        export(store, tmp_path, "--format", "axolotl", "--normalized", normalized),
        everything(store),
        0,
    )
    names = ("input_ids", "labels", "attention_mask", "target_token_ids", "target_logprobs", "target_mask")
    assert rows.column_names == list(names)  # axolotl's collator makes a tensor of every column
    for number, row in enumerate(rows):
        record = store.examples[number]
        learned = record.answer_positions - 1
        mine = slice(first, first + len(learned))
        first = mine.stop
        tokens, values, mask = (np.array(row[f"target_{name}"]) for name in ("token_ids", "logprobs", "mask"))
        assert tokens.shape == values.shape == mask.shape == (len(record.input_ids), TOP_K)
        assert row["attention_mask"] == [1] * len(record.input_ids)
        assert (
            np.flatnonzero(mask.all(axis=1)).tolist() == np.flatnonzero(mask.any(axis=1)).tolist() == learned.tolist()
        )
        np.testing.assert_array_equal(tokens[learned], before.token_ids[mine])
        wide = before.logits[mine].astype(np.float64)
        whole = np.log(np.exp(wide).sum(axis=1)) if normalized == "top-k" else before.logsumexp[mine]
        np.testing.assert_allclose(values[learned], wide - whole[:, None], rtol=1e-6, atol=1e-6)
    again = bring_back(tmp_path, base, "exact", "--row-predicts", "next", "--task", "nli")
    lost = ("logits", "logsumexp", "entropy", "gold") if normalized == "top-k" else ("logits", "entropy", "gold")
    assert again.bounded("fewshot") == lost
    mine, theirs = by_token(before)[1], by_token(everything(again))[1]
    np.testing.assert_allclose(theirs - theirs[:, :1], mine - mine[:, :1], atol=4e-6)


def test_fewer_ranks_and_what_was_bounded(store: TeacherStore, base: Path, tmp_path: Path) -> None:
    rows = export(store, tmp_path / "few", "--top-k", "3", "--format", "axolotl", "--normalized", "vocabulary")
    assert {len(ranks) for row in rows for ranks in row["target_token_ids"]} == {3}
    again = bring_back(tmp_path / "few", base, "exact", "--row-predicts", "next")
    once_more = export(again, tmp_path / "bounded")
    assert once_more.column_names == [
        *("id", "task", "language", "input_ids", "labels", "top_ids", "top_logprobs"),
    ]


def test_a_store_on_a_web_server_is_exported(store: TeacherStore, tmp_path: Path) -> None:
    main(["push", store.url, "--output", str(tmp_path / "packed")])
    with serving(FileServer(tmp_path / "packed")) as url:
        rows = export(url, tmp_path / "rows")
    assert rows["id"] == [record.id for record in store.examples]


def test_an_interrupted_export_goes_on(
    store: TeacherStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("logitbank.teacher_cache.exchange.exporting.FILE_BYTES", 6000)
    whole = export(store, tmp_path / "whole")
    with monkeypatch.context() as patch:
        read_shard = TeacherStore.read_shard

        def dying(self: TeacherStore, view: str, shard: int, top_k: int | None = None) -> Any:
            if shard == store.info.shards - 1:
                raise KeyboardInterrupt
            return read_shard(self, view, shard, top_k)

        patch.setattr(TeacherStore, "read_shard", dying)
        with pytest.raises(SystemExit):
            export(store, tmp_path / "killed")
    assert "run the same command to resume" in capsys.readouterr().err
    left = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert left == sorted(path.name for path in (tmp_path / "whole").glob("*.parquet"))[:-1]
    rows = export(store, tmp_path / "killed")
    assert f"({len(left)} from an earlier run)" in capsys.readouterr().out
    assert rows.to_list() == whole.to_list()


def test_what_cannot_be_exported_is_one_line(
    store: TeacherStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rows"
    export(store, folder)

    def said(*options: str, output: Path = folder) -> str:
        place = ["--view", "fewshot", "--output", str(output), *options]
        return refused(capsys, lambda: main(["export", store.url, *place]))

    assert "belongs to a different export (top_k: expected 5, got 20); choose another directory" in said("--top-k", "5")
    assert "top_k: expected 1 to 20 (what the store holds), got 21" in said("--top-k", "21")
    (folder / "mine.parquet").touch()
    assert "expected an empty directory or one of the same export, but it holds mine.parquet" in said()
    assert "no such view" in refused(
        capsys, lambda: main(["export", store.url, "--view", "other", "--output", str(tmp_path / "new")])
    )
    assert not (tmp_path / "new").exists()


def test_help_brings_no_torch() -> None:
    commands = "import_command", "export_command"
    program = "import sys, importlib\n" + "".join(
        f"importlib.import_module('logitbank.teacher_cache.exchange.{name}').make_parser().format_help()\n"
        for name in commands
    )
    program += "assert not {'torch', 'zarr', 'transformers', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
