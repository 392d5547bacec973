"""`distillation.gate`: tokens weighed by what the cache says about the teacher."""

from __future__ import annotations

import torch

from logitbank.student_train.losses.base import TeacherLogits

# of `storage.BOUNDABLE`, what each gate has to know exactly
GATE_NEEDS: dict[str, tuple[str, ...]] = {"teacher_correct": ("gold",), "fewshot_gain": ("gold", "logsumexp")}


def gate_factor(gate: str, teacher: TeacherLogits) -> torch.Tensor:
    """Weight of each token, (T,), between 0 and 1.

    `none`: 1. `teacher_correct`: 1 where the gold token is the teacher's first choice (gold rank 0), else 0.
    `fewshot_gain`: max(0, 1 − p_zeroshot(gold) / p_view(gold)): the share of the gold token's probability
    that the view owes to its demonstrations; 0 where they did not help.
    """
    if gate == "none":
        return torch.ones_like(teacher.logsumexp_T)
    if gate == "teacher_correct":
        return (teacher.gold_rank_T == 0).float()
    assert gate == "fewshot_gain", gate
    assert teacher.zeroshot_cross_entropy_T is not None
    gain_T = teacher.zeroshot_cross_entropy_T - teacher.cross_entropy_T
    return (-torch.expm1(-gain_T)).clamp(min=0)
