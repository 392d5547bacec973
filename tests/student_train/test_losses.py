"""The loss against live teachers and dense formulas, and what is never materialised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import DistillationConfig
from logitbank.registry import LOSSES
from logitbank.student_train.batch import Batch, MicroBatches
from logitbank.student_train.losses.answer_logits import answer_logits, read_logits
from logitbank.student_train.losses.base import Loss, StudentLogits, TeacherLogits
from logitbank.student_train.losses.forward_kl import ForwardKl
from logitbank.student_train.losses.mse import Mse
from logitbank.student_train.losses.step_loss import StepLoss, step_loss
from logitbank.student_train.module import StudentModule, run_student
from logitbank.student_train.order import example_order
from logitbank.student_train.records import Run
from logitbank.student_train.split import BatchPlan
from logitbank.student_train.train import train
from tests.tensors import LargestTensor

pytestmark = pytest.mark.numeric

LAMBDA = 0.7
MSE, FORWARD_KL = Mse(DistillationConfig(), 104), ForwardKl(DistillationConfig(loss="forward_kl"), 104)


def micro_batch(
    store: SimpleNamespace, config: Config, *, size: int, packed_tokens: int | None = None
) -> tuple[Batch, list[int]]:
    """The first global batch of a run as one micro-batch, and its examples in row order."""
    order = example_order(store.store, config)
    plan = BatchPlan(size, size, 1, 0, packed_tokens)
    data = MicroBatches(lambda: store.store, order, plan, view="fewshot", top_k=None)
    batch = data[0, 0]
    by_sequence = {tuple(r.sequence.ids[:-1].tolist()): i for i, r in enumerate(store.records)}
    sequences = batch.input_ids_BL[0].split(batch.lengths) if batch.packed else batch.input_ids_BL
    rows = [by_sequence[tuple(ids[:length].tolist())] for ids, length in zip(sequences, batch.lengths, strict=True)]
    assert sorted(rows) == sorted(order.step(0, size))
    return batch, rows


def student_loss(student: StudentModule, batch: Batch, loss: Loss = MSE) -> StepLoss:
    logits = run_student(student, batch, with_rest=loss.reads_rest)
    weights = torch.full(batch.gold_T.shape, LAMBDA)
    return step_loss(logits, batch.teacher, kd_term=loss, lambda_T=weights, step_tokens=batch.step_tokens)


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def perturbed(path: Path) -> Any:
    """A student that is not its own teacher."""
    model = load(path)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def live_loss(student: Any, teacher: Any, store: SimpleNamespace, rows: list[int], k: int) -> torch.Tensor:
    """The same step with the teacher run here and now; every position found by feeding token after token."""
    total, count = torch.zeros(()), 0
    for i in rows:
        own, taught = store.records[i].sequence, store.sequences["fewshot"][i]
        for position, place in zip(own.answer_positions.tolist(), taught.answer_positions.tolist(), strict=True):
            ours = student(torch.from_numpy(own.ids[None, :position]).long()).logits[0, -1]
            with torch.no_grad():
                theirs = teacher(torch.from_numpy(taught.ids[None, :place]).long()).logits[0, -1]
            top = theirs[: 104 if k == 104 else 97].topk(k).indices  # padded rows never enter a top K
            token = int(own.ids[position])
            assert token == taught.ids[place]
            total = total - ours.log_softmax(-1)[token] + LAMBDA * ((ours[top] - theirs[top]) ** 2).mean()
            count += 1
    return total / count


@pytest.mark.parametrize(
    ("k", "turns", "packed_tokens"),
    [(104, 1, None), (64, 1, None), (64, 3, None), (64, 3, 300)],
    ids=["whole-vocabulary", "top-64", "three-turns", "three-turns-packed"],
)
def test_loss_and_gradients_equal_those_of_a_live_teacher(
    make_store: Callable[..., SimpleNamespace],
    configure: Callable[..., Config],
    tiny_model: Path,
    k: int,
    turns: int,
    packed_tokens: int | None,
) -> None:
    store = make_store(top_k=k, turns=turns, shard_tokens=64)
    assert {len(record.sequence.spans) for record in store.records} == {turns}
    batch, rows = micro_batch(store, configure(), size=6, packed_tokens=packed_tokens)
    assert len(batch.input_ids_BL) == (6 if packed_tokens is None else 1)
    cached = StudentModule(perturbed(tiny_model), chunk_tokens=5, packing=batch.packed)
    loss = student_loss(cached, batch).total
    loss.backward()
    live = perturbed(tiny_model)
    reference = live_loss(live, load(tiny_model).eval(), store, rows, k)
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for (name, ours), theirs in zip(cached.model.named_parameters(), live.parameters(), strict=True):
        difference = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 1e-5, (name, difference)


@pytest.mark.parametrize("loss", [MSE, FORWARD_KL], ids=["mse", "forward_kl"])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100])
def test_chunks_change_nothing(
    small_store: SimpleNamespace, configure: Callable[..., Config], tiny_model: Path, chunk_tokens: int, loss: Loss
) -> None:
    batch, _ = micro_batch(small_store, configure(), size=6)
    gradients = []
    for tokens in (chunk_tokens, 10_000):
        student = StudentModule(perturbed(tiny_model), chunk_tokens=tokens)
        student_loss(student, batch, loss).total.backward()
        gradients.append([p.grad for p in student.parameters()])
    for chunked, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [MSE, FORWARD_KL], ids=["mse", "forward_kl"])
def test_logits_exist_at_answer_positions_only_and_one_chunk_at_a_time(
    small_store: SimpleNamespace, configure: Callable[..., Config], tiny_model: Path, kind: Loss
) -> None:
    batch, _ = micro_batch(small_store, configure(), size=8)
    student = StudentModule(perturbed(tiny_model), chunk_tokens=4)
    kept = []
    with (
        LargestTensor(104) as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t),
    ):
        loss = student_loss(student, batch, kind)
        kept_forward = list(kept)
        loss.total.backward()
    assert len(batch.gold_T) > 3 * 4
    # the transposed weight of the tied head, (32, 104), is the only wider thing with that last axis
    assert largest.rows == student.model.config.hidden_size
    assert largest.numel < batch.input_ids_BL.numel() * 104
    logits_kept = sum(shape[0] for shape in kept_forward if len(shape) == 2 and shape[1] == 104 and shape[0] != 32)
    assert logits_kept <= 4


@pytest.mark.parametrize("with_rest", [False, True])
def test_read_logits_against_a_dense_float64_reference(with_rest: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = (10 * torch.randn(5, 40, generator=generator, dtype=torch.float64)).requires_grad_()
    top_ids_TK = torch.stack([torch.randperm(40, generator=generator)[:6] for _ in range(5)])
    gold_T = top_ids_TK[:, 0].clone()  # the gold token is usually one of the top K: both gradients must add up
    gold_T[3:] = torch.tensor([i for i in range(40) if i not in top_ids_TK[3:]])[:2]  # or none of them

    def read(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = read_logits(logits, gold_T, top_ids_TK, with_rest=with_rest)
        return found.logsumexp_T, found.gold_T, found.top_TK, *([found.rest_T] if with_rest else [])

    assert torch.autograd.gradcheck(read, (logits_TV,))
    logsumexp_T, gold_logit_T, top_TK, *rest = read(logits_TV)
    torch.testing.assert_close(logsumexp_T, logits_TV.exp().sum(-1).log())
    torch.testing.assert_close(gold_logit_T, torch.stack([row[i] for row, i in zip(logits_TV, gold_T, strict=True)]))
    torch.testing.assert_close(top_TK, torch.stack([row[i] for row, i in zip(logits_TV, top_ids_TK, strict=True)]))
    if with_rest:
        others = [[i for i in range(40) if i not in ids] for ids in top_ids_TK.tolist()]
        expected = torch.stack([row[i].exp().sum().log() for row, i in zip(logits_TV, others, strict=True)])
        torch.testing.assert_close(rest[0], expected)


def test_without_other_rows_the_rest_is_impossible_and_has_no_gradient() -> None:
    logits_TV = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = read_logits(logits_TV, torch.tensor([0, 1]), torch.arange(5).expand(2, 5), with_rest=True)
    assert got.rest_T.tolist() == [-torch.inf] * 2
    torch.testing.assert_close(got.logsumexp_T, logits_TV.logsumexp(1))
    (gradient,) = torch.autograd.grad(got.logsumexp_T.sum(), logits_TV)
    torch.testing.assert_close(gradient, logits_TV.softmax(1))


@pytest.mark.parametrize("with_rest", [False, True])
def test_bfloat16_logits_are_reduced_in_float32(with_rest: bool) -> None:
    logits_TV = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    ids = torch.zeros(1, dtype=torch.int64)
    got = read_logits(logits_TV, ids, ids[:, None], with_rest=with_rest)
    assert got.logsumexp_T.dtype == got.top_TK.dtype == torch.float32
    torch.testing.assert_close(got.logsumexp_T, torch.tensor([1 + torch.log(torch.tensor(4096.0))]))


def test_argmax_is_that_of_the_whole_vocabulary() -> None:
    head = torch.nn.Linear(3, 50)
    hidden_TD = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    gold_T, top_ids_TK = torch.arange(9), torch.zeros(9, 0, dtype=torch.int64)
    logits = answer_logits(hidden_TD, head, gold_T, top_ids_TK, chunk_tokens=4, with_argmax=True)
    assert isinstance(logits, StudentLogits)
    assert logits.argmax_T.tolist() == head(hidden_TD).argmax(-1).tolist()


class _Absolute(Loss):
    """A loss from outside the package."""

    def __call__(self, student: StudentLogits, teacher: TeacherLogits) -> torch.Tensor:
        return (student.top_TK - teacher.logits_TK).abs().mean(dim=1)


def test_a_loss_from_outside_the_package_runs_by_its_name(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    LOSSES.register("absolute", _Absolute)
    try:
        config = configure("distillation.loss=absolute", "training.max_steps=1")
        train(Run(config, small_store.url, "fewshot", tmp_path / "run", tmp_path / "results"))
        with pytest.raises(ConfigError, match="absolute does not use it"):
            configure("distillation.loss=absolute", "distillation.temperature=2")
    finally:
        LOSSES.unregister("absolute")
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_tokens_that_the_teacher_was_not_asked_for_carry_no_teacher_term(
    make_store: Callable[..., SimpleNamespace],
    configure: Callable[..., Config],
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The end of the turn (token 1), which another teacher's template ends otherwise: no loss, no gradient, no mean."""
    caplog.set_level("INFO")
    plain, other = make_store(top_k=16), make_store(top_k=16, identity={"untaught": [1]})
    config = configure("training.max_steps=1", "training.learning_rate=0")
    terms = []
    for store in (plain, other):
        batch, _ = micro_batch(store, config, size=8)
        loss = student_loss(StudentModule(perturbed(tiny_model), chunk_tokens=100), batch, FORWARD_KL)
        terms.append((batch, loss.kd_T.detach()))
    (batch, whole_T), (_, some_T) = terms
    last_T = batch.gold_T == 1
    assert 0 < last_T.sum() < len(last_T)
    assert torch.equal(some_T, torch.where(last_T, 0.0, whole_T))
    assert (whole_T[last_T] > 0).all()

    train(Run(config, other.url, "fewshot", tmp_path / "run", tmp_path / "results"))
    assert caplog.text.count("no teacher term at answer token 1") == 1
    (log,) = (tmp_path / "results" / "training_log").glob("*.parquet")
    rows = {row["metric"]: row["value"] for row in pq.read_table(log).to_pylist() if row["task"] == "all"}
    assert batch.teacher is not None
    assert rows["teacher_ce"] == pytest.approx(batch.teacher.cross_entropy_T[~last_T].mean().item(), rel=1e-5)
    model = StudentModule(load(tiny_model), chunk_tokens=100)
    own = student_loss(model, batch)
    assert rows["ce"] == pytest.approx(own.ce_T.mean().item(), rel=1e-5)
    assert rows["student_ce"] == pytest.approx(own.ce_T[~last_T].mean().item(), rel=1e-5)
    assert rows["kd"] == pytest.approx((own.kd_T * ~last_T).mean().item(), rel=1e-4)
