"""Whole runs on the tiny world."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pyarrow.parquet as pq
import torch
import transformers

from logitbank.configs import Config
from logitbank.storage.results import Catalogue
from logitbank.student_train.records import Run
from logitbank.student_train.train import train


def run_of(config: Config, store: SimpleNamespace, output: Path, **changes: Any) -> Run:
    values: dict[str, Any] = {"view": "fewshot", "results": output / "results", **changes}
    return Run(config=config, store_url=store.url, output=output, **values)


def logged(results: Path, metric: str, task: str = "all") -> dict[int, float]:
    rows = [
        row for path in sorted((results / "training_log").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    return {row["step"]: row["value"] for row in rows if row["metric"] == metric and row["task"] == task}


def test_full_fine_tuning_writes_what_transformers_loads(
    configure: Callable[..., Config], small_store: SimpleNamespace, tmp_path: Path
) -> None:
    config = configure("training.max_steps=30", "training.save_steps=10", "training.logging_steps=5")
    final = train(run_of(config, small_store, tmp_path / "run"))
    model = transformers.AutoModelForCausalLM.from_pretrained(final)
    assert model.dtype == torch.float32
    assert len(transformers.AutoTokenizer.from_pretrained(final)) == 97
    about = json.loads((final / "training.json").read_text())
    assert about["step"] == 30
    assert about["view"] == "fewshot"
    assert about["store_fingerprint"] == small_store.store.info.fingerprint
    (row,) = Catalogue([tmp_path / "run" / "results"]).rows("SELECT * FROM runs")
    assert row["max_steps"] == row["step"] == 30
    for name in ("training_set", "teacher", "top_k", "view_fingerprint", "template"):
        assert row[name] == about[name] is not None
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint-10",
        "checkpoint-20",
        "final",
        "results",
    ]
    losses = logged(tmp_path / "run" / "results", "loss")
    assert sorted(losses) == [5, 10, 15, 20, 25, 30]
    assert losses[30] < 0.7 * losses[5]
    per_task = logged(tmp_path / "run" / "results", "kd", "pos")
    assert sorted(per_task) == sorted(losses)


def test_lora_with_gradient_checkpointing_trains_and_writes_what_peft_loads(
    configure: Callable[..., Config], small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path
) -> None:
    config = configure("training.use_lora=true", "training.gradient_checkpointing=true", "lora.r=4")
    final = train(run_of(config, small_store, tmp_path / "run", view=None))
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    model = peft.PeftModel.from_pretrained(base, final)
    trained = {name: value for name, value in model.state_dict().items() if "lora_B" in name}
    assert len(trained) == 14
    assert all(value.abs().sum() > 0 for value in trained.values())  # B starts at zero: all had gradients
    assert logged(tmp_path / "run" / "results", "kd") == {}
    assert len(logged(tmp_path / "run" / "results", "loss")) == 4
