"""Every λ strategy against a computation by hand, and runnable by configuration alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from accelerate import Accelerator

from logitbank.configs import Config, ConfigError, load_config
from logitbank.configs.schema import DistillationConfig, TrainingConfig
from logitbank.registry import STRATEGIES
from logitbank.student_train.batch import Batch, MicroBatches
from logitbank.student_train.losses.base import TeacherLogits
from logitbank.student_train.losses.mse import Mse
from logitbank.student_train.losses.step_loss import StepLoss, step_loss
from logitbank.student_train.module import StudentModule, run_student
from logitbank.student_train.order import example_order
from logitbank.student_train.records import Run
from logitbank.student_train.split import BatchPlan
from logitbank.student_train.strategies.base import Backward, Setting, StepWork, Strategy
from logitbank.student_train.strategies.combined import TokenWeights
from logitbank.student_train.strategies.entropy import entropy_factor
from logitbank.student_train.strategies.gate import gate_factor
from logitbank.student_train.strategies.gradient_conflict import GradientConflict
from logitbank.student_train.strategies.gradients import cosine_between, named_subset
from logitbank.student_train.strategies.loss_ratio import LossRatio
from logitbank.student_train.strategies.meta import HeldOut, Meta
from logitbank.student_train.strategies.schedule import schedule_factor
from logitbank.student_train.train import train

pytestmark = pytest.mark.numeric

MSE = Mse(DistillationConfig(), 104)


def setting_of(
    distillation: DistillationConfig, tasks: tuple[str, ...] = ("nli", "pos"), student: Any = None, store: Any = None
) -> Setting:
    """Ten steps on the CPU, a vocabulary of 100, held-out examples of every task."""
    if store is None:
        held_out = SimpleNamespace(task=np.arange(len(tasks)), __len__=lambda: len(tasks))
        table = type(
            "Table", (), {"task": held_out.task, "input_length": held_out.task + 2, "__len__": lambda self: len(tasks)}
        )()
        store = SimpleNamespace(info=SimpleNamespace(vocab_size=100, tasks=tasks), validation=table)
    config = Config(distillation=distillation, training=TrainingConfig(max_steps=10), tasks=list(tasks))
    return Setting(config, tasks, store, Accelerator(cpu=True), student or torch.nn.Linear(1, 1))


def weights_of(distillation: DistillationConfig) -> TokenWeights:
    return TokenWeights(setting_of(distillation))


def work_of(setting: SimpleNamespace, step: int = 0) -> StepWork:
    """A step over a setting's micro-batches; the ordinary backward pass is not for these tests."""

    def backward(lambdas: Any) -> list[StepLoss]:
        losses = list(map(setting.forward, setting.batches, lambdas))
        torch.stack([loss.total for loss in losses]).sum().backward()
        return [loss.detached() for loss in losses]

    return StepWork(step, setting.batches, setting.forward, setting.forward, backward)


def fake_batch(tasks: list[int], **teacher: Any) -> Batch:
    count = len(tasks)
    values = {"logits_TK": torch.zeros(count, 2), "logsumexp_T": torch.ones(count), "entropy_T": torch.zeros(count)}
    values |= {"gold_logit_T": torch.zeros(count), "gold_rank_T": torch.zeros(count, dtype=torch.int64)}
    values |= {name: torch.tensor(value) for name, value in teacher.items()}
    one = torch.zeros(count, dtype=torch.int64)
    rows = TeacherLogits(**values)
    return Batch(one[None], one, one, one[:, None], torch.tensor(tasks), rows, count, (count,))


def test_fixed_and_per_task() -> None:
    batch = fake_batch([0, 1, 1])
    assert weights_of(DistillationConfig(lambda_distill=0.3)).token_weights(batch, 0).tolist() == pytest.approx(
        [0.3] * 3
    )
    prior = weights_of(DistillationConfig(strategy="per_task"))
    assert prior.token_weights(batch, 0).tolist() == pytest.approx([0.5, 0.05, 0.05])


def test_entropy_is_one_minus_entropy_over_log_v() -> None:
    entropy_T = torch.tensor([0.0, math.log(10), math.log(100), 9.0])
    assert entropy_factor(entropy_T, 100).tolist() == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-6)
    batch = fake_batch([0, 1], entropy_T=[math.log(10), 0.0])
    both = weights_of(DistillationConfig(strategy="per_task*entropy"))
    assert both.token_weights(batch, 0).tolist() == pytest.approx([0.5 * 0.5, 0.05])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("warmup_then_sft", [1, 1, 0, 0]),
        ("linear", [1, 0.5, 0, 0]),
        ("cosine", [1, 0.5, 0, 0]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    assert [schedule_factor(schedule, step, 4) for step in (0, 2, 4, 9)] == pytest.approx(expected)
    assert schedule_factor("cosine", 1, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_gates() -> None:
    teacher = fake_batch(
        [0, 0, 0], gold_rank_T=[0, 3, 0], logsumexp_T=[2.0, 2.0, 2.0], gold_logit_T=[1.0, 1.5, 2.0 + math.log(0.5)]
    ).teacher
    assert teacher is not None
    assert gate_factor("teacher_correct", teacher).tolist() == [1.0, 0.0, 1.0]
    with_zeroshot = TeacherLogits(
        **{**vars(teacher), "zeroshot_cross_entropy_T": torch.tensor([0.5, 0.5, -math.log(0.125)])}
    )
    # p: e⁻¹ against e⁻⁰·⁵ (no gain), e⁻⁰·⁵ against the same (none), 1/2 against 1/8 (three quarters)
    assert gate_factor("fewshot_gain", with_zeroshot).tolist() == pytest.approx([0.0, 0.0, 0.75], abs=1e-6)


def test_loss_ratio_follows_moving_averages() -> None:
    setting = setting_of(DistillationConfig(strategy="loss_ratio", ema_decay=0.9))
    ratio = LossRatio(setting)
    ratio.observe(2.0, 8.0)
    assert ratio.factor(fake_batch([0])) == pytest.approx(2 / 8)
    ratio.observe(1.0, 4.0)
    assert ratio.factor(fake_batch([0])) == pytest.approx((0.9 * 2 + 0.1) / (0.9 * 8 + 0.4))
    again = LossRatio(setting)
    again.load_state_dict(ratio.state_dict())
    assert again.factor(fake_batch([0])) == ratio.factor(fake_batch([0]))


def test_loss_ratio_starts_with_its_first_steps_own_losses(setting: Callable[[int], SimpleNamespace]) -> None:
    world = setting(4)
    distillation = DistillationConfig(strategy="loss_ratio", lambda_distill=0.5)
    weights = TokenWeights(setting_of(distillation, student=world.student))
    losses = [world.forward(batch, lambda_T) for batch, lambda_T in zip(world.batches, world.lambdas, strict=True)]
    ce, kd = (sum(getattr(loss, name).sum().item() for loss in losses) for name in ("ce_T", "kd_T"))
    for lambda_T in weights.prepare(work_of(world)):
        assert lambda_T.tolist() == pytest.approx([0.5 * ce / kd] * len(lambda_T), rel=1e-5)
    weights.learn(work_of(world), Backward([StepLoss(*(2 * tensor.detach() for tensor in loss)) for loss in losses]))
    for lambda_T in weights.prepare(work_of(world, 1)):  # both terms twice as large: the same ratio
        assert lambda_T.tolist() == pytest.approx([0.5 * ce / kd] * len(lambda_T), rel=1e-5)


def test_meta_moves_the_logit_of_lambda() -> None:
    meta = Meta(setting_of(DistillationConfig(strategy="meta", lambda_distill=0.3, meta_learning_rate=0.1)))
    assert meta.base().tolist() == pytest.approx([0.3, 0.3])
    meta.move(torch.tensor([2.0, -4.0]))
    logit = math.log(0.3 / 0.7)
    expected = [1 / (1 + math.exp(-(logit + 0.2))), 1 / (1 + math.exp(-(logit - 0.4)))]
    assert meta.base().tolist() == pytest.approx(expected)
    warm = Meta(setting_of(DistillationConfig(strategy="meta", meta_init="per_task")))
    assert warm.base().tolist() == pytest.approx([0.5, 0.05])
    with pytest.raises(ConfigError, match="lambda_distill"):
        load_config([], ["model.name=m", "distillation.strategy=meta", "distillation.lambda_distill=1"])


@pytest.fixture
def setting(
    small_store: SimpleNamespace, configure: Callable[..., Config], tiny_model: Path
) -> Callable[[int], SimpleNamespace]:
    """One global batch of 8 as micro-batches of a size, a student, and λ = 0.4 on every token."""

    def make(micro: int) -> SimpleNamespace:
        config = configure()
        order = example_order(small_store.store, config)
        plan = BatchPlan(8, micro, 1, 0)
        data = MicroBatches(lambda: small_store.store, order, plan, view="fewshot", top_k=None)
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn(p.shape, generator=generator)
        student = StudentModule(model, chunk_tokens=1000)
        batches = [data[0, i] for i in range(plan.accumulation_steps)]

        def forward(batch: Batch, lambda_T: torch.Tensor) -> StepLoss:
            logits = run_student(student, batch)
            return step_loss(logits, batch.teacher, kd_term=MSE, lambda_T=lambda_T, step_tokens=batch.step_tokens)

        lambdas = [torch.full((len(b.gold_T),), 0.4) for b in batches]
        return SimpleNamespace(student=student, batches=batches, forward=forward, lambdas=lambdas)

    return make


def flat_gradient(term: torch.Tensor, student: StudentModule) -> torch.Tensor:
    """A gradient the plain way: `backward` on a model whose gradients were empty."""
    student.zero_grad()
    term.backward(retain_graph=True)
    flat = torch.cat([p.grad.flatten() for p in student.parameters()])  # type: ignore[union-attr]
    student.zero_grad()
    return flat


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["agree", "conflict"])
def test_gradient_conflict_by_hand(setting: Callable[[int], SimpleNamespace], sign: float) -> None:
    whole, split = setting(8), setting(2)
    batch = whole.batches[0]
    loss = whole.forward(batch, whole.lambdas[0])
    of_ce = flat_gradient(loss.ce_T.sum() / batch.step_tokens, whole.student)
    of_kd = flat_gradient(sign * 0.4 * loss.kd_T.sum() / batch.step_tokens, whole.student)
    cosine = float(of_ce @ of_kd / (of_ce.norm() * of_kd.norm()))
    if cosine * sign < 0:
        pytest.fail("the setting was chosen so that CE and KD agree")
    lambdas = [sign * lambda_T for lambda_T in split.lambdas]
    conflict = GradientConflict(setting_of(DistillationConfig(strategy="gradient_conflict"), student=split.student))
    losses, got = conflict.backward_apart(work_of(split), lambdas)
    assert got == pytest.approx(cosine, abs=1e-5)
    result = torch.cat([p.grad.flatten() for p in split.student.parameters()])
    expected = of_ce + max(0.0, cosine) * of_kd
    assert float((result - expected).norm() / expected.norm()) < 1e-5
    assert sum(len(one.ce_T) for one in losses) == batch.step_tokens


def test_gradient_conflict_of_a_named_subset(setting: Callable[[int], SimpleNamespace]) -> None:
    whole, split = setting(8), setting(4)
    pattern = r"layers\.1\..*down_proj"
    chosen = named_subset(whole.student, pattern)
    assert len(chosen) == 1
    batch = whole.batches[0]
    loss = whole.forward(batch, whole.lambdas[0])
    of_ce, of_kd = (
        torch.autograd.grad(term.sum(), chosen, retain_graph=True)[0].flatten() for term in (loss.ce_T, loss.kd_T)
    )
    expected = torch.nn.functional.cosine_similarity(of_ce, of_kd, dim=0).item()
    distillation = DistillationConfig(strategy="gradient_conflict", conflict_parameters=pattern)
    conflict = GradientConflict(setting_of(distillation, student=split.student))
    work = work_of(split)
    assert conflict.cosine_of(named_subset(split.student, pattern), work, split.lambdas) == pytest.approx(
        expected, abs=1e-5
    )
    assert all(p.grad is None for p in split.student.parameters())
    done = conflict.backward(work, split.lambdas)
    assert done.metrics["cosine"] == pytest.approx(expected, abs=1e-5)
    assert done.scale == max(0.0, done.metrics["cosine"])
    result = torch.cat([p.grad.flatten() for p in split.student.parameters()])
    whole_ce = flat_gradient(loss.ce_T.sum() / batch.step_tokens, whole.student)
    whole_kd = flat_gradient(0.4 * loss.kd_T.sum() / batch.step_tokens, whole.student)
    assert float((result - whole_ce - done.scale * whole_kd).norm() / result.norm()) < 1e-5
    with pytest.raises(ConfigError, match="matches no trainable parameter"):
        named_subset(whole.student, "no_such_layer")


def expected_alignment(
    whole: SimpleNamespace, held_out: Batch, factors: Callable[[Batch], torch.Tensor]
) -> list[float]:
    """⟨∇val, ∇KD_i⟩ for two tasks, each KD term weighted, with plain backward passes."""
    logits = run_student(whole.student, held_out)
    of_val = flat_gradient((logits.logsumexp_T - logits.gold_T).sum() / held_out.step_tokens, whole.student)
    (batch,) = whole.batches
    weighted_T = factors(batch) * whole.forward(batch, whole.lambdas[0]).kd_T
    return [
        float(of_val @ flat_gradient(weighted_T[batch.task_T == task].sum() / batch.step_tokens, whole.student))
        for task in range(2)
    ]


def test_meta_alignment_by_hand(setting: Callable[[int], SimpleNamespace]) -> None:
    whole, split = setting(8), setting(2)
    held_out = setting(4).batches[1]

    def even(batch: Batch) -> torch.Tensor:
        return torch.ones(len(batch.gold_T))

    meta = Meta(setting_of(DistillationConfig(strategy="meta"), student=split.student))
    got = meta.alignment(work_of(split), even, [held_out])
    assert got.tolist() == pytest.approx(expected_alignment(whole, held_out, even), rel=1e-4)
    assert all(p.grad is None for p in split.student.parameters())


def test_meta_follows_the_gradient_that_its_lambda_multiplies(
    setting: Callable[[int], SimpleNamespace], small_store: SimpleNamespace
) -> None:
    """Gate, schedule, entropy, loss ratio and gradient conflict all weigh KD: so does what moves λ."""
    whole, split = setting(8), setting(2)
    for one in (*whole.batches, *split.batches):  # the teacher is right about every other token
        one.teacher = dataclasses.replace(one.teacher, gold_rank_T=(one.gold_T + 1) % 2)
    distillation = DistillationConfig(
        strategy="meta*entropy*loss_ratio*gradient_conflict",
        gate="teacher_correct",
        schedule="linear",
        lambda_distill=0.4,
        meta_learning_rate=1.0,
        meta_batch_size=4,
    )
    made = setting_of(distillation, student=split.student, store=small_store.store)
    weights, work = TokenWeights(made), work_of(split, step=5)
    lambdas = weights.prepare(work)
    (batch,) = whole.batches
    loss = whole.forward(batch, whole.lambdas[0])
    ratio = (loss.ce_T.sum() / loss.kd_T.sum()).item()

    def factors(batch: Batch) -> torch.Tensor:
        assert batch.teacher is not None
        correct_T = (batch.teacher.gold_rank_T == 0).float()
        return correct_T * 0.5 * ratio * (1 - batch.teacher.entropy_T / math.log(104))

    for one, lambda_T in zip(split.batches, lambdas, strict=True):
        torch.testing.assert_close(lambda_T, 0.4 * factors(one), rtol=1e-5, atol=1e-7)
    weights.learn(work, done := weights.backward(work, lambdas))
    # meta's first micro-batches of step 5, and the cosine by which all λ of the step were scaled
    (held_out,) = HeldOut(made.config, made.store).batches(5, torch.device("cpu"))
    of_ce = flat_gradient(loss.ce_T.sum() / batch.step_tokens, whole.student)
    of_kd = flat_gradient((0.4 * factors(batch) * loss.kd_T).sum() / batch.step_tokens, whole.student)
    cosine = float(of_ce @ of_kd / (of_ce.norm() * of_kd.norm()))
    assert done.scale == pytest.approx(cosine, rel=1e-4)
    assert done.scale > 0, "the setting was chosen so that CE and KD agree"
    aligned = expected_alignment(whole, held_out, factors)
    expected = torch.tensor([math.log(0.4 / 0.6) + cosine * value for value in aligned]).sigmoid()
    assert weights.base().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert max(abs(value - 0.4) for value in weights.base().tolist()) > 1e-4


@pytest.mark.parametrize(
    "overrides",
    [
        ["distillation.strategy=per_task*entropy*gradient_conflict"],
        ["distillation.strategy=gradient_conflict", r"distillation.conflict_parameters='layers\.1'"],
        ["distillation.strategy=loss_ratio", "distillation.schedule=cosine"],
        ["distillation.strategy=meta", "distillation.meta_every=2", "distillation.meta_batch_size=4"],
        ["distillation.gate=teacher_correct", "distillation.loss=forward_kl", "distillation.temperature=2"],
        ["distillation.gate=fewshot_gain", "distillation.loss=jsd"],
        ["distillation.schedule=warmup_then_sft", "distillation.schedule_steps=2", "distillation.loss=reverse_kl"],
        ["distillation.normalize_logits=standardize", "training.use_lora=true"],
    ],
    ids=lambda overrides: overrides[0].partition(".")[2],
)
def test_every_strategy_runs_by_configuration_alone(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, overrides: list[str]
) -> None:
    results = tmp_path / "results"
    train(Run(configure(*overrides), small_store.url, "fewshot", tmp_path / "run", results))
    rows = [row for path in (results / "training_log").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    values = {(row["step"], row["task"], row["metric"]): row["value"] for row in rows}
    assert all(math.isfinite(value) for value in values.values())
    assert {step for step, _, _ in values} == {1, 2, 3, 4}
    assert {task for _, task, _ in values} == {"all", "nli", "pos"}
    for metric in ("tail_mass", "top1_agreement"):
        assert 0 <= values[1, "all", metric] <= 1
    assert ((1, "all", "cosine") in values) == any("conflict" in override for override in overrides)
    if "distillation.schedule=warmup_then_sft" in overrides:
        assert [values[step, "all", "lambda"] for step in (1, 2, 3, 4)] == pytest.approx([0.5, 0.5, 0, 0])
        assert values[4, "all", "loss"] == pytest.approx(values[4, "all", "ce"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("distillation.strategy=entropi", "did you mean entropy"),
        ("distillation.strategy=per_task*meta", "meta_init=per_task"),
        ("distillation.schedule=warmup_then_sft", "schedule_steps"),
        ("distillation.temperature=2", "mse does not use it; expected 1, got 2.0; losses that use it: forward_kl"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    configure: Callable[..., Config], override: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        configure(override)


def test_the_gain_gate_refuses_the_view_it_compares_with(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure("distillation.gate=fewshot_gain")
    with pytest.raises(ConfigError, match="expected a different --view"):
        train(Run(config, small_store.url, "zeroshot", tmp_path / "run", tmp_path / "results"))


def test_the_cosine_of_millions_of_numbers_is_that_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    left = [torch.randn(3_000_000, generator=generator) + 3, torch.randn(40, 50, generator=generator)]
    right = [tensor * 0.5 + torch.randn(tensor.shape, generator=generator) for tensor in left]
    wide = [torch.cat([tensor.double().flatten() for tensor in side]) for side in (left, right)]
    expected = torch.dot(*wide) / (wide[0].norm() * wide[1].norm())
    assert cosine_between(left, right) == pytest.approx(expected.item(), abs=1e-6)
    assert cosine_between(left, [torch.zeros_like(tensor) for tensor in left]) == 0


class _Halved(Strategy):
    """A strategy from outside the package."""

    def factor(self, batch: Batch) -> float:
        return 0.5


def test_a_strategy_from_outside_the_package_runs_by_its_name(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    STRATEGIES.register("halved", _Halved)
    try:
        config = configure("distillation.strategy=per_task*halved", "training.max_steps=1")
        train(Run(config, small_store.url, "fewshot", tmp_path / "run", tmp_path / "results"))
    finally:
        STRATEGIES.unregister("halved")
    (log,) = (tmp_path / "results" / "training_log").glob("*.parquet")
    rows = [row for row in pq.read_table(log).to_pylist() if row["metric"] == "lambda"]
    values = {row["task"]: row["value"] for row in rows}
    assert (values["nli"], values["pos"]) == pytest.approx((0.25, 0.025))
