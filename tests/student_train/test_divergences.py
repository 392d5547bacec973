"""KD terms against dense float64 formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.configs.schema import DistillationConfig
from logitbank.registry import LOSSES
from logitbank.student_train.losses.answer_logits import read_logits
from logitbank.student_train.losses.base import StudentLogits, TeacherLogits, make_loss
from logitbank.student_train.losses.outcomes import teacher_log_tail

pytestmark = pytest.mark.numeric

V = 50
DIVERGENCES = [name for name, loss in LOSSES.items() if loss.takes_temperature]


def random_logits(seed: int, scale: float, tokens: int = 4) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((tokens, V))


def sides(student: np.ndarray, teacher: np.ndarray, k: int) -> tuple[StudentLogits, TeacherLogits]:
    """What the loss sees of two dense (T, V) logits, float64."""
    ours, theirs = torch.tensor(student, requires_grad=True), torch.tensor(teacher)
    values, ids = theirs.sort(dim=1, descending=True)
    zeros = torch.zeros(len(theirs))
    return (
        read_logits(ours, ids[:, 0], ids[:, :k], with_rest=True),
        TeacherLogits(values[:, :k], theirs.logsumexp(1), zeros, values[:, 0], zeros.long()),
    )


def dense(name: str, student: np.ndarray, teacher: np.ndarray, k: int, temperature: float) -> list[float]:
    """The same divergence written out over K + 1 outcomes, one token at a time."""
    results = []
    for q_logits, p_logits in zip(student, teacher, strict=True):
        order = np.argsort(-p_logits, kind="stable")
        outcomes = []
        for logits in (p_logits, q_logits):
            full = np.exp(logits - logits.max())
            full /= full.sum()
            parts = [full[i] for i in order[:k]]
            if k < V:
                parts.append(sum(full[i] for i in order[k:]))
            tempered = np.array(parts) ** (1 / temperature)
            outcomes.append(tempered / tempered.sum())
        p, q = outcomes
        m = (p + q) / 2
        kl = lambda a, b: float(sum(x * math.log(x / y) for x, y in zip(a, b, strict=True)))  # noqa: E731
        results.append(
            {
                "forward_kl": temperature**2 * kl(p, q),
                "reverse_kl": temperature**2 * kl(q, p),
                "jsd": temperature**2 * (kl(p, m) + kl(q, m)) / 2,
                "tvd": float(np.abs(p - q).sum()) / 2,
            }[name]
        )
    return results


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 8, V])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_the_dense_formulas(name: str, k: int, temperature: float) -> None:
    student, teacher = random_logits(1, 1.5), random_logits(2, 1.5)
    term = make_loss(DistillationConfig(loss=name, temperature=temperature), V)
    got = term(*sides(student, teacher, k))
    assert got.tolist() == pytest.approx(dense(name, student, teacher, k, temperature), rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_with_the_whole_vocabulary_temperature_is_that_of_the_logits(temperature: float) -> None:
    student, teacher = random_logits(1, 2.0), random_logits(2, 2.0)
    term = make_loss(DistillationConfig(loss="forward_kl", temperature=temperature), V)
    p, q = (torch.tensor(x / temperature).log_softmax(1) for x in (teacher, student))
    expected = temperature**2 * (p.exp() * (p - q)).sum(1)
    torch.testing.assert_close(term(*sides(student, teacher, V)), expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0, 40.0]),
    k=st.integers(1, V),
    name=st.sampled_from([*DIVERGENCES, "mse"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_never_negative_and_zero_where_both_agree(
    seed: int, scale: float, k: int, name: str, dtype: torch.dtype
) -> None:
    term = make_loss(DistillationConfig(loss=name), V)
    for student, same in ((random_logits(seed + 1, scale), False), (random_logits(seed, scale), True)):
        ours, theirs = sides(student, random_logits(seed, scale), k)
        ours = StudentLogits(*(tensor.to(dtype) for tensor in ours))
        tensors = {f.name: getattr(theirs, f.name) for f in dataclasses.fields(theirs)}
        theirs = TeacherLogits(
            **{n: t.to(dtype) if t is not None and t.is_floating_point() else t for n, t in tensors.items()}
        )
        value = term(ours, theirs)
        assert (value >= 0).all()
        assert value.isfinite().all()
        if same:
            assert value.max() < 1e-5


@pytest.mark.parametrize("name", [*DIVERGENCES, "mse"])
def test_gradients_are_finite_and_point_downhill(name: str) -> None:
    teacher = random_logits(2, 2.0)
    student = random_logits(1, 2.0)
    term = make_loss(DistillationConfig(loss=name), V)
    ids = torch.tensor(teacher).sort(dim=1, descending=True).indices[:, :8]

    def loss(logits: torch.Tensor) -> torch.Tensor:
        _, theirs = sides(student, teacher, 8)
        return term(read_logits(logits, ids[:, 0], ids, with_rest=True), theirs)

    assert torch.autograd.gradcheck(loss, (torch.tensor(student, requires_grad=True),))


def test_a_teacher_that_rules_tokens_out() -> None:
    teacher = random_logits(2, 2.0)
    ours, theirs = sides(random_logits(1, 2.0), teacher, 8)
    logits_TK = theirs.logits_TK.clone()
    logits_TK[:, 5:] = -math.inf
    theirs = dataclasses.replace(theirs, logits_TK=logits_TK)
    for name in [*DIVERGENCES, "mse"]:
        for normalize in ["none", "center", "standardize"] if name == "mse" else ["none"]:
            value = make_loss(DistillationConfig(loss=name, normalize_logits=normalize), V)(ours, theirs)
            assert value.isfinite().all()
            (gradient,) = torch.autograd.grad(value.sum(), ours.top_TK, retain_graph=True)
            assert gradient.isfinite().all()
    expected = ((ours.top_TK - theirs.logits_TK)[:, :5] ** 2).mean(dim=1)
    torch.testing.assert_close(make_loss(DistillationConfig(), V)(ours, theirs), expected)


def test_normalized_mse_by_hand() -> None:
    student, teacher = random_logits(1, 2.0), random_logits(2, 2.0)
    ours, theirs = sides(student, teacher, 8)
    for normalize in ("center", "standardize"):
        got = make_loss(DistillationConfig(normalize_logits=normalize), V)(ours, theirs)
        for t in range(4):
            a, b = ours.top_TK[t].detach().numpy(), theirs.logits_TK[t].numpy()
            a, b = a - a.mean(), b - b.mean()
            if normalize == "standardize":
                a, b = a / a.std(), b / b.std()
            assert got[t].item() == pytest.approx(float(((a - b) ** 2).mean()), rel=1e-5)
    shifted = sides(student + 7.0, teacher, 8)
    centered = make_loss(DistillationConfig(normalize_logits="center"), V)
    torch.testing.assert_close(centered(*shifted), centered(ours, theirs))


def test_tail_mass_is_what_the_top_k_leaves() -> None:
    teacher = random_logits(2, 1.0)
    _, theirs = sides(teacher, teacher, 8)
    probabilities = np.sort(np.exp(teacher) / np.exp(teacher).sum(1, keepdims=True), axis=1)
    assert teacher_log_tail(theirs).exp().tolist() == pytest.approx(probabilities[:, :-8].sum(1).tolist())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_stored_tail_is_used_not_what_rounded_values_leave(name: str) -> None:
    """A teacher whose tail is far smaller than the rounding of its values, and a student that equals it."""
    logits = random_logits(3, 4.0, tokens=40)
    student, teacher = sides(logits, logits, 8)
    order = np.argsort(-logits, axis=1, kind="stable")
    p = np.take_along_axis(np.exp(logits - np.log(np.exp(logits).sum(1))[:, None]), order, axis=1)
    true_tail = p[:, 8:].sum(axis=1)
    rounding = torch.tensor(np.random.default_rng(4).uniform(-0.04, 0.04, (40, 8)))
    rounding[:, 0] = 0
    rounded = dataclasses.replace(teacher, logits_TK=teacher.logits_TK + rounding)
    with_tail = dataclasses.replace(rounded, log_tail_T=torch.tensor(np.log(true_tail)))
    term = make_loss(DistillationConfig(loss=name), V)
    # Float64, token by token: the rounded probabilities and the true tail, normalised, against the true ones.
    outcomes = np.concatenate([p[:, :8] * np.exp(rounding.numpy()), true_tail[:, None]], axis=1)
    outcomes /= outcomes.sum(axis=1, keepdims=True)
    truth = np.concatenate([p[:, :8], true_tail[:, None]], axis=1)
    m = (outcomes + truth) / 2
    kl = lambda a, b: (a * np.log(a / b)).sum(axis=1)  # noqa: E731
    expected = {
        "forward_kl": kl(outcomes, truth),
        "reverse_kl": kl(truth, outcomes),
        "jsd": (kl(outcomes, m) + kl(truth, m)) / 2,
        "tvd": np.abs(outcomes - truth).sum(axis=1) / 2,
    }[name]
    assert term(student, with_tail).detach().numpy() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    if name == "reverse_kl":
        assert term(student, with_tail).mean() < 1e-3 < term(student, rounded).mean()


def test_the_tail_that_a_loss_sees_is_the_stores() -> None:
    _, theirs = sides(random_logits(1, 1.0), random_logits(2, 1.0), 5)
    stored = dataclasses.replace(theirs, log_tail_T=torch.full((4,), 0.25).log())
    assert teacher_log_tail(stored).exp().tolist() == pytest.approx([0.25] * 4)
    mass = (theirs.logits_TK - theirs.logsumexp_T[:, None]).exp().sum(1)
    assert teacher_log_tail(theirs).exp().tolist() == pytest.approx((1 - mass).tolist())


def dense_float64(name: str, student: torch.Tensor, teacher: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """The divergence over the whole vocabulary by plain autograd, (T,): the rest is a logsumexp of its logits."""
    ids = teacher.sort(dim=1, descending=True).indices[:, :k]
    sides = []
    for logits in (teacher, student):
        kept = torch.ones_like(logits, dtype=torch.bool).scatter(1, ids, False)
        rest = torch.stack([row[keep].logsumexp(0) for row, keep in zip(logits, kept, strict=True)])
        outcomes = torch.cat([logits.gather(1, ids), rest[:, None]], dim=1) if k < V else logits.gather(1, ids)
        sides.append((outcomes.log_softmax(1) / temperature).log_softmax(1))
    p, q = sides
    m = torch.logaddexp(p, q) - math.log(2)
    kl = lambda a, b: (a.exp() * (a - b)).sum(1)  # noqa: E731
    value = {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: (kl(p, m) + kl(q, m)) / 2,
        "tvd": lambda: (p.exp() - q.exp()).abs().sum(1) / 2,
    }[name]()
    return value if name == "tvd" else value * temperature**2


@pytest.mark.parametrize("scale", [3.0, 15.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("k", [1, 8, V])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_an_overconfident_student_gets_its_true_loss_and_push(
    name: str, k: int, temperature: float, scale: float
) -> None:
    """Students whose rest has a probability down to e⁻¹⁰⁰, in float32 and float64, against float64 autograd."""
    student = torch.tensor(random_logits(1, scale, tokens=24), requires_grad=True)
    teacher = torch.tensor(random_logits(2, 3.0, tokens=24))  # whose own probabilities stay above the floor
    expected_T = dense_float64(name, student, teacher, k, temperature)
    (expected,) = torch.autograd.grad(expected_T.sum(), student)
    values, ids = teacher.sort(dim=1, descending=True)
    rest_T = torch.stack([row[i[k:]].logsumexp(0) for row, i in zip(teacher, ids, strict=True)])
    for dtype in (torch.float32, torch.float64):
        logits = student.detach().to(dtype).requires_grad_()
        theirs = TeacherLogits(
            values[:, :k].to(dtype),
            teacher.logsumexp(1).to(dtype),
            *(torch.zeros(24) for _ in range(3)),
            log_tail_T=(rest_T - teacher.logsumexp(1)).to(dtype),
        )
        term = make_loss(DistillationConfig(loss=name, temperature=temperature), V)
        got_T = term(read_logits(logits, ids[:, 0], ids[:, :k], with_rest=True), theirs)
        (got,) = torch.autograd.grad(got_T.sum(), logits)
        # A logit of 100 is rounded by 100 · 2⁻²⁴, which a probability shows as a relative error; sums of V of them.
        error = 16 * scale * 3 * torch.finfo(dtype).eps
        torch.testing.assert_close(got_T.double(), expected_T, rtol=error, atol=error * temperature**2)
        torch.testing.assert_close(got.double(), expected, rtol=error, atol=error * temperature**2 * scale)


def test_a_student_that_rules_out_what_the_teacher_expects_is_pushed_back() -> None:
    """By hand: the teacher gives the rest one half, the student e⁻⁴⁰; d KL / d rest = q − p."""
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    theirs = TeacherLogits(torch.zeros(1, 1), torch.tensor([math.log(2)]), *(torch.zeros(1) for _ in range(3)))
    ids = torch.tensor([[0]])
    value_T = make_loss(DistillationConfig(loss="forward_kl"), 2)(
        read_logits(logits, ids[:, 0], ids, with_rest=True), theirs
    )
    assert value_T.item() == pytest.approx(20 - math.log(2), rel=1e-6)
    (gradient,) = torch.autograd.grad(value_T.sum(), logits)
    assert gradient.tolist() == [pytest.approx([0.5, -0.5], rel=1e-6)]
