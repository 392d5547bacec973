"""The loss of comparisons against numbers computed one at a time, and cached teachers against live ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.models.classifier import open_classifier
from logitbank.models.pair_scoring import score_pairs
from logitbank.student_train.classifier.batch import PackedPairs, TrainingRows
from logitbank.student_train.classifier.losses import average_views, pair_terms
from logitbank.student_train.classifier.order import Visit
from logitbank.tasks.preference import PairPacker
from tests import tiny
from tests.student_train import preferences

pytestmark = pytest.mark.numeric

SETTINGS = [
    {"alpha": 0.0, "temperature": 1.0, "mse_weight": 0.0, "label_smoothing": 0.0},
    {"alpha": 0.7, "temperature": 3.0, "mse_weight": 0.0, "label_smoothing": 0.1},
    {"alpha": 1.0, "temperature": 0.5, "mse_weight": 2.0, "label_smoothing": 0.0},
    {"alpha": 0.4, "temperature": 2.0, "mse_weight": 0.3, "label_smoothing": 1.0},
]


def softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in logits]
    return [weight / sum(weights) for weight in weights]


def reference(
    logits: list[float],
    target: list[float],
    teacher: list[float] | None,
    *,
    alpha: float,
    temperature: float,
    mse_weight: float,
    label_smoothing: float,
) -> float:
    """The loss of one row, term by term, in Python's own numbers."""
    own = softmax(logits, 1)
    smooth = [(1 - label_smoothing) * share + label_smoothing / 3 for share in target]
    ce = -sum(share * math.log(p) for share, p in zip(smooth, own, strict=True))
    if teacher is None:
        return ce
    soft = softmax(logits, temperature)
    kl = sum(t * math.log(t / s) for t, s in zip(teacher, soft, strict=True) if t > 0)
    mse = sum((t - s) ** 2 for t, s in zip(teacher, soft, strict=True)) / 3
    return alpha * temperature**2 * kl + (1 - alpha) * ce + mse_weight * mse


def rows(count: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets, teachers and which rows have one, float64; some teachers rule a class out."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(count, 3, generator=generator, dtype=torch.float64) * 3
    target = torch.rand(count, 3, generator=generator, dtype=torch.float64).softmax(1)
    target[::3] = torch.eye(3, dtype=torch.float64)[[1, 2, 0, 1]]
    teacher = (torch.randn(count, 3, generator=generator, dtype=torch.float64) * 2).softmax(1)
    teacher[4] = torch.tensor([0.25, 0.0, 0.75])
    taught = torch.arange(count) % 4 != 1
    teacher[~taught] = 0
    return logits, target, teacher, taught


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_row_has_the_loss_of_the_formula(settings: dict[str, float]) -> None:
    logits, target, teacher, taught = rows()
    got = pair_terms(logits, target, teacher, taught, **settings)
    expected = [
        reference(row.tolist(), wanted.tolist(), said.tolist() if has else None, **settings)
        for row, wanted, said, has in zip(logits, target, teacher, taught, strict=True)
    ]
    np.testing.assert_allclose(got.loss_B.numpy(), expected, rtol=1e-12)
    single = pair_terms(logits.float(), target.float(), teacher.float(), taught, **settings)
    np.testing.assert_allclose(single.loss_B.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_are_those_of_differences(settings: dict[str, float]) -> None:
    logits, target, teacher, taught = rows()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda own: pair_terms(own, target, teacher, taught, **settings).loss_B, (logits,), atol=1e-7
    )


def test_rows_without_a_teacher_weigh_as_much_as_in_training_without_one() -> None:
    logits, target, teacher, taught = rows()
    distilled = pair_terms(logits, target, teacher, taught, alpha=0.8, temperature=2, mse_weight=1, label_smoothing=0.1)
    alone = pair_terms(
        logits, target, teacher, torch.zeros_like(taught), alpha=0.3, temperature=5, mse_weight=7, label_smoothing=0.1
    )
    torch.testing.assert_close(distilled.loss_B[~taught], alone.ce_B[~taught], rtol=0, atol=0)
    torch.testing.assert_close(alone.loss_B, alone.ce_B, rtol=0, atol=0)
    assert not (distilled.loss_B[taught] == alone.loss_B[taught]).any()
    assert not distilled.kl_B[~taught].any()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_views_are_averaged_as_probabilities_at_the_temperature(temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = {
        view: (generator.normal(0, 3, (7, 3)) + shift).astype(np.float32) for view, shift in (("a", 0), ("b", 90))
    }
    logits["b"][2] = np.nan
    got, taught = average_views(logits, {"b": 3.0}, temperature)
    assert taught.tolist() == [True, True, False, True, True, True, True]
    assert not got[2].any()
    for row in np.flatnonzero(taught):
        a, b = (
            softmax((logits[view][row].astype(np.float64) - shift).tolist(), temperature)
            for view, shift in (("a", 0), ("b", 90))
        )
        np.testing.assert_allclose(got[row], [(x + 3 * y) / 4 for x, y in zip(a, b, strict=True)], atol=1e-5)


def test_cached_logits_give_the_loss_and_gradients_of_the_live_teacher(tmp_path: Path) -> None:
    """The teacher runs beside the student, against its logits as a store keeps them."""
    config = preferences.configure(preferences.make_model(tmp_path))
    teacher, student = (open_classifier(config, device="cpu", new_head=True) for _ in range(2))
    torch.manual_seed(1)
    for classifier, scale in ((teacher, 0.3), (student, 0.1)):
        assert classifier.head is not None
        torch.nn.init.normal_(classifier.head.linear.weight, std=scale)
    packer = PairPacker(tiny.chat_tokenizer(), max_tokens=192)
    packed = list(packer.pack_all(preferences.TRAIN[:6]))
    target = np.array([pair.target for pair in preferences.TRAIN[:6]], dtype=np.float32)
    cached = score_pairs(teacher, packed, batch_tokens=300)
    settings = {"alpha": 0.6, "temperature": 2.0, "mse_weight": 0.5, "label_smoothing": 0.05}
    mean, taught = average_views({"live": cached}, {}, 2.0)
    everything = TrainingRows(PackedPairs(packed), target, mean, taught, np.zeros(6, np.bool_), np.zeros(6, np.uint64))
    batch = everything.batch([Visit(row, False) for row in range(6)])
    found: list[dict[str, Any]] = []
    for live in (False, True):
        student.zero_grad()
        with torch.no_grad():
            said = (teacher(batch.pairs) / 2.0).softmax(1) if live else batch.teacher_BC
        loss = pair_terms(student(batch.pairs), batch.target_BC, said, batch.taught_B, **settings).loss_B.mean()
        loss.backward()
        found.append({"loss": loss.detach()} | {n: p.grad.clone() for n, p in student.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=1e-5)
    assert float(found[0]["loss"]) > 0.1
