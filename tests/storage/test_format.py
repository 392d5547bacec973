"""docs/store-format.md says enough to read a store without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from logitbank.storage import ExampleRecord, LabelStore, OtherTeacher, OwnSequences, TeacherStore, Tokens, open_builder
from tests.storage import label_stores, stores

DOCUMENT = Path(__file__).parents[2] / "docs" / "store-format.md"


@pytest.mark.parametrize("encoding", ["exact", "float16", "compact"])
def test_the_documented_reader_agrees_with_ours(tmp_path: Path, encoding: str) -> None:
    """Rows and sequences of a view of the store's examples, and of one with sequences and tokens of its own."""
    path = tmp_path / "store"
    sequences = stores.conversations(20, turns=5)
    records = [ExampleRecord(f"nli/en/{i}", "nli", "en", sequence) for i, sequence in enumerate(sequences)]
    tokens = Tokens(tokenizer_size=90, vocab_size=96, tokenizer_hash="s" * 64)
    own = OwnSequences(
        [records[3].example_id] * 9,
        stores.conversations(9, seed=1, size=90),
        OtherTeacher({"model": "small"}, tokens, lambda: stores.vocabulary(90)),
    )
    spec = stores.spec(encoding=encoding, top_k=70)
    with open_builder(str(path), spec, records, [], vocabulary=stores.vocabulary) as builder:
        builder.add_view("zeroshot", {}, {})
        stores.write_missing(builder, "zeroshot", records, 70)
        builder.add_view("own", {}, {}, own=own)
        stores.write_missing(builder, "own", own.sequences, 70, vocab_size=96, tokenizer_size=90)
    reader = "".join(re.findall(r"```python\n((?:import numpy|def read).*?)```", DOCUMENT.read_text(), re.DOTALL))
    groups = {"zeroshot": "examples", "own": "teachers/own/examples"}
    script = reader + "".join(
        f"\nids, logits = read_view({str(path)!r}, {view!r})\n"
        f"sequences = dict(enumerate(read_sequences({str(path)!r}, {group!r})))\n"
        f"np.savez({str(tmp_path / view)!r}, ids=ids, logits=logits, **{{str(i): s for i, s in sequences.items()}})\n"
        for view, group in groups.items()
    )
    # In a process of its own, so that the reader stands alone with its imports.
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", script], check=True, cwd=tmp_path)
    store = TeacherStore.open(str(path))
    for view in groups:
        read, table = np.load(tmp_path / f"{view}.npz"), store.table(view)
        rows = store.read(range(len(table)), view)
        np.testing.assert_array_equal(read["ids"], rows.token_ids)
        np.testing.assert_array_equal(read["logits"], rows.logits)
        assert len(read.files) == 2 + len(table)
        for i in range(len(table)):
            np.testing.assert_array_equal(read[str(i)], table.sequence(i).ids)


def test_the_documented_calls_print_a_row_for_each_answer_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = stores.records(5)
    stores.build(str(tmp_path / "runs/qwen/store"), examples)
    monkeypatch.chdir(tmp_path)
    calls = re.search(r"```python\n(import logitbank.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert calls is not None
    exec(compile(calls.group(1), str(DOCUMENT), "exec"), {})  # noqa: S102
    about, *rows = capsys.readouterr().out.splitlines()
    assert about == "tiny ('fewshot', 'zeroshot') 5"
    assert [int(row.split()[0]) for row in rows] == examples[0].answer_ids.tolist()


def test_the_documented_reader_of_label_stores_agrees_with_ours(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    with label_stores.builder(path) as made:
        label_stores.score(made, "llama", [0, 2])
    (reader,) = re.findall(r"```python\n(import json.*?)```", DOCUMENT.read_text(), re.DOTALL)
    script = reader + (
        f"\nrows = {{group: read_rows({path!r}, group) for group in ('train', 'validation', 'external')}}\n"
        "for group in rows.values():\n    for row in group:\n        row['target'] = row['target'].tolist()\n"
        f"print(json.dumps(rows))\nnp.save({str(tmp_path / 'logits')!r}, read_logits({path!r}, 'llama'))\n"
    )
    command = [sys.executable, "-I", "-W", "ignore", "-c", script]
    printed = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    store = LabelStore.open(path)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), store.logits("llama"))
    for name, table in (("train", store.train), ("validation", store.validation), ("external", store.external)):
        pairs = [table.pair(i) for i in range(len(table))]
        turns = [[list(p.prompt), list(p.response_a), list(p.response_b)] for p in pairs]
        expected = [
            {"id": p.example_id, "target": list(p.target or ()), "turns": t} for p, t in zip(pairs, turns, strict=True)
        ]
        assert json.loads(printed)[name] == expected
