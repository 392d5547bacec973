"""What a row of another program says of an example, whatever its layout was, and what is wrong with it.

Shape letters: L tokens of a sequence, T its answer tokens, E entries of an answer token, K ranks that are kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import TaskError
from logitbank.storage import ExampleRecord
from logitbank.teacher_cache.exchange.cells import Ragged

ABSENT = -1  # in place of the token where an answer token has fewer entries than others
NO_PROBABILITY = -1e6  # nats; what is less is a filler, such as -1e9
TOO_LIKELY = 1e-3  # nats above 0 that rounding may leave of a log-probability
GOLD_DIFFERS = 0.1  # nats that two encodings of the same number may leave between them
NOT_LEARNT = -100


@dataclass(frozen=True)
class ForeignRow:
    """One example as another program wrote it.

    Attributes:
        place: file and row, for messages.
        example_id: None if the row has none.
        task, language: likewise.
        input_ids: (L,) int64.
        answer_positions: (T,) int64, ascending.
        token_ids: (T, E) int64, `ABSENT` if there is no entry.
        values: (T, E) float64, log-probabilities, or logits where there is a `logsumexp`; −inf without an entry.
        logsumexp: (T,) float64; None for log-probabilities.
        entropy: (T,) float64, nats; None if the row has none.
        gold: (T,) float64 value of the answer token itself, for one that is not among the entries; likewise.
        gold_rank: (T,) int64; likewise.
    """

    place: str
    example_id: str | None
    task: str | None
    language: str | None
    input_ids: NDArray[np.int64]
    answer_positions: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    values: NDArray[np.float64]
    logsumexp: NDArray[np.float64] | None = None
    entropy: NDArray[np.float64] | None = None
    gold: NDArray[np.float64] | None = None
    gold_rank: NDArray[np.int64] | None = None

    @property
    def answer_ids(self) -> NDArray[np.int64]:
        """(T,) int64, the answer tokens."""
        return self.input_ids[self.answer_positions]

    @property
    def entries(self) -> NDArray[np.int64]:
        """(T,) entries of each answer token."""
        return (self.token_ids != ABSENT).sum(axis=1)

    @property
    def mass(self) -> NDArray[np.float64]:
        """(T,) probability of all entries."""
        whole = 0.0 if self.logsumexp is None else self.logsumexp[:, None]
        total: NDArray[np.float64] = np.exp(self.values - whole).sum(axis=1)
        return total

    def digest(self) -> bytes:
        """Hash of all that the teacher said."""
        found = hashlib.blake2b(digest_size=16)
        for values in (self.token_ids, self.values, self.logsumexp, self.entropy, self.gold, self.gold_rank):
            found.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
        return found.digest()

    def record(self, example_id: str, task: str, language: str) -> ExampleRecord:
        """The example, with these for what the row does not say."""
        labels = np.full(len(self.input_ids), NOT_LEARNT, np.int64)
        labels[self.answer_positions] = self.answer_ids
        return ExampleRecord.from_labels(
            self.example_id or example_id,
            self.input_ids,  # type: ignore[arg-type]
            labels,  # type: ignore[arg-type]
            task=self.task or task,
            language=self.language or language,
        )

    def check(self, tokenizer_size: int, vocab_size: int, tolerance: float) -> None:
        """Refuse what no teacher can have meant.

        Args:
            tokenizer_size: entries have ids below this.
            vocab_size: tokens of the sequence have ids below this.
            tolerance: probability above 1 that all entries of an answer token may have together.

        Raises:
            TaskError: no answer token, an id outside the vocabulary, a token twice, NaN, or too much probability.
        """
        if not len(self.answer_positions):
            raise TaskError(f"{self.place}: expected at least one answer token, got none")
        if (self.input_ids < 0).any() or (self.input_ids >= vocab_size).any():
            wrong = self.input_ids[(self.input_ids < 0) | (self.input_ids >= vocab_size)][0]
            raise TaskError(f"{self.place}, input_ids: expected ids from 0 to {vocab_size - 1}, got {wrong}")
        present = self.token_ids != ABSENT
        outside = present & ((self.token_ids < 0) | (self.token_ids >= tokenizer_size))
        self._refuse(outside, self.token_ids, f"expected ids from 0 to {tokenizer_size - 1}")
        self._refuse(np.isnan(self.values) | np.isposinf(self.values), self.values, "expected finite numbers")
        if not np.isfinite(self.values.max(axis=1, initial=-np.inf)).all():
            self._refuse(~present.any(axis=1)[:, None], self.values, "expected log-probabilities", "none")
        if self.logsumexp is None:
            self._refuse(self.values > TOO_LIKELY, self.values, "expected log-probabilities, at most 0")
        for name in ("logsumexp", "entropy"):
            values = getattr(self, name)
            if values is not None:
                self._refuse(~np.isfinite(values)[:, None], values[:, None], f"expected a finite {name}")
        if self.gold is not None:
            differs = np.isfinite(values := self._listed_gold()) & (np.abs(values - self.gold) > GOLD_DIFFERS)
            self._refuse(differs[:, None], self.gold[:, None], "expected the same value as in the list")
        mass = self.mass
        self._refuse((mass > 1 + tolerance)[:, None], mass[:, None], "expected probabilities that sum to at most 1")
        ids = np.sort(np.where(present, self.token_ids, -1 - np.arange(self.token_ids.shape[1])), axis=1)
        twice = ids[:, 1:] == ids[:, :-1]
        self._refuse(twice, ids[:, 1:], "expected distinct tokens", " twice")

    def _refuse(
        self, wrong: NDArray[np.bool_], values: NDArray[np.floating | np.integer], expected: str, got: str = ""
    ) -> None:
        """TaskError that names the first answer token of which some entry is wrong; `got` is a word, or follows one."""
        if not wrong.any():
            return
        token, entry = np.argwhere(wrong)[0]
        found = got if got and not got.startswith(" ") else f"{values[token, entry]:g}{got}"
        raise TaskError(
            f"{self.place}, answer token {token + 1:,} (position {self.answer_positions[token]:,}): {expected}, "
            f"got {found}"
        )

    def ranked(self, top_k: int) -> Ranked:
        """The K most likely entries of each answer token, and what is known of the rest.

        Raises:
            TaskError: an answer token with fewer.
        """
        entries = self.entries
        self._refuse((entries < top_k)[:, None], entries[:, None], f"expected at least {top_k} ranks (--top-k)")
        order = np.argsort(-self.values, axis=1, kind="stable")
        ids = np.take_along_axis(self.token_ids, order, axis=1)
        values = np.take_along_axis(self.values, order, axis=1)
        whole = np.log(np.maximum(self.mass, 1.0)) if self.logsumexp is None else self.logsumexp
        listed = self._listed_gold()
        gold = listed if self.gold is None else np.where(np.isnan(self.gold), listed, self.gold)
        return Ranked(ids[:, :top_k], values[:, :top_k], whole, self.entropy, gold, self.gold_rank)

    def gold_ranks(self) -> NDArray[np.float64]:
        """(T,) where each answer token stands among the entries; inf where it does not."""
        value = self._listed_gold()
        ranks = (self.values > value[:, None]).sum(axis=1).astype(np.float64)
        return np.where(np.isnan(value), np.inf, ranks)

    def _listed_gold(self) -> NDArray[np.float64]:
        """(T,) the value of each answer token among the entries; NaN if it is not among them."""
        is_gold = self.token_ids == self.answer_ids[:, None]
        value = np.where(is_gold, self.values, -np.inf).max(axis=1, initial=-np.inf)
        return np.where(is_gold.any(axis=1), value, np.nan)


@dataclass(frozen=True)
class Ranked:
    """What a store keeps of a row.

    Attributes:
        token_ids: (T, K) int64, most likely first.
        values: (T, K) float64.
        logsumexp: (T,) float64.
        entropy: (T,) float64; None if it is not known.
        gold: (T,) float64; NaN if it is not known.
        gold_rank: (T,) int64; None if it is not known.
    """

    token_ids: NDArray[np.int64]
    values: NDArray[np.float64]
    logsumexp: NDArray[np.float64]
    entropy: NDArray[np.float64] | None
    gold: NDArray[np.float64]
    gold_rank: NDArray[np.int64] | None


def entries_of(ids: Ragged, values: Ragged) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(T, E) tokens and values of as many runs of both."""
    return without_fillers(ids.table(ABSENT), values.table(-np.inf))


def without_fillers(
    ids_TE: NDArray[np.int64], values_TE: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The same with what is there to fill a row up marked as absent."""
    absent = (values_TE < NO_PROBABILITY) | (ids_TE == ABSENT)
    if not absent.any():
        return ids_TE, values_TE
    return np.where(absent, ABSENT, ids_TE), np.where(absent, -np.inf, values_TE)
