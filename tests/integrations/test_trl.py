"""`SFTTrainer` of TRL on real conversations: its own tokenisation, joined to a store by tokens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import transformers
from trl import SFTConfig

from logitbank import DistillationConfig, ExampleRecord, StoreWriter
from logitbank.errors import ConfigError
from logitbank.integrations.trl import DistillationSFTTrainer, StoreJoin
from tests import tiny
from tests.integrations.documented import lines_of, run

ROWS, TOP_K = 8, 5


@pytest.fixture(scope="module")
def chat(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The shortest conversations of two turns, a tiny model with bytes for tokens, and a store of its own logits."""
    path = tmp_path_factory.mktemp("trl")
    tokenizer = tiny.chat_tokenizer()
    model = tiny.save_model(path / "model", tokenizer, rows=300, max_position_embeddings=4096)
    with (shared / "chat" / "train.jsonl").open(encoding="utf-8") as lines:
        read = [json.loads(line)["messages"] for line in lines]
    plain = [messages for messages in read if all(set(m) == {"role", "content"} for m in messages)]
    chosen = sorted(plain, key=lambda messages: sum(len(m["content"]) for m in messages))[:ROWS]
    examples = []
    for number, messages in enumerate(chosen):
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        last = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        labels = [-100] * len(last) + ids[len(last) :]
        examples.append(ExampleRecord.from_labels(f"chat/{number}", ids, labels))
    teacher = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    options: dict[str, Any] = {"model": str(model), "teacher": {"model": "tiny"}, "view": "mine", "top_k": TOP_K}
    with StoreWriter(str(path / "store"), examples, tokenizer=tokenizer, vocab_size=300, **options) as writer:
        for i in writer.missing():
            with torch.no_grad():
                logits = teacher(torch.from_numpy(examples[i].input_ids[None]).long()).logits[0]
            writer.write(i, logits[examples[i].answer_positions - 1])
    return SimpleNamespace(store=str(path / "store"), model=model, messages=chosen, tokenizer=tokenizer)


def trainer(chat: SimpleNamespace, output: Path, messages: Any = None, **changes: Any) -> DistillationSFTTrainer:
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "optim": "adamw_torch",
        "max_length": 4096,
        "shuffle_dataset": False,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    return DistillationSFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(chat.model, dtype=torch.float32),
        args=SFTConfig(str(output), **{**options, **changes}),
        train_dataset=datasets.Dataset.from_list([{"messages": m} for m in messages or chat.messages]),
        processing_class=chat.tokenizer,
        join=StoreJoin(chat.store, view="mine", tokenizer=chat.tokenizer),
        distillation=DistillationConfig(loss="forward_kl", lambda_distill=0.5),
    )


def test_packed_rows_cost_what_padded_ones_do(chat: SimpleNamespace, tmp_path: Path) -> None:
    """All conversations in one step: its loss and gradient do not depend on how the trainer lays rows out."""
    padded = trainer(chat, tmp_path / "padded", gradient_accumulation_steps=4)
    padded.train()
    before = padded.state.log_history[0]
    assert before["kd"] == pytest.approx(0, abs=1e-4)  # the teacher is the model itself
    assert before["ce"] > 1
    free = trainer(chat, tmp_path / "free", gradient_accumulation_steps=4, padding_free=True, max_length=None)
    longest = max(len(row["input_ids"]) for row in free.train_dataset)
    packed = trainer(chat, tmp_path / "packed", packing=True, max_length=2 * longest, gradient_accumulation_steps=64)
    assert len(packed.train_dataset) < ROWS
    for made in (free, packed):
        made.train()
        after = made.state.log_history[0]
        assert after["ce"] == pytest.approx(before["ce"], rel=1e-4)
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-3)


def test_rows_that_the_trainer_cuts_are_refused(chat: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"row 0: no example .* the row has ended \(64 tokens\)"):
        trainer(chat, tmp_path, max_length=64)
    changed = [[*chat.messages[0][:-1], {"role": "assistant", "content": "?"}], *chat.messages[1:]]
    with pytest.raises(ConfigError, match=r"row 0: .* the nearest is chat/0: token \d+ differs first: the row has 30"):
        trainer(chat, tmp_path, changed)


def test_evaluation_and_saving_are_the_trainers_own(chat: SimpleNamespace, tmp_path: Path) -> None:
    made = trainer(chat, tmp_path)
    made.train()
    held_out = datasets.Dataset.from_list([{"messages": chat.messages[0]}])
    metrics = made.evaluate(held_out)
    assert metrics["eval_loss"] > 0
    assert 0 <= metrics["eval_mean_token_accuracy"] <= 1


def test_the_documented_lines_learn(chat: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chat.messages))
    options = 'max_steps=1, use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True'
    changes = {
        "Qwen/Qwen3-1.7B": str(chat.model),
        "runs/sft": str(tmp_path / "sft"),
        "runs/store": chat.store,
        "zeroshot": "mine",
        "max_steps=1000": options,
        "train.jsonl": str(file),
    }
    history = run(lines_of("SFTTrainer", changes))["trainer"].state.log_history
    assert history[-1]["train_loss"] > 1
