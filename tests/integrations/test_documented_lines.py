"""The programs in docs/python.md run as they stand there, at the size of a test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from logitbank import open_store
from logitbank.storage import verify
from tests.integrations.conftest import BATCH, RATE, STEPS, difference
from tests.integrations.documented import lines_of, run


def test_a_store_is_read(small_store: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    run(lines_of("Read a store", {"runs/store": small_store.url, "top_k=64": "top_k=4"}))
    length = sum(len(small_store.records[i].answer_ids) for i in (0, 5))
    assert f"({length}, 4) ({length}, 4) ({length},)" in capsys.readouterr().out


def test_twenty_lines_train_the_student_of_train_student(
    small_store: SimpleNamespace, trained: SimpleNamespace, tmp_path: Path
) -> None:
    changes = {
        "steps, batch_size = 1000, 32": f"steps, batch_size = {STEPS}, {BATCH}",
        "runs/store": small_store.url,
        "top_k=64": "top_k=16",
        "lr=0.0002": f"lr={RATE}",
        "runs/student": str(tmp_path / "student"),
    }
    program = lines_of("A training loop", changes)
    assert len([line for line in program.splitlines() if line]) <= 21
    run(program)
    assert difference(load_file(tmp_path / "student" / "model.safetensors"), trained.weights) <= 1e-6


def test_a_trainer_learns(small_store: SimpleNamespace, tmp_path: Path) -> None:
    options = 'max_steps=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True'
    changes = {"runs/store": small_store.url, "runs/trainer": str(tmp_path), "max_steps=1000": options}
    history = run(lines_of("Trainer", changes))["trainer"].state.log_history
    assert history[-1]["train_loss"] > 0


def test_logits_of_ones_own_make_a_store(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(2, 97, (6, 9)).tolist()
    rows = [{"input_ids": row, "labels": [-100] * 5 + row[5:]} for row in ids]
    changes = {
        "Qwen/Qwen3-1.7B": str(tiny_model),
        "Qwen/Qwen3-8B": str(tiny_model),
        "runs/mine": str(tmp_path / "mine"),
    }
    names = run(lines_of("Your own teacher", changes), rows=rows)
    assert verify(str(tmp_path / "mine")) == []
    kept = open_store(tmp_path / "mine").read([4], "zeroshot")
    with torch.no_grad():
        logits = names["teacher"](torch.tensor([ids[4]])).logits[0, 4:8]
    assert torch.equal(torch.from_numpy(kept.token_ids[:, 0]).long(), logits[:, :97].argmax(-1))
    assert kept.gold_rank.shape == (4,)
