"""Whether two models mean the same tokens by the same ids: logits can be shared between those ids alone.

A hash of a tokenizer says less: two tokenizers may differ in tokens that no text of the data has, and a model may
have fewer rows in its `lm_head` than its tokenizer has ids. So ids are compared one by one, by the spelling of
their tokens. How a tokenizer splits texts plays no part: a teacher reads ids that the student's has chosen.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ModelTokens:
    """The token that each id of one model stands for.

    Attributes:
        model: its name, for messages.
        spellings: the token of each id as its tokenizer writes it; None for an id without one.
        rows: of its `lm_head`: ids from here on have no logits; None if that plays no part.
    """

    model: str
    spellings: Sequence[str | None]
    rows: int | None = None

    @classmethod
    def of(cls, model: str, tokenizer: Any, rows: int | None = None) -> ModelTokens:
        """All tokens of a tokenizer, added ones included."""
        ids: dict[str, int] = tokenizer.get_vocab()
        spellings: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
        for spelling, token_id in ids.items():
            spellings[token_id] = spelling
        return cls(model, spellings, rows)

    def spelling(self, token_id: int) -> str | None:
        """The token of an id; None if the model knows none."""
        known = len(self.spellings) if self.rows is None else min(len(self.spellings), self.rows)
        return self.spellings[token_id] if token_id < known else None

    def id_of(self, spelling: str) -> int | None:
        """The id of a token; None if the tokenizer has no such token."""
        return next((number for number, token in enumerate(self.spellings) if token == spelling), None)


@dataclass(frozen=True)
class TokenDifferences:
    """The ids that do not stand for the same token in two models.

    Attributes:
        ours: the model whose ids the data hold.
        theirs: the other.
    """

    ours: ModelTokens
    theirs: ModelTokens

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(D,) int64, ascending; ids that neither model knows are not among them."""
        longest = max(len(self.ours.spellings), len(self.theirs.spellings))
        different = [i for i in range(longest) if self.ours.spelling(i) != self.theirs.spelling(i)]
        return np.asarray(different, dtype=np.int64)

    def first_used(self, sequences: Iterable[NDArray[np.integer]]) -> int | None:
        """The smallest of these ids that some token ids hold; None if they hold none."""
        if not len(self.ids):
            return None
        used = np.zeros(int(self.ids[-1]) + 1, dtype=np.bool_)
        for sequence in sequences:
            used[sequence[sequence < len(used)]] = True
        found = self.ids[used[self.ids]]
        return int(found[0]) if len(found) else None

    def describe(self, token_id: int) -> str:
        """Both sides of one difference, for a message: `id 7 is 'a' for ours and 'b' for theirs, whose 'a' is id 9`."""
        own, other = self.ours.spelling(token_id), self.theirs.spelling(token_id)
        ours, theirs = shlex.quote(self.ours.model), shlex.quote(self.theirs.model)
        text = f"id {token_id} is {_shown(own, self.ours, token_id)} for {ours}"
        text += f" and {_shown(other, self.theirs, token_id)} for {theirs}"
        elsewhere = None if own is None else self.theirs.id_of(own)
        return text if elsewhere in (None, token_id) else f"{text}, whose {own!r} is id {elsewhere}"


def _shown(spelling: str | None, tokens: ModelTokens, token_id: int) -> str:
    if spelling is not None:
        return repr(spelling)
    if tokens.rows is not None and token_id >= tokens.rows:
        return f"beyond the {tokens.rows} lm_head rows"
    return "no token"
