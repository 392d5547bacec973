"""TRL's `SFTTrainer` on your own rows, each joined to its example in a cache.

    python sft_trainer.py [--store STORE] [--model MODEL] [--train FILE] [--steps N] [--learning-rate R]

TRL renders and tokenises the rows as it always does. A row whose tokens are not in the store is refused before training
begins, with the first token that differs.
"""

import argparse

import datasets
import torch
from trl import SFTConfig

import logitbank
from logitbank.integrations.trl import DistillationSFTTrainer, StoreJoin

parser = argparse.ArgumentParser()
parser.add_argument("--store", default="runs/conversations/store")
parser.add_argument("--model", help="default: the model that the store was made for")
parser.add_argument("--train", default="conversations/train.jsonl")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--learning-rate", type=float, default=1e-5)
parser.add_argument("--output", default="runs/sft")
arguments = parser.parse_args()

store = logitbank.open_store(arguments.store)
in_store = {name.split("/", 3)[3] for name in store.examples.example_id}  # task/language/split/the row's own id
rows = datasets.load_dataset("json", data_files=arguments.train, split="train")
# Held-out conversations have no teacher rows. Those of several turns may have several examples: the chat template of
# Qwen3 renders a turn differently once others follow.
rows = rows.filter(lambda row: row["id"] in in_store and sum(m["role"] == "assistant" for m in row["messages"]) == 1)
trainer = DistillationSFTTrainer(
    model=arguments.model or store.info.model,
    args=SFTConfig(
        arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=8,
        learning_rate=arguments.learning_rate,
        bf16=torch.cuda.is_available(),  # TRL's default, which a CPU refuses
        logging_steps=5,
        report_to="none",
    ),
    train_dataset=rows.select_columns("messages"),
    join=StoreJoin(store, view="zeroshot"),
    distillation=logitbank.DistillationConfig(loss="forward_kl", lambda_distill=1.0),
)
trainer.train()
trainer.save_model(f"{arguments.output}/final")
