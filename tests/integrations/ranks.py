"""One rank of a `DistillationTrainer`, for tests: `python -m tests.integrations.ranks STORE MODEL OUTPUT BATCH`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

from logitbank import DistillationCollator, DistillationConfig, TeacherDataset
from logitbank.integrations.transformers import DistillationTrainer
from tests.integrations.conftest import RATE, STEPS


def trainer(
    store: str, model: str, output: Path, batch: int, accumulation: int = 1, **changes: object
) -> DistillationTrainer:
    """What does as train-student with the settings of the tests."""
    options = {
        "max_steps": STEPS,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return DistillationTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=transformers.TrainingArguments(str(output), **{**options, **changes}),
        train_dataset=TeacherDataset(store, view="fewshot", shuffle_seed=7),
        data_collator=DistillationCollator(pad_id=0),
        distillation=DistillationConfig(loss="forward_kl", temperature=2.0, lambda_distill=0.5),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = trainer(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    made.train()
    if made.is_world_process_zero():
        norms = [row["grad_norm"] for row in made.state.log_history if "grad_norm" in row]
        torch.save((made.model.state_dict(), norms), Path(sys.argv[3]) / "made.pt")
