"""What a student loses against its teacher, as pure functions for training loops of one's own.

Every function takes the student's logits and the teacher's side of a batch (`batch.teacher`, see
`logitbank.DistillationCollator`). The logits are either those of the whole batch, (B, L, V) as a model returns them,
or those that predict the answer tokens, (T, V) in the batch's order. Any float dtype will do; sums are float32.

    logits = model(**batch.inputs).logits
    loss = losses.cross_entropy(logits, batch.teacher) + 0.5 * losses.forward_kl(logits, batch.teacher)

Shapes: B sequences, L padded length, T answer tokens of the batch, V rows of the `lm_head`. Everything is in nats.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from logitbank.configs.schema import DistillationConfig
from logitbank.errors import ConfigError
from logitbank.registry import LOSSES
from logitbank.student_train.losses import step_loss
from logitbank.student_train.losses.answer_logits import read_logits
from logitbank.student_train.losses.base import Loss, StudentLogits, make_loss
from logitbank.student_train.strategies.gate import gate_factor
from logitbank.student_train.strategies.schedule import schedule_factor
from logitbank.student_train.taught import RowsInfo, TeacherTensors

__all__ = [
    "Reduction",
    "TokenTerms",
    "at_answers",
    "cross_entropy",
    "forward_kl",
    "jsd",
    "mse",
    "reverse_kl",
    "token_terms",
    "token_weights",
    "tvd",
]

Reduction = Literal["mean", "sum", "none"]


def cross_entropy(
    student_logits: torch.Tensor, teacher: TeacherTensors, *, reduction: Reduction = "mean"
) -> torch.Tensor:
    """−log q(gold token), q the student's probabilities.

    Args:
        student_logits: (B, L, V), or (T, V) at the answers.
        teacher: of the batch.
        reduction: `mean` or `sum` over the T answer tokens, a scalar; `none` gives (T,).

    Raises:
        ConfigError: logits of a different shape.
    """
    student = _read(student_logits, teacher, None)
    return _reduced(step_loss.cross_entropy(student), reduction)


def forward_kl(
    student_logits: torch.Tensor, teacher: TeacherTensors, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> torch.Tensor:
    """KL(teacher ‖ student) over the teacher's top K tokens and all others as one, times temperature².

    From a store with draws it is the unbiased estimate over all V tokens, at temperature 1.

    Args:
        student_logits: (B, L, V), or (T, V) at the answers.
        teacher: of the batch.
        temperature: divides the log-probabilities of both sides, which are then normalised again.
        reduction: `mean` or `sum` over the T answer tokens, a scalar; `none` gives (T,).

    Raises:
        ConfigError: logits of a different shape, or a temperature that draws do not allow.
    """
    return _divergence("forward_kl", student_logits, teacher, reduction, temperature=temperature)


def reverse_kl(
    student_logits: torch.Tensor, teacher: TeacherTensors, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> torch.Tensor:
    """KL(student ‖ teacher) over the teacher's top K tokens and all others as one, times temperature².

    Arguments as for `forward_kl`. ConfigError for a store with draws, from which it cannot be estimated.
    """
    return _divergence("reverse_kl", student_logits, teacher, reduction, temperature=temperature)


def jsd(
    student_logits: torch.Tensor, teacher: TeacherTensors, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Jensen–Shannon divergence, at most log 2 at temperature 1; otherwise as `reverse_kl`."""
    return _divergence("jsd", student_logits, teacher, reduction, temperature=temperature)


def tvd(
    student_logits: torch.Tensor, teacher: TeacherTensors, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Total variation distance, at most 1, not multiplied by temperature²; otherwise as `reverse_kl`."""
    return _divergence("tvd", student_logits, teacher, reduction, temperature=temperature)


def mse(
    student_logits: torch.Tensor,
    teacher: TeacherTensors,
    *,
    normalize_logits: str = "none",
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Mean squared difference of raw logits at the teacher's top K tokens.

    Args:
        student_logits: (B, L, V), or (T, V) at the answers.
        teacher: of the batch.
        normalize_logits: `center` subtracts each side's mean over the K logits first, `standardize` also divides by
            the standard deviation.
        reduction: `mean` or `sum` over the T answer tokens, a scalar; `none` gives (T,).

    Raises:
        ConfigError: logits of a different shape, or a store with draws.
    """
    return _divergence("mse", student_logits, teacher, reduction, normalize_logits=normalize_logits)


def at_answers(student_logits: torch.Tensor, teacher: TeacherTensors) -> torch.Tensor:
    """The (T, V) logits that predict the batch's answer tokens, from those of the whole batch or from themselves.

    Raises:
        ConfigError: logits of a different shape.
    """
    tokens = len(teacher.gold_T)
    if student_logits.ndim == 3 and tuple(student_logits.shape[:2]) == teacher.shape:
        return student_logits.flatten(0, 1).index_select(0, teacher.index_T)
    if student_logits.ndim == 2 and len(student_logits) == tokens:
        return student_logits
    batch, length = teacher.shape
    raise ConfigError(
        f"student_logits: expected ({batch}, {length}, V), for every position of the batch, or ({tokens}, V), for "
        f"the positions that predict its answer tokens; got {tuple(student_logits.shape)}"
    )


class TokenTerms(NamedTuple):
    """What one batch adds to a loss, per answer token; both (T,), in nats but for `mse`."""

    ce: torch.Tensor
    kd: torch.Tensor


def token_terms(student_logits: torch.Tensor, teacher: TeacherTensors, distillation: DistillationConfig) -> TokenTerms:
    """Cross-entropy and KD of every answer token in one pass over the logits.

    Args:
        student_logits: (B, L, V), or (T, V) at the answers.
        teacher: of the batch.
        distillation: its loss, temperature and normalisation are used.

    Raises:
        ConfigError: logits of a different shape, or see `forward_kl`.
    """
    term = _kd_term(distillation, teacher.info)
    student = _read(student_logits, teacher, term)
    return TokenTerms(step_loss.cross_entropy(student), _taught_only(term(student, teacher.logits), teacher))


def token_weights(distillation: DistillationConfig, teacher: TeacherTensors, *, step: int, steps: int) -> torch.Tensor:
    """λ of every answer token, (T,): `lambda_distill`, the schedule and the gate; no strategy.

    Args:
        distillation: of the run.
        teacher: of the batch.
        step: optimizer step, counted from 0.
        steps: of the whole run.
    """
    factor = schedule_factor(distillation.schedule, step, distillation.schedule_steps or steps)
    return distillation.lambda_distill * factor * gate_factor(distillation.gate, teacher.logits)


def _kd_term(distillation: DistillationConfig, info: RowsInfo) -> Loss:
    """The term that the configuration asks for.

    Args:
        distillation: its loss, temperature and normalisation are used.
        info: of the teacher's rows.

    Raises:
        ConfigError: a loss or temperature that draws do not allow, or that needs what the view does not know exactly.
    """
    drawn, from_draws = info.signal != "topk", LOSSES[distillation.loss].from_draws
    if drawn and from_draws is None:
        able = ", ".join(name for name, loss in LOSSES.items() if loss.from_draws is not None)
        raise ConfigError(
            f"distillation.loss: the store holds draws, which cannot be used with {distillation.loss} cannot be "
            "estimated; "
            f"expected {able}, got {distillation.loss}"
        )
    if drawn and distillation.temperature != 1:
        raise ConfigError(
            "distillation.temperature: expected 1, the temperature of the store's draws, got "
            f"{distillation.temperature:g}"
        )
    term = make_loss(distillation, info.vocab_size, info.signal)
    if vague := [name for name in term.needs if name in info.bounded]:
        raise ConfigError(
            f"distillation.loss: {distillation.loss} needs the exact {vague[0]}, but the view only has a bound; "
            "choose another"
        )
    return term


def _divergence(
    name: str, student_logits: torch.Tensor, teacher: TeacherTensors, reduction: Reduction, **told: float | str
) -> torch.Tensor:
    term = _kd_term(DistillationConfig(loss=name, **told), teacher.info)  # type: ignore[arg-type]
    return _reduced(_taught_only(term(_read(student_logits, teacher, term), teacher.logits), teacher), reduction)


def _read(student_logits: torch.Tensor, teacher: TeacherTensors, term: Loss | None) -> StudentLogits:
    """What a term needs of the student's logits; None: what cross-entropy needs."""
    ids_TC = teacher.token_ids_TC if term is not None else teacher.token_ids_TC[:, :0]
    with_rest = term is not None and term.reads_rest
    return read_logits(at_answers(student_logits, teacher), teacher.gold_T, ids_TC, with_rest=with_rest)


def _taught_only(kd_T: torch.Tensor, teacher: TeacherTensors) -> torch.Tensor:
    """Zero where the row carries no teacher term, (T,)."""
    taught_T = teacher.logits.taught_T
    return kd_T if taught_T is None else torch.where(taught_T > 0, kd_T, 0.0)


def _reduced(values_T: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ConfigError(f"reduction: expected mean, sum or none, got {reduction!r}")
    return values_T if reduction == "none" else getattr(values_T, reduction)()
