"""Who wrote the answers of a store, and whether that is who learns from them, taught by whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from logitbank.experiment import is_same_model

_DIGITS = 8  # of a hash that a person reads


@dataclass(frozen=True)
class Learner:
    """What a training run begins with.

    Attributes:
        name: hub id or path of its weights.
        weights: hash of them.
    """

    name: str
    weights: str


def describe_answers(answers: Mapping[str, Any]) -> str:
    """Who wrote the answers of a store, and how, to read.

    Args:
        answers: the record of their file, as `StoreInfo.answers` has it.
    """
    if answers["model"] is None:
        return "answers by an unknown model"
    told = [f"answers by {_named(answers)}"]
    if (training := answers.get("training")) and training["teacher"]:
        told.append(f"a student of {training['teacher']} (view {training['view']})")
    if sampling := answers.get("sampling"):
        shown = (f"{name} {sampling[name]:g}" for name in ("temperature", "top_p", "n", "seed") if name in sampling)
        told.append(", ".join(shown))
    return "; ".join(told)


def remarks_on_answers(answers: Mapping[str, Any] | None, teacher: str, learner: Learner | None = None) -> list[str]:
    """What does not fit together, a line each.

    Args:
        answers: the record of their file; None if no model wrote them.
        teacher: hub id or path of the teacher that scored them.
        learner: who is about to learn from them.
    """
    if answers is None:
        return []
    if answers["model"] is None:
        return ["nothing says which model wrote the answers: the file had no record beside it"]
    found = []
    training = answers.get("training") or {}
    if (before := training.get("teacher")) and not is_same_model(before, teacher):
        found.append(f"the answers were written by a student of {before}, but {teacher} scored them")
    if learner is not None and answers.get("weights") != learner.weights:
        found.append(
            f"the answers were written by {_named(answers)}, but the student begins with {learner.name} "
            f"({learner.weights[:_DIGITS]}): they are not its own; training.init_from begins with a checkpoint"
        )
    return found


def _named(answers: Mapping[str, Any]) -> str:
    weights = str(answers.get("weights") or "")[:_DIGITS]
    return f"{answers['model']} ({weights})" if weights else str(answers["model"])
