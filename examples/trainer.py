"""`transformers.Trainer`, with a cached teacher in its loss.

    python trainer.py [--store STORE] [--model MODEL] [--steps N] [--learning-rate R]

The log has `ce`, cross-entropy on the answers, and `kd`, KL to the teacher, both in nats per answer token.
"""

import argparse

import torch
import transformers

import logitbank
from logitbank.integrations.transformers import DistillationTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--store", default="runs/conversations/store")
parser.add_argument("--model", help="default: the model that the store was made for")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--learning-rate", type=float, default=1e-5)
parser.add_argument("--output", default="runs/trainer")
arguments = parser.parse_args()

store = logitbank.open_store(arguments.store)
model = arguments.model or store.info.model
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
trainer = DistillationTrainer(
    model=transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
    args=transformers.TrainingArguments(
        arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,  # the loss is a mean over the answer tokens of all eight examples
        learning_rate=arguments.learning_rate,
        bf16=torch.cuda.is_available(),
        logging_steps=5,
        report_to="none",
    ),
    train_dataset=logitbank.TeacherDataset(store, view="zeroshot", shuffle_seed=0),
    data_collator=logitbank.DistillationCollator(pad_id=tokenizer.pad_token_id),
    distillation=logitbank.DistillationConfig(loss="forward_kl", lambda_distill=1.0),
)
trainer.train()
trainer.save_model(f"{arguments.output}/final")
tokenizer.save_pretrained(f"{arguments.output}/final")
