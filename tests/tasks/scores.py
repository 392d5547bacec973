"""Raw model texts to metrics, as an evaluation goes from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from logitbank.tasks import Task
from logitbank.tasks.common import metrics_of


def score(
    task: Task, outputs: Sequence[str], references: Sequence[Any], language: str = "en", protocol: str | None = None
) -> dict[str, float]:
    pairs = zip(outputs, references, strict=True)
    return metrics_of(task, [task.statistics(output, gold, language, protocol) for output, gold in pairs])
