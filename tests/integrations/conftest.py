"""The tiny world of `tests/student_train`, and a student that train-student made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from logitbank.student_train.train_command import main
from tests.student_train.conftest import _one_thread, make_store, small_store, tiny_model, tokenizer  # noqa: F401

STEPS, BATCH, RATE = 4, 8, 0.003
# what a plain loop does too: no warm-up, no weight decay
SAME = [
    "training.warmup_steps=0",
    "training.weight_decay=0",
    f"training.learning_rate={RATE}",
    f"training.max_steps={STEPS}",
    f"training.global_batch_size={BATCH}",
    "training.micro_batch_size=8",
    "training.use_lora=false",
    "training.precision=fp32",
    "training.num_workers=0",
    "distillation.loss=forward_kl",
    "distillation.temperature=2",
    "distillation.lambda_distill=0.5",
    "seed=7",
]


@pytest.fixture(autouse=True)
def _no_state_of_a_trainer_stays() -> Iterator[None]:
    yield
    AcceleratorState._reset_state()
    GradientState._reset_state()


@pytest.fixture(scope="session")
def trained(
    small_store: SimpleNamespace,  # noqa: F811
    tiny_model: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """What train-student makes of the store's view fewshot: `weights`, and the `norms` of its gradients."""
    output = tmp_path_factory.mktemp("student")
    options = ["--store", small_store.url, "--view", "fewshot", "--output", str(output)]
    main([*options, f"model.name={tiny_model}", "tasks=[nli,pos]", "training.logging_steps=1", *SAME])
    log = [row for path in (output / "results/training_log").glob("*") for row in pq.read_table(path).to_pylist()]
    norms = [row["value"] for row in sorted(log, key=lambda row: row["step"]) if row["metric"] == "grad_norm"]
    assert len(norms) == STEPS
    return SimpleNamespace(weights=load_file(output / "final" / "model.safetensors"), norms=norms)


def difference(state: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> float:
    """The largest of any weight."""
    return max((state[name] - tensor).abs().max().item() for name, tensor in weights.items())
