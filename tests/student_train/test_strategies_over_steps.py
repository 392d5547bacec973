"""λ strategies that remember: what each step adds, and what it is measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from logitbank.configs import ConfigError, load_config
from logitbank.student_train.batch import Batch
from logitbank.student_train.losses.base import TeacherLogits
from logitbank.student_train.losses.step_loss import StepLoss
from logitbank.student_train.strategies.base import Backward, Setting, StepWork
from logitbank.student_train.strategies.combined import TokenWeights
from logitbank.student_train.strategies.loss_ratio import LossRatio
from logitbank.student_train.strategies.meta import HeldOut, Meta

ONE = torch.ones(1, dtype=torch.int64)


def setting_of(store: Any, *overrides: str) -> Setting:
    config = load_config([], ["model.name=m", "tasks=[nli,pos]", *overrides])
    return Setting(config, ("nli", "pos"), store, Accelerator(cpu=True), torch.nn.Linear(1, 1))


def batch_of(step_tokens: int) -> Batch:
    return Batch(ONE[None], ONE, ONE, ONE[:, None], ONE, None, step_tokens, (1,))


def losses_of(ce: list[float], kd: list[float]) -> StepLoss:
    fields = dict.fromkeys(StepLoss._fields, torch.zeros(len(ce)))
    return StepLoss(**{**fields, "ce_T": torch.tensor(ce), "kd_T": torch.tensor(kd)})


def work_of(step: int, batches: list[Batch], losses: list[StepLoss]) -> StepWork:
    given = {id(batch): loss for batch, loss in zip(batches, losses, strict=True)}

    def forward(batch: Batch, lambda_T: torch.Tensor) -> StepLoss:
        return given[id(batch)]

    return StepWork(step, batches, forward, forward, lambda lambdas: losses)


def no_factors(batch: Batch) -> torch.Tensor:
    return torch.ones(1)


def test_loss_ratio_averages_the_mean_losses_of_each_step() -> None:
    """Steps have different numbers of answer tokens: their means are averaged, not their sums."""
    ratio = LossRatio(setting_of(None, "distillation.ema_decay=0.75"))
    first = [losses_of([1.0, 2.0], [4.0, 4.0]), losses_of([3.0], [2.0])]  # over 4 tokens: CE 1.5, KD 2.5
    batches = [batch_of(4), batch_of(4)]
    ratio.prepare(work_of(0, batches, first), no_factors)
    assert ratio.factor(batches[0]) == pytest.approx(1.5 / 2.5)
    ratio.learn(work_of(0, batches, first), Backward(first))
    assert ratio.factor(batches[0]) == pytest.approx(1.5 / 2.5)
    second = [losses_of([10.0], [4.0])]  # over 20 tokens: CE 0.5, KD 0.2
    ratio.learn(work_of(1, [batch_of(20)], second), Backward(second))
    expected = (0.75 * 1.5 + 0.25 * 0.5) / (0.75 * 2.5 + 0.25 * 0.2)
    ratio.prepare(work_of(2, batches, first), no_factors)  # measures the first step only
    assert ratio.factor(batches[0]) == pytest.approx(expected)


def test_loss_ratio_to_no_kd_at_all_is_finite() -> None:
    ratio = LossRatio(setting_of(None))
    ratio.observe(2.0, 0.0)
    assert ratio.factor(batch_of(1)) == pytest.approx(2e12)


def test_meta_goes_through_the_held_out_examples_without_gaps(small_store: SimpleNamespace) -> None:
    """Every second step has an outer one; the n-th outer step takes the n-th held-out batch."""
    setting = setting_of(
        small_store.store,
        "distillation.strategy=meta",
        "distillation.meta_every=2",
        "distillation.meta_batch_size=4",
        "training.micro_batch_size=2",
    )
    seen: dict[int, list[list[int]]] = {}

    class Recording(Meta):
        def alignment(
            self, work: StepWork, factors: Callable[[Batch], torch.Tensor], held_out: Iterable[Batch]
        ) -> torch.Tensor:
            seen[work.step] = [batch.gold_T.tolist() for batch in held_out]
            return torch.zeros(2, dtype=torch.float64)

    meta = Recording(setting)
    for step in range(7):
        meta.prepare(work_of(step, [], []), no_factors)
    device = torch.device("cpu")
    of_outer = HeldOut(setting.config, small_store.store)
    expected = {2 * n: [batch.gold_T.tolist() for batch in of_outer.batches(n, device)] for n in range(4)}
    assert seen == expected
    assert expected[2] != expected[4], "held-out batches that could be told apart"


@pytest.mark.parametrize("task", ["nli", "pos"])
def test_meta_is_held_to_the_runs_tasks(small_store: SimpleNamespace, task: str) -> None:
    store = small_store.store
    setting = setting_of(store, f"tasks=[{task}]", "distillation.strategy=meta", "distillation.meta_batch_size=4")
    table, wanted = store.validation, store.info.tasks.index(task)
    answers = [table.answer_ids(i).tolist() for i in range(len(table)) if table.task[i] == wanted]
    others = [table.answer_ids(i).tolist() for i in range(len(table)) if table.task[i] != wanted]
    assert others, "a store of several tasks"
    seen = [token for batch in HeldOut(setting.config, store).batches(0, torch.device("cpu")) for token in batch.gold_T]
    allowed = {token for answer in answers for token in answer}
    assert seen
    assert {int(token) for token in seen} <= allowed
    assert not {token for answer in others for token in answer} <= allowed, "answers that could be told apart"


def test_meta_draws_its_held_out_examples_by_the_runs_seed(small_store: SimpleNamespace) -> None:
    def golds(seed: int) -> list[list[int]]:
        setting = setting_of(small_store.store, "distillation.strategy=meta", f"seed={seed}")
        held_out = HeldOut(setting.config, small_store.store)
        return [batch.gold_T.tolist() for batch in held_out.batches(0, torch.device("cpu"))]

    drawn = [golds(seed) for seed in range(4)]
    assert golds(0) == drawn[0]
    assert any(other != drawn[0] for other in drawn[1:])


def test_every_part_of_a_strategy_takes_up_its_state(small_store: SimpleNamespace) -> None:
    setting = setting_of(small_store.store, "distillation.strategy=meta*loss_ratio", "distillation.lambda_distill=0.4")
    one = torch.zeros(1)
    rows = TeacherLogits(one[:, None], one, one, one, ONE)
    batch = Batch(ONE[None], ONE, ONE, ONE[:, None], ONE, rows, 1, (1,))
    before, after = TokenWeights(setting), TokenWeights(setting)
    state = {**before.state_dict(), "ema": (3.0, 2.0)}
    (logit,) = [name for name in state if name != "ema"]
    state[logit] = torch.tensor([0.0, 2.0]).to(state[logit])
    after.load_state_dict(state)
    assert after.token_weights(batch, 0).tolist() == pytest.approx([1.5 / (1 + math.exp(-2.0))])
    assert after.state_dict()["ema"] == (3.0, 2.0)


def test_per_task_asks_for_a_value_of_every_task() -> None:
    with pytest.raises(ConfigError, match=r"lambda_per_task: expected a value for gsm8k, got none"):
        load_config([], ["model.name=m", "tasks=[nli,gsm8k]", "distillation.strategy=per_task"])
