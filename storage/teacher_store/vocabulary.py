"""Short codes for tokens, learned from a pilot and then frozen: small numbers for what a teacher often ranks high.

Which tokens a teacher ranks high depends most on which one it ranks first: after a digit come digits. So
every common top token, a *context*, has its own *front*, the tokens that follow it most often; all other
tokens are numbered by their frequency in the whole pilot.

Shape letters: V tokens, M contexts, F tokens per front, T answer tokens, K ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError

CONTEXTS = 128  # at most
CONTEXT_ROWS = 2  # a top token seen less often in the pilot is not a context
FRONT = 512  # at most
FIRST_RANKS = 16  # a rank r counts 1 / (1 + r / 16) in the pilot: fewer ranks than all are read often


@dataclass(frozen=True)
class Vocabulary:
    """The frozen numbering of a store's tokens.

    Attributes:
        tokens: (V,) int32, a permutation: the token at each position, frequent tokens first.
        contexts: (M,) int32, the top tokens that have a front of their own.
        fronts: (M + 1, F) uint32 positions; row 0 (0, 1, 2 …) serves rows whose top token is not a context.
    """

    tokens: NDArray[np.int32]
    contexts: NDArray[np.int32]
    fronts: NDArray[np.uint32]

    def __post_init__(self) -> None:
        size = len(self.tokens)
        if not np.array_equal(np.sort(self.tokens), np.arange(size)):
            raise StoreError(f"vocabulary: expected a permutation of {size} token ids")
        if self.fronts.shape[0] != len(self.contexts) + 1 or not 1 <= self.fronts.shape[1] <= size:
            raise StoreError(f"vocabulary: {self.fronts.shape} fronts do not fit {len(self.contexts)} contexts")
        ordered = np.sort(self.fronts, axis=1)
        if ordered[:, -1].max() >= size or (ordered[:, 1:] == ordered[:, :-1]).any():
            raise StoreError("vocabulary: expected distinct positions in each front")

    @cached_property
    def _row_of_token(self) -> NDArray[np.int64]:
        """(V,) the row of `fronts` that serves rows with this top token."""
        row_of_token = np.zeros(len(self.tokens), dtype=np.int64)
        row_of_token[self.contexts] = np.arange(1, len(self.contexts) + 1)
        return row_of_token

    @cached_property
    def _meaning(self) -> NDArray[np.int32]:
        """((M + 1) F + V,) the token of each code: first all fronts end to end, then all tokens by position."""
        meaning: NDArray[np.int32] = np.concatenate([self.tokens[self.fronts].ravel(), self.tokens])
        return meaning

    @classmethod
    def learn(cls, pilot: NDArray[np.int32], tokenizer_size: int) -> Vocabulary:
        """Learn the numbering from the (P, K) top tokens of a pilot; ties go to the smaller id."""
        weight = np.rint(2**16 / (1 + np.arange(pilot.shape[1]) / FIRST_RANKS))
        weights = np.broadcast_to(weight, pilot.shape)
        count = np.bincount(pilot.ravel(), weights.ravel(), tokenizer_size)
        tokens = np.argsort(-count, kind="stable").astype(np.int32)
        position = np.empty(tokenizer_size, dtype=np.int64)
        position[tokens] = np.arange(tokenizer_size)
        width = min(FRONT, tokenizer_size)
        seen = max(width, int((count > 0).sum()))
        tops, rows = np.unique(pilot[:, 0], return_counts=True)
        common = np.argsort(-rows, kind="stable")[:CONTEXTS]
        contexts = tops[common[rows[common] >= CONTEXT_ROWS]].astype(np.int32)
        fronts = [np.arange(width)]
        for context in contexts:
            chosen = pilot[:, 0] == context
            own = np.bincount(position[pilot[chosen]].ravel(), weights[chosen].ravel(), tokenizer_size)
            # The whole pilot, as one more row, orders what the context says nothing about.
            score = own[:seen] + count[tokens[:seen]] / len(pilot)
            fronts.append(np.argsort(-score, kind="stable")[:width])
        return cls(tokens, contexts, np.stack(fronts).astype(np.uint32))

    @classmethod
    def from_arrays(cls, open_array: Callable[[str], Any]) -> Vocabulary:
        """The numbering that `arrays` was stored from; `open_array` opens one of them by name."""
        return cls(*(np.asarray(open_array(name)[:]) for name in ("tokens", "contexts", "fronts")))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a store keeps of it."""
        return {"tokens": self.tokens, "contexts": self.contexts, "fronts": self.fronts}

    def hash(self) -> str:
        """SHA-256 over all of it."""
        digest = hashlib.sha256()
        for values in self.arrays().values():
            digest.update(repr(values.shape).encode() + values.astype("<i8").tobytes())
        return digest.hexdigest()

    def codes(self, token_ids: NDArray[np.int32]) -> NDArray[np.uint32]:
        """The (T, K) code of each token: below F a place in its row's front, else F + position; rank 0: position."""
        width = self.fronts.shape[1]
        position = np.empty(len(self.tokens), dtype=np.uint32)
        position[self.tokens] = np.arange(len(self.tokens))
        codes = np.empty(token_ids.shape, dtype=np.uint32)
        front_row = self._row_of_token[token_ids[:, 0]]
        code_of_token = position + np.uint32(width)
        for row in np.unique(front_row):
            chosen, members = front_row == row, self.tokens[self.fronts[row]]
            code_of_token[members] = np.arange(width)
            codes[chosen] = code_of_token[token_ids[chosen]]
            code_of_token[members] = position[members] + np.uint32(width)
        codes[:, 0] = position[token_ids[:, 0]]
        return codes

    def token_ids(self, codes: NDArray[np.uint32]) -> NDArray[np.int32]:
        """The (T, K) tokens that codes stand for. StoreError for a code that stands for none."""
        width, fronts_end = self.fronts.shape[1], self.fronts.size
        for found, end in ((codes[:, :1], len(self.tokens)), (codes, width + len(self.tokens))):
            if found.max(initial=0) >= end:
                raise StoreError(f"vocabulary: expected codes below {end}, got {found.max()}")
        top_tokens = self.tokens[codes[:, 0]]
        front_start = (self._row_of_token[top_tokens] * width).astype(np.uint32)[:, None]
        # A code of F or more is counted from the end of all fronts, less the one that it leaves behind. A product, as
        # a choice between two would be a branch for every code; `wrap`, as no code is out of bounds.
        index = (codes >= width) * (np.uint32(fronts_end - width) - front_start)
        index += codes
        index += front_start
        tokens: NDArray[np.int32] = self._meaning.take(index.astype(np.intp), mode="wrap")
        tokens[:, 0] = top_tokens
        return tokens
