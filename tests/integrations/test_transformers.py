"""`Trainer` with a store's teacher in its loss makes the student that train-student makes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from logitbank import DistillationCollator, DistillationConfig, TeacherDataset
from logitbank.errors import ConfigError
from logitbank.integrations.transformers import DistillationTrainer, StoreJoin
from tests import processes
from tests.integrations.conftest import difference
from tests.integrations.ranks import trainer


@pytest.mark.parametrize("batch", [8, 4], ids=["whole-batch", "accumulated"])
def test_the_student_is_that_of_train_student(
    small_store: SimpleNamespace, tiny_model: Path, trained: Any, tmp_path: Path, batch: int
) -> None:
    made = trainer(small_store.url, str(tiny_model), tmp_path, batch, 8 // batch)
    made.train()
    assert difference(made.model.state_dict(), trained.weights) <= 1e-6
    logged = [row for row in made.state.log_history if "kd" in row]
    assert [row["grad_norm"] for row in logged] == pytest.approx(trained.norms, rel=1e-4)  # Adam hides a wrong scale
    for row in logged:
        assert row["loss"] == pytest.approx(row["ce"] + 0.5 * row["kd"], rel=1e-3)


def test_two_processes_make_the_same_student(
    small_store: SimpleNamespace, tiny_model: Path, trained: Any, tmp_path: Path
) -> None:
    arguments = ["-m", "tests.integrations.ranks", small_store.url, str(tiny_model), str(tmp_path), "4"]
    done = processes.run_ranks(2, *arguments)
    assert [rank.returncode for rank in done] == [0, 0], done[0].stderr[-3000:]
    weights, norms = torch.load(tmp_path / "made.pt", weights_only=True)
    assert difference(weights, trained.weights) <= 1e-6
    assert norms == pytest.approx(trained.norms, rel=1e-4)


def test_bfloat16_and_logits_at_the_answers_alone(
    small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    forward = transformers.Qwen3ForCausalLM.forward

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        outputs = forward(self, *arguments, **options)
        seen.append(tuple(outputs.logits.flatten(0, -2).shape))
        return outputs

    watched.__wrapped__ = forward  # type: ignore[attr-defined]
    monkeypatch.setattr(transformers.Qwen3ForCausalLM, "forward", watched)
    made = trainer(small_store.url, str(tiny_model), tmp_path, 8, bf16=True, max_steps=1)
    made.train()
    first = [small_store.records[i] for i in made.train_dataset.sampler()][:8]
    assert seen == [(sum(len(record.answer_ids) for record in first), 104)]
    assert 0 < made.state.log_history[0]["kd"] < 10


def own_rows(store: SimpleNamespace, **changes: Any) -> list[dict[str, Any]]:
    """The store's examples as somebody else's rows, each token a label, a line break behind the last answer."""
    rows = [{"input_ids": [*record.input_ids.tolist(), 9], "example_id": record.id} for record in store.records]
    return [{**row, "labels": row["input_ids"], **changes} for row in rows]


def joined(store: SimpleNamespace, model: Path, output: Path, rows: Any, **join: Any) -> DistillationTrainer:
    options = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return DistillationTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=transformers.TrainingArguments(str(output), save_strategy="no", disable_tqdm=True, **options),
        train_dataset=rows,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        join=StoreJoin(store.store, view="fewshot", tokenizer=tokenizer, **join),
    )


@pytest.mark.parametrize("by", ["tokens", "example_id"])
def test_rows_of_ones_own_get_the_stores_labels_and_teacher(
    small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path, by: str
) -> None:
    made = joined(small_store, tiny_model, tmp_path, own_rows(small_store), by=by)
    batch = next(iter(made.get_train_dataloader()))
    gold = batch["input_ids"].flatten()[batch["teacher"].index_T + 1]
    assert torch.equal(gold, batch["teacher"].gold_T)
    at = (batch["labels"] != -100).flatten().nonzero()[:, 0]
    assert torch.equal(at, batch["teacher"].index_T + 1)
    records = {tuple(record.input_ids.tolist()): i for i, record in enumerate(small_store.records)}
    lengths = batch["attention_mask"].sum(1) - 1  # the line break
    found = [records[tuple(row[:n].tolist())] for row, n in zip(batch["input_ids"], lengths, strict=True)]
    rows = small_store.store.read(found, "fewshot")
    assert torch.equal(batch["teacher"].token_ids_TC, torch.from_numpy(rows.token_ids))
    made.train()
    assert made.state.log_history[-1]["train_loss"] > 0


def test_rows_in_one_row_find_their_examples(small_store: SimpleNamespace) -> None:
    rows = own_rows(small_store)[:6]
    packed = [
        {
            "input_ids": [token for row in part for token in row["input_ids"]],
            "seq_lengths": [len(row["input_ids"]) for row in part],
        }
        for part in (rows[:2], rows[2:6])
    ]
    flat = torch.tensor([[token for row in packed for token in row["input_ids"]]])
    join = StoreJoin(small_store.url, view="zeroshot", top_k=3)
    assert join.check(packed) == 6
    batch = join.attach(packed, {"input_ids": flat})
    rows_of_all = small_store.store.read(range(6), "zeroshot", 3)
    assert torch.equal(batch.teacher.token_ids_TC, torch.from_numpy(rows_of_all.token_ids))
    assert torch.equal(flat.flatten()[batch.teacher.index_T + 1], batch.teacher.gold_T)
    with pytest.raises(ConfigError, match="expected rows padded on the right"):
        join.attach(packed, {"input_ids": flat.flip(1)})


def test_other_tokens_are_refused_with_the_first_difference(
    small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path
) -> None:
    rows = own_rows(small_store)
    at = len(rows[5]["input_ids"]) - 4
    token = rows[5]["input_ids"][at]
    other = token + 1 if token < 90 else 2
    rows[5] = {**rows[5], "input_ids": [*rows[5]["input_ids"][:at], other, *rows[5]["input_ids"][at + 1 :]]}
    rows[5]["labels"] = rows[5]["input_ids"]
    difference_of = rf"token {at} differs first: the row has {other} \('w{other - 2}'\), the store {token} \('"
    name = small_store.records[5].id
    with pytest.raises(ConfigError, match=rf"row 5: no example .* the nearest is {name}: {difference_of}"):
        joined(small_store, tiny_model, tmp_path, rows)
    with pytest.raises(ConfigError, match=rf"row 5 \(example_id {name}\): {difference_of}"):
        joined(small_store, tiny_model, tmp_path, rows, by="example_id")
    cut = [{**row, "input_ids": row["input_ids"][:3]} for row in own_rows(small_store)]
    with pytest.raises(ConfigError, match=r"the row has ended \(3 tokens\)"):
        StoreJoin(small_store.store, view="fewshot").check(cut)
    long = [{**row, "input_ids": row["input_ids"] + [3] * 9} for row in own_rows(small_store)]
    with pytest.raises(ConfigError, match=r"the store ended \(\d+ tokens\)"):
        StoreJoin(small_store.store, view="fewshot", by="example_id").check(long)


def test_what_cannot_be_joined_is_one_line(small_store: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="by: expected tokens or example_id, got 'content'"):
        StoreJoin(small_store.store, view="fewshot", by="content")  # type: ignore[arg-type]
    by_name = StoreJoin(small_store.store, view="fewshot", by="example_id")
    with pytest.raises(ConfigError, match="has no example 'nobody'"):
        by_name.check([{"input_ids": [1, 2], "example_id": "nobody"}])
    with pytest.raises(ConfigError, match="expected a column example_id, got input_ids"):
        by_name.check([{"input_ids": [1, 2]}])


def test_a_trainer_without_a_teacher_is_refused(small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path) -> None:
    made = trainer(small_store.url, str(tiny_model), tmp_path, 4)
    made.train_dataset = TeacherDataset(small_store.url, view=None)
    with pytest.raises(ConfigError, match="train_dataset: its batches have no teacher rows"):
        made.train()
    for told, message in (
        (DistillationConfig(strategy="entropy"), r"distillation\.strategy: expected fixed in a Trainer, got entropy"),
        (DistillationConfig(gate="fewshot_gain"), r"distillation\.gate: expected none or teacher_correct in a Trainer"),
    ):
        with pytest.raises(ConfigError, match=message):
            DistillationTrainer(distillation=told)


def test_evaluation_is_the_trainers_own(small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path) -> None:
    made = trainer(small_store.url, str(tiny_model), tmp_path, 4)
    collate, held_out = DistillationCollator(pad_id=0), TeacherDataset(small_store.url, view=None)
    made.eval_dataset = held_out
    loss = made.evaluate()["eval_loss"]
    with torch.no_grad():
        batches = [collate([held_out[i] for i in range(start, start + 8)]) for start in range(0, 24, 8)]
        own = [float(made.model(**b.inputs, labels=b.labels).loss) for b in batches]
    assert loss == pytest.approx(sum(own) / 3, rel=1e-5)
