"""What the numbers of a metric are: which of them are percentages, which are nats, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from logitbank.tasks.scoring import classes, likelihood

MISSING = "—"


@dataclass(frozen=True)
class Unit:
    """How values of a metric are written.

    Attributes:
        name: of a value.
        of_difference: of a difference.
        scale: what a value is multiplied by.
        digits: after the point.
        highest: that a value can be, before scaling; the lowest is 0.
    """

    name: str
    of_difference: str
    scale: float
    digits: int
    highest: float

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """A value or, signed, a difference: 0.637 -> 63.7, +63.7; a missing one as —."""
        if value is None or math.isnan(value):
            return MISSING
        # halves away from zero, whatever binary makes of 72.95
        number = self.scale * value + math.copysign(1e-9, value)
        text = f"{number:{'+' if signed else ''}.{self.digits}f}"
        return text.lstrip("+-") if float(text) == 0 else text


PERCENT = Unit("%", "points", 100, 1, 1.0)
NATS_PER_TOKEN = Unit("nats per answer token", "nats", 1, 4, math.inf)
NATS = Unit("nats", "nats", 1, 4, math.inf)  # of log loss
TOKENS = Unit("tokens", "tokens", 1, 2, math.inf)  # of perplexity
SQUARES = Unit("0 to 2", "", 1, 4, 2.0)  # of the Brier score
_UNITS = {**dict.fromkeys(likelihood.NATS, NATS_PER_TOKEN), "perplexity": TOKENS, "log_loss": NATS, "brier": SQUARES}


def unit_of(metric: str) -> Unit:
    """Of a metric; all but these are fractions, which are shown as percentages."""
    return _UNITS.get(metric, PERCENT)


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric in likelihood.LOWER_IS_BETTER or metric in classes.LOWER_IS_BETTER
