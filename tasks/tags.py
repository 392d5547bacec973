"""Reading and counting answers that are one tag for each token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# What may stand between tags, or around them when a model writes a list: `['O', 'B-PER']`.
_SEPARATORS = re.compile(r"[\s,;\[\](){}'\"`*]+")


def parse_tags(output: str, shape: re.Pattern[str]) -> list[str] | None:
    """The words of a model text, in upper case, from the first that has a tag's shape; None without one.

    Words before it are a preamble (`Tags:`, `Here they are:`) and dropped. From there on every word
    takes a token's place, so that one odd word costs one token and not all that follow.
    """
    words = [word for word in _SEPARATORS.split(output) if word]
    upper = [word.upper() for word in words]
    for candidates in (words, upper):  # tags as they should be written, else in whatever case
        for index, word in enumerate(candidates):
            if shape.fullmatch(word):
                return upper[index:]
    return None


def fit_length(tags: Sequence[str] | None, length: int, missing: str) -> list[str]:
    """Exactly `length` tags: what is missing becomes `missing`, what is too much is cut off."""
    kept = list(tags or ())[:length]
    return kept + [missing] * (length - len(kept))


def ratio(numerator: Any, denominator: Any) -> Any:
    """`numerator / denominator`, elementwise on arrays; 0 where the denominator is."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)[()]
