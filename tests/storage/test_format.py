"""docs/store-format.md says enough to read a store without this package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from logitbank.storage import TeacherStore
from tests.storage import stores

DOCUMENT = Path(__file__).parents[2] / "docs" / "store-format.md"


@pytest.mark.parametrize("encoding", ["exact", "float16", "compact"])
def test_the_documented_reader_agrees_with_ours(tmp_path: Path, encoding: str) -> None:
    store = tmp_path / "store"
    stores.build(str(store), stores.records(20), views=("zeroshot",), encoding=encoding, top_k=70)
    reader = re.search(r"```python\n(import numpy.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert reader is not None
    script = (
        f"{reader.group(1)}\nids, logits = read_view({str(store)!r}, 'zeroshot')\n"
        f"np.savez({str(tmp_path / 'read.npz')!r}, ids=ids, logits=logits)\n"
    )
    # In a process of its own, so that the reader stands alone with its imports.
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", script], check=True, cwd=tmp_path)
    read = np.load(tmp_path / "read.npz")
    rows = TeacherStore.open(str(store)).read(range(20), "zeroshot")
    np.testing.assert_array_equal(read["ids"], rows.token_ids)
    np.testing.assert_array_equal(read["logits"], rows.logits)


def test_the_documented_calls_print_a_row_for_each_answer_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = stores.records(5)
    stores.build(str(tmp_path / "runs/qwen/store"), examples)
    monkeypatch.chdir(tmp_path)
    calls = re.search(r"```python\n(from logitbank.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert calls is not None
    exec(compile(calls.group(1), str(DOCUMENT), "exec"), {})  # noqa: S102
    about, *rows = capsys.readouterr().out.splitlines()
    assert about == "tiny ('fewshot', 'zeroshot') 5"
    assert [int(row.split()[0]) for row in rows] == examples[0].answer_ids.tolist()
