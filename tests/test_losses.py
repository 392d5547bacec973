"""`logitbank.losses`: the losses of train-student as functions of plain logits.

Letters as in `student_train/losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from logitbank import losses
from logitbank.errors import ConfigError
from logitbank.student_train.losses.base import TeacherLogits
from logitbank.student_train.taught import RowsInfo, TeacherTensors

T, V, B, L = 6, 40, 2, 7
INDEX = torch.tensor([1, 2, 3, 9, 10, 12])


def teacher_of(
    full_TV: torch.Tensor, top_k: int, *, signal: str = "topk", bounded: tuple[str, ...] = (), **changes: Any
) -> TeacherTensors:
    """What a store would keep of dense logits, in float64."""
    gold_T = torch.arange(T) * 5
    values_TK, ids_TK = full_TV.topk(top_k, dim=1)
    log_p_TV = full_TV.log_softmax(1)
    others = log_p_TV.scatter(1, ids_TK, -torch.inf).logsumexp(1)
    logits = TeacherLogits(
        logits_TK=values_TK,
        logsumexp_T=full_TV.logsumexp(1),
        entropy_T=-(log_p_TV.exp() * log_p_TV).sum(1),
        gold_logit_T=full_TV.gather(1, gold_T[:, None])[:, 0],
        gold_rank_T=(full_TV > full_TV.gather(1, gold_T[:, None])).sum(1),
        log_tail_T=others,
        **changes,
    )
    return TeacherTensors(INDEX, gold_T, ids_TK.int(), logits, RowsInfo(V, signal, bounded=bounded), (B, L))


@pytest.fixture
def sides() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of teacher and student, (T, V) float64."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(T, V, generator=generator, dtype=torch.float64) * 3 for _ in range(2))  # type: ignore[return-value]


@pytest.mark.numeric
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_all_logits_divergences_are_the_dense_ones(sides: Any, temperature: float) -> None:
    theirs, ours = sides
    teacher = teacher_of(theirs, V)
    p, q = (side.div(temperature).log_softmax(1) for side in (theirs, ours))
    m = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    kl = torch.nn.functional.kl_div
    dense = {
        "forward_kl": kl(q, p, reduction="none", log_target=True).sum(1) * temperature**2,
        "reverse_kl": kl(p, q, reduction="none", log_target=True).sum(1) * temperature**2,
        "jsd": 0.5
        * (kl(m, p, reduction="none", log_target=True) + kl(m, q, reduction="none", log_target=True)).sum(1)
        * temperature**2,
        "tvd": 0.5 * (p.exp() - q.exp()).abs().sum(1),
    }
    for name, expected in dense.items():
        value = getattr(losses, name)(ours, teacher, temperature=temperature, reduction="none")
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(losses.mse(ours, teacher), (ours - theirs).square().mean())
    gold = torch.nn.functional.cross_entropy(ours, teacher.gold_T)
    torch.testing.assert_close(losses.cross_entropy(ours, teacher), gold)


def test_whole_batches_and_answers_alone_give_the_same(sides: Any) -> None:
    theirs, ours = sides
    teacher = teacher_of(theirs, 8)
    whole = torch.randn(B, L, V, dtype=torch.float64)
    whole.view(-1, V)[INDEX] = ours
    whole.requires_grad_()
    value = losses.forward_kl(whole, teacher, temperature=2.0, reduction="sum")
    assert torch.equal(value, losses.forward_kl(ours, teacher, temperature=2.0, reduction="none").sum())
    (gradient,) = torch.autograd.grad(value, whole)
    elsewhere = torch.ones(B * L, dtype=torch.bool).index_fill_(0, INDEX, False)
    assert gradient.view(-1, V)[INDEX].abs().sum() > 0
    assert gradient.view(-1, V)[elsewhere].abs().sum() == 0


def test_untaught_tokens_count_nothing(sides: Any) -> None:
    theirs, ours = sides
    taught = torch.tensor([1.0, 0, 1, 1, 0, 1])
    value = losses.forward_kl(ours, teacher_of(theirs, 8, taught_T=taught), reduction="none")
    expected = losses.forward_kl(ours, teacher_of(theirs, 8), reduction="none")
    assert torch.equal(value, torch.where(taught > 0, expected, 0.0))


@pytest.mark.numeric
def test_draws_give_the_estimate_that_is_right_in_expectation(sides: Any) -> None:
    theirs, ours = sides
    # every token drawn with its own probability as its weight: the expectation itself
    teacher = teacher_of(theirs, V, signal="sampled", weight_TC=theirs.topk(V, dim=1).values.softmax(1))
    dense = torch.nn.functional.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none")
    torch.testing.assert_close(losses.forward_kl(ours, teacher, reduction="none"), dense.sum(1))
    refused: list[tuple[Callable[..., Any], dict[str, float], str]] = [
        (losses.forward_kl, {"temperature": 2.0}, r"distillation\.temperature: expected 1, .* got 2"),
        (losses.mse, {}, r"distillation\.loss: .* expected forward_kl, got mse"),
    ]
    for loss, told, message in refused:
        with pytest.raises(ConfigError, match=message):
            loss(ours, teacher, **told)


def test_other_shapes_are_refused(sides: Any) -> None:
    theirs, ours = sides
    teacher = teacher_of(theirs, 8)
    for wrong in (ours[:-1], ours.expand(2, T, V), ours[0]):
        with pytest.raises(ConfigError, match=r"student_logits: expected \(2, 7, V\).* or \(6, V\).*; got"):
            losses.forward_kl(wrong, teacher)
    with pytest.raises(ConfigError, match="reduction: expected mean, sum or none, got 'max'"):
        losses.forward_kl(ours, teacher, reduction="max")  # type: ignore[arg-type]


def test_what_is_known_as_a_bound_alone_is_refused_where_it_must_be_exact(sides: Any) -> None:
    theirs, ours = sides
    teacher = teacher_of(theirs, 8, bounded=("logits", "logsumexp", "entropy"))
    for loss, name in ((losses.forward_kl, "logsumexp"), (losses.mse, "logits")):
        with pytest.raises(ConfigError, match=f"needs the exact {name}, but the view only has a bound"):
            loss(ours, teacher)
    centred = losses.mse(ours, teacher, normalize_logits="center")
    assert torch.equal(centred, losses.mse(ours, teacher_of(theirs, 8), normalize_logits="center"))
    assert losses.forward_kl(ours, teacher_of(theirs, 8, bounded=("entropy", "gold"))) > 0
