"""One global batch, one result: however processes and accumulation share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from logitbank.student_train.train_command import main
from tests import processes


def logged(results: Path, metric: str) -> list[float]:
    rows = [row for path in sorted((results / "training_log").glob("*")) for row in pq.read_table(path).to_pylist()]
    return [
        row["value"] for row in sorted(rows, key=lambda r: r["step"]) if (row["metric"], row["task"]) == (metric, "all")
    ]


@pytest.mark.parametrize("use_lora", [True, False], ids=["lora", "full"])
def test_processes_and_accumulation_change_nothing(
    make_store: Callable[..., SimpleNamespace], tiny_model: Path, tmp_path: Path, use_lora: bool
) -> None:
    store = make_store(count=40, top_k=16, max_answer=9)

    def arguments(name: str, micro: int) -> list[str]:
        options = ["--store", store.url, "--view", "fewshot", "--output", str(tmp_path / name)]
        return [
            *options,
            *[f"model.name={tiny_model}", "tasks=[nli,pos]", "training.precision=fp32"],
            *[f"training.use_lora={use_lora}", "lora.dropout=0", "training.num_workers=0"],
            *["training.max_steps=20", "training.global_batch_size=8", f"training.micro_batch_size={micro}"],
            *["training.logging_steps=1", "training.warmup_steps=2", "training.learning_rate=0.001"],
        ]

    def launch(ranks: int, name: str, micro: int) -> None:
        done = processes.run_ranks(ranks, "train-student", *arguments(name, micro))
        assert [rank.returncode for rank in done] == [0] * ranks, done[0].stderr[-3000:]
        assert f"{ranks} processes × " in done[0].stderr

    main(arguments("one-by-four", 2))
    main(arguments("whole-batch", 8))
    launch(2, "two-by-two", 2)
    if not use_lora:
        launch(4, "four-by-one", 2)
    file = "adapter_model.safetensors" if use_lora else "model.safetensors"
    reference = load_file(tmp_path / "one-by-four" / "final" / file)
    expected = logged(tmp_path / "one-by-four" / "results", "loss")
    norms = logged(tmp_path / "one-by-four" / "results", "grad_norm")  # Adam would hide a wrong scale
    assert len(expected) == 20
    assert expected[-1] < 0.95 * expected[0]
    # other shapes of matrices round differently, and Adam's first steps turn rounding into signs
    assert logged(tmp_path / "whole-batch" / "results", "loss") == pytest.approx(expected, rel=1e-4)
    for output in sorted(set(tmp_path.iterdir()) - {tmp_path / "one-by-four", tmp_path / "whole-batch"}):
        assert logged(output / "results", "loss") == pytest.approx(expected, rel=1e-5), output.name
        assert logged(output / "results", "grad_norm") == pytest.approx(norms, rel=1e-4), output.name
        weights = load_file(output / "final" / file)
        assert weights.keys() == reference.keys()
        for key, tensor in weights.items():
            difference = (tensor - reference[key]).abs().max().item()
            assert difference <= 1e-6, (output.name, key, difference)
