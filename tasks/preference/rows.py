"""One row of a file as a comparison: its id, its turns and its label."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from logitbank.errors import TaskError
from logitbank.preference import CLASSES, Target, Turns

TEXTS = ("prompt", "response_a", "response_b")
WINNER = "winner"
PROBABILITIES = tuple(f"{WINNER}_{name}" for name in CLASSES)
LABELS = (PROBABILITIES, tuple(f"{name}_prob" for name in PROBABILITIES))  # columns that hold a probability each
_ROUNDING = 0.015  # three numbers that were rounded to two digits are off by so much together
_HALVES = re.compile("[\ud800-\udfff]")  # of characters, which JSON can hold and UTF-8 cannot
_TRUTHS = {"True": 1.0, "False": 0.0}  # as pandas writes one-hot columns
_WINNERS = {
    **{"modela": 0, "responsea": 0, "a": 0},
    **{"modelb": 1, "responseb": 1, "b": 1},
    **{"tie": 2, "tiebothbad": 2, "bothbad": 2},
}


class Comparison(NamedTuple):
    """What a row says; the texts of one without an answer or a prompt are there all the same."""

    prompt: Turns
    response_a: Turns
    response_b: Turns
    target: Target | None

    @property
    def has_text(self) -> bool:
        """Whether the prompt and both answers have any."""
        return all(map(has_text, (self.prompt, self.response_a, self.response_b)))


def read_comparison(values: Mapping[str, Any], *, labelled: bool) -> Comparison:
    """The comparison in a row; a cell that is missing has no text.

    Args:
        values: column -> value.
        labelled: whether it must say who won, if it has text.

    Raises:
        TaskError: turns that do not match, or a label that is none; says what is wrong, but not where.
    """
    prompt_is_list, prompt = _turns("prompt", values.get("prompt"), as_list=True)
    answers = [_turns(name, values.get(name), as_list=prompt_is_list)[1] for name in TEXTS[1:]]
    for index, name in enumerate(TEXTS[1:]):
        if not has_text(answers[index]):
            answers[index] = ("",) * len(prompt)
        elif has_text(prompt) and len(answers[index]) != len(prompt):
            raise TaskError(f"{name}: expected as many turns as prompt has ({len(prompt)}), got {len(answers[index])}")
    complete = all(map(has_text, (prompt, *answers)))
    return Comparison(prompt, answers[0], answers[1], read_target(values, required=labelled and complete))


def has_text(turns: Turns) -> bool:
    """Whether any of the turns is more than white space."""
    return any(turn.strip() for turn in turns)


def read_target(values: Mapping[str, Any], *, required: bool) -> Target | None:
    """Who won, as a probability of each class; None if the row does not say and need not.

    Raises:
        TaskError: a label that is missing, unknown, or no probabilities.
    """
    for columns in LABELS:
        if any(not _is_empty(values.get(name)) for name in columns):
            return _probabilities(columns, values)
    winner = values.get(WINNER)
    if not _is_empty(winner):
        found = _WINNERS.get("".join(sign for sign in str(winner).casefold() if sign.isalnum()))
        if found is None:
            raise TaskError(f"{WINNER}: expected {', '.join(CLASSES)} or tie (bothbad), got {str(winner)[:40]!r}")
        return (float(found == 0), float(found == 1), float(found == 2))
    if required:
        raise TaskError(f"expected a label ({WINNER}, or {', '.join(PROBABILITIES)}), got none")
    return None


def _probabilities(columns: tuple[str, ...], values: Mapping[str, Any]) -> Target:
    numbers = []
    for name in columns:
        value: Any = values.get(name)
        try:
            number = _TRUTHS[value] if isinstance(value, str) and value in _TRUTHS else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            got = "nothing" if _is_empty(value) else repr(value)
            raise TaskError(f"{name}: expected a probability between 0 and 1, got {got}")
        numbers.append(number)
    total = math.fsum(numbers)
    if not abs(total - 1) <= _ROUNDING + 1e-9:
        raise TaskError(f"{', '.join(columns)}: expected numbers whose sum is 1, got {total:g}")
    return (numbers[0] / total, numbers[1] / total, numbers[2] / total)


def _turns(name: str, value: Any, *, as_list: bool) -> tuple[bool, Turns]:
    """Whether a cell is a list of turns, and its turns.

    Of a text that is JSON, `as_list` decides whether it may be such a list.
    """
    if isinstance(value, str):
        found = _json_turns(value) if as_list else None
        return (False, (_whole(value),)) if found is None else (True, found)
    if value is None:
        return False, ("",)
    if _is_turns(value):
        return True, tuple(map(_whole, value))
    raise TaskError(f"{name}: expected a text, or a list of texts, got {str(value)[:40]}")


def _json_turns(text: str) -> Turns | None:
    """The turns of a cell that is a JSON list of strings or nulls; None for any other text."""
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        return None
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError):
        return None
    return tuple(map(_whole, found)) if _is_turns(found) else None


def _is_turns(value: Any) -> bool:
    """Whether a value is a list of texts or nulls, one at least."""
    return isinstance(value, list) and value != [] and all(item is None or isinstance(item, str) for item in value)


def _whole(text: str | None) -> str:
    """A text without halves of characters; nothing for null."""
    if text is None:
        return ""
    return text if text.isascii() else _HALVES.sub("\ufffd", text)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
