"""`distillation.schedule`: how much of λ is left at a step."""

from __future__ import annotations

import math


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """How much of λ is left at a step, counted from 0.

    `constant` 1; `warmup_then_sft` 1 for the first `steps` steps and 0 after them; `linear` falls from 1 to
    0 over `steps`; `cosine` likewise, along half a cosine.
    """
    progress = min(1.0, step / steps)
    return {
        "constant": 1.0,
        "warmup_then_sft": float(step < steps),
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[schedule]
