"""`fixed`: one λ for everything, `distillation.lambda_distill`."""

from __future__ import annotations

from logitbank.student_train.strategies.base import Strategy


class Fixed(Strategy):
    """Neither base nor factor of its own: the base of a strategy without another is `lambda_distill`."""
