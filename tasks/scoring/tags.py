"""Reading and counting answers that are one tag for each token."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from logitbank.tasks.common import Example, Task

_BETWEEN = re.compile(r"[\s|]+|(?<=\w)[,;](?=\w)")  # a bar is the edge of a table's cell, no tag's place
_TABLE_EDGE = " \t\r\n|"
_AROUND = ".,;[](){}'\"`*"  # a model may write a list or a sentence: `['O', 'B-PER']`


class TagAnswers(Task):
    """The part of a task that tags each token; the task inherits from it and says what a tag is.

    Attributes:
        tag_column: of the data set, beside `tokens`.
    """

    name: str
    tag_column: str
    labels: tuple[str, ...] = ()

    def tag_of(self, value: Any) -> str | None:
        """The tag that a value of `tag_column` stands for; None if it is none."""
        raise NotImplementedError

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row without tokens, or with a token that has no tag or is blank, is none."""
        tokens = tuple(row["tokens"])
        tags = [self.tag_of(value) for value in row[self.tag_column]]
        known = [tag for tag in tags if tag is not None]
        if not tokens or not len(tokens) == len(tags) == len(known) or not all(token.strip() for token in tokens):
            return None
        return Example(example_id, self.name, language, {"tokens": tokens}, answer=" ".join(known))

    def user_message(self, example: Example) -> str:
        """The tokens, separated by spaces."""
        return f"Tokens: {' '.join(example.fields['tokens'])}"

    def reference(self, example: Example) -> list[str]:
        """One tag for each token."""
        return example.answer.split()


def parse_tags(output: str, is_tag: Callable[[str], bool]) -> list[str] | None:
    """The tags of a model text in order and in upper case; None if no word is a tag.

    Words before the first tag are a preamble (`Here are the tags:`) and dropped. From there on every
    word takes a token's place, so that one odd word costs one token and not all that follow.

    Args:
        output: raw model text.
        is_tag: whether a word is a tag, asked with the word as it is and in upper case.
    """
    words = [word.strip(_AROUND) for word in _BETWEEN.split(output.strip(_TABLE_EDGE))]
    upper = [word.upper() for word in words]
    for candidates in (words, upper):  # tags as they should be written, else in whatever case
        start = next((index for index, word in enumerate(candidates) if is_tag(word)), None)
        if start is not None:
            break
    else:
        return None
    while start > 0 and (is_tag(upper[start - 1]) or _looks_like_a_tag(words[start - 1])):
        start -= 1
    return upper[start:]


def _looks_like_a_tag(word: str) -> bool:
    """`MISC`, `FOO`: no preamble, but a tag that does not exist."""
    return word.isascii() and word.isalpha() and word.isupper()


def fit_length(tags: Sequence[str] | None, length: int, missing: str) -> list[str]:
    """Exactly `length` tags: what is missing becomes `missing`, what is too much is cut off."""
    kept = list(tags or ())[:length]
    return kept + [missing] * (length - len(kept))


def ratio(numerator: Any, denominator: Any) -> Any:
    """`numerator / denominator`, elementwise on arrays; 0 where the denominator is."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)[()]
