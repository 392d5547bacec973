"""`training.loss_weight`: what counts the same in a step, each token or each conversation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from logitbank.configs import Config
from logitbank.storage import ExampleRecord
from logitbank.student_train.batch import MicroBatches
from logitbank.student_train.order import conversation_tokens, example_order
from logitbank.student_train.split import BatchPlan
from logitbank.student_train.train_command import main
from tests import processes

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def parts_store(make_store: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """24 examples, the first 12 of them parts of four conversations."""

    def in_parts(record: ExampleRecord, i: int) -> str:
        return f"{record.task}/chat/{i % 4}#{i}" if i < 12 else record.example_id

    return make_store(top_k=16, max_answer=20, name_of=in_parts)


def reference(
    model: Any, store: Any, table: str, examples: list[int], view: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(CE, KD of each task) of a step, one token at a time in float64.

    Means of each conversation, weighed by the share of its answer tokens that is in the step.
    """
    rows_of = getattr(store, table)
    names = [name.rsplit("#", 1)[0] for name in rows_of.example_id]
    whole: dict[str, int] = {}
    for i, name in enumerate(names):
        whole[name] = whole.get(name, 0) + int(rows_of.answer_length[i])
    ce, kd, shares = torch.zeros((), dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 0.0
    for i in examples:
        sequence = rows_of.sequence(i)
        rows = store.read([i], view) if view is not None else None
        shares += sequence.answer_length / whole[names[i]]
        for j, position in enumerate(sequence.answer_positions.tolist()):
            token = int(sequence.ids[position])
            logits = model(torch.from_numpy(sequence.ids[None, :position]).long()).logits[0, -1]
            ce = ce + (logits.logsumexp(-1) - logits[token]) / whole[names[i]]
            if rows is not None:
                ours, theirs = logits[torch.from_numpy(rows.token_ids[j]).long()], torch.from_numpy(rows.logits[j])
                of_task = torch.nn.functional.one_hot(torch.tensor(int(rows_of.task[i])), 2).double()
                kd = kd + (ours - theirs).square().mean() / whole[names[i]] * of_task
    return ce / shares, kd / shares


def in_float64(model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()


def flat_gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def logged(output: Path, metric: str, task: str = "all") -> list[float]:
    files = sorted((output / "results" / "training_log").glob("*"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    return [row["value"] for row in rows if (row["metric"], row["task"]) == (metric, task)]


def test_every_conversation_counts_the_same_however_the_step_is_split(
    parts_store: SimpleNamespace, tiny_model: Path, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    def arguments(name: str, micro: int) -> list[str]:
        return [
            *["--store", parts_store.url, "--view", "fewshot", "--output", str(tmp_path / name)],
            *[f"model.name={tiny_model}", "tasks=[nli,pos]", "training.precision=fp32", "training.use_lora=false"],
            *["training.num_workers=0", "training.max_steps=2", "training.global_batch_size=8"],
            *[f"training.micro_batch_size={micro}", "training.logging_steps=1", "training.warmup_steps=0"],
            "training.loss_weight=conversation",
        ]

    main(arguments("one", 8))
    main(arguments("accumulated", 2))
    done = processes.run_ranks(2, "train-student", *arguments("ranks", 2))
    assert [rank.returncode for rank in done] == [0, 0], done[0].stderr[-3000:]
    first = example_order(parts_store.store, configure()).step(0, 8)
    parts = [parts_store.store.examples.example_id[i].rsplit("#", 1)[0] for i in first]
    assert len(set(parts)) < len(parts), "two parts of one conversation in the step"
    ce, kd = reference(in_float64(tiny_model), parts_store.store, "examples", first, "fewshot")
    one = tmp_path / "one"
    assert logged(one, "loss")[0] == pytest.approx((ce + 0.5 * kd.sum()).item(), rel=1e-5)
    assert logged(one, "loss")[0] != pytest.approx(logged(one, "ce")[0] + 0.5 * logged(one, "kd")[0], rel=1e-3)
    for name in ("accumulated", "ranks"):
        assert logged(tmp_path / name, "loss") == pytest.approx(logged(one, "loss"), rel=1e-5), name
        assert logged(tmp_path / name, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-4), name


def test_a_task_s_limit_counts_conversations(parts_store: SimpleNamespace, configure: Callable[..., Config]) -> None:
    """Parts of those that are within it all belong to the run."""
    names = parts_store.store.examples.example_id
    order = example_order(parts_store.store, configure("data.max_train_per_task=3"))
    for task, examples in zip(order.tasks, order.examples, strict=True):
        kept = {names[i].rsplit("#", 1)[0] for i in examples}
        assert len(kept) == 3
        assert len(examples) > 3
        assert sorted(examples) == [i for i, name in enumerate(names) if name.rsplit("#", 1)[0] in kept], task


def test_weights_are_one_over_the_conversation_and_one_on_average(
    parts_store: SimpleNamespace, configure: Callable[..., Config]
) -> None:
    order = example_order(parts_store.store, configure())
    tokens = conversation_tokens(parts_store.store.examples)
    for step in range(3):
        seen: list[tuple[float, int]] = []
        for rank in range(2):
            plan = BatchPlan(8, 2, 2, rank)
            data = MicroBatches(
                lambda: parts_store.store, order, plan, view=None, top_k=None, loss_weight="conversation"
            )
            for a in range(plan.accumulation_steps):
                batch = data[step, a]
                assert batch.weight_T is not None
                seen += zip(batch.weight_T.tolist(), batch.gold_T.tolist(), strict=True)
        weights = np.array([weight for weight, _ in seen])
        assert len(seen) == batch.step_tokens
        assert weights.mean() == pytest.approx(1.0, rel=1e-6)
        raw = [1 / tokens[i] for i in order.step(step, 8) for _ in range(parts_store.store.examples.answer_length[i])]
        assert sorted(weights) == pytest.approx(sorted(np.array(raw) / np.mean(raw)), rel=1e-6)


def test_strategies_compare_weighted_losses_and_gradients(
    parts_store: SimpleNamespace, tiny_model: Path, tmp_path: Path, configure: Callable[..., Config]
) -> None:
    """Ratio, cosine and the learned λ, each against its formula in float64."""
    store = parts_store.store

    def run(name: str, *changes: str) -> Path:
        output = tmp_path / name
        settings = ["training.max_steps=2", "training.global_batch_size=8", "training.micro_batch_size=2"]
        settings += ["training.num_workers=0", "training.logging_steps=1", "training.use_lora=false"]
        settings += [f"model.name={tiny_model}", "tasks=[nli,pos]", "training.loss_weight=conversation", *changes]
        main(["--store", parts_store.url, "--view", "fewshot", "--output", str(output), *settings])
        return output

    model = in_float64(tiny_model)
    first = example_order(store, configure()).step(0, 8)
    ce, kd = reference(model, store, "examples", first, "fewshot")
    ratio = run("ratio", "distillation.strategy=loss_ratio")
    assert logged(ratio, "lambda")[0] == pytest.approx(0.5 * (ce / kd.sum()).item(), rel=1e-5)
    conflict = run("conflict", "distillation.strategy=gradient_conflict")
    of_ce, of_kd = flat_gradient(model, ce), flat_gradient(model, kd.sum())
    assert logged(conflict, "cosine")[0] == pytest.approx(torch.cosine_similarity(of_ce, of_kd, dim=0).item(), rel=1e-4)
    learned = run(
        "meta",
        *["distillation.strategy=meta", "distillation.meta_batch_size=8", "distillation.meta_learning_rate=0.1"],
        "training.micro_batch_size=4",
    )
    held_out, _ = reference(model, store, "validation", list(range(8)), None)
    of_val = flat_gradient(model, held_out)
    for number, task in enumerate(("nli", "pos")):
        moved = torch.sigmoid(0.1 * of_val @ flat_gradient(model, kd[number])).item()
        assert abs(moved - 0.5) > 1e-3, "a λ that moved"
        assert logged(learned, "lambda", task)[1] - 0.5 == pytest.approx(moved - 0.5, rel=1e-3)


def test_answers_to_one_prompt_are_one_conversation_where_a_model_wrote_them(
    make_store: Callable[..., SimpleNamespace], configure: Callable[..., Config]
) -> None:
    """`x~1`, `x~2`, `x#3~1` are of `x` there; in any other store a name may end so by itself."""

    def name_of(record: ExampleRecord, i: int) -> str:
        return f"{record.task}/{i // 8}{('', '#1', '#2', '#3')[i % 4]}~{i % 8 // 2 + 1}"

    for identity, kept in (({"answers": {"model": None}}, 8), ({}, 2)):
        made = make_store(count=16, top_k=4, identity=identity, name_of=name_of)
        order = example_order(made.store, configure("data.max_train_per_task=2"))
        assert [len(examples) for examples in order.examples] == [kept, kept]
    tokens = conversation_tokens(made.store.examples, sampled=True)
    length = np.asarray(made.store.examples.answer_length)
    assert tokens[0] == length[[0, 2, 4, 6]].sum()
