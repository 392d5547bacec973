"""Teacher signal of a run of answer tokens, as plain arrays.

Shape letters: T answer tokens, K stored ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import StoreError

TAIL_FLOOR = 1e-6  # float32 logits of size 20 leave an error of about this in a sum of probabilities


@dataclass(init=False, eq=False)
class TeacherRows:
    """What the teacher said at T consecutive answer positions; logarithms are natural (nats).

    Attributes:
        token_ids: (T, K) int32, the K largest logits' tokens, largest first.
        logits: (T, K) float32, their raw logits, not increasing along K; -inf is legal below rank 0.
        logsumexp: (T,) float32, over all rows of the `lm_head`.
        entropy: (T,) float32, of the full distribution at temperature 1.
        gold_logit: (T,) float32, raw logit of the gold answer token.
        gold_rank: (T,) int32, how many tokens have a larger logit than the gold one.
        log_tail: (T,) float32, log of the probability of all tokens that are not among the K; by default one
            minus the K probabilities, which is exact for logits that are.
        sample_ids: (T, M) int32, distinct tokens drawn from the teacher's distribution; M is 0 in a store
            without draws. See `samples.py`.
        sample_counts: (T, M) int32, how often each was drawn; 0 at places without a token.
        sample_log_mass: (T,) float32, log of the probability of all tokens that could be drawn.
    """

    token_ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    logsumexp: NDArray[np.float32]
    entropy: NDArray[np.float32]
    gold_logit: NDArray[np.float32]
    gold_rank: NDArray[np.int32]
    log_tail: NDArray[np.float32]
    sample_ids: NDArray[np.int32]
    sample_counts: NDArray[np.int32]
    sample_log_mass: NDArray[np.float32]

    def __init__(
        self,
        token_ids: NDArray[np.int32],
        logits: NDArray[np.float32],
        logsumexp: NDArray[np.float32],
        entropy: NDArray[np.float32],
        gold_logit: NDArray[np.float32],
        gold_rank: NDArray[np.int32],
        log_tail: NDArray[np.float32] | None = None,
        sample_ids: NDArray[np.int32] | None = None,
        sample_counts: NDArray[np.int32] | None = None,
        sample_log_mass: NDArray[np.float32] | None = None,
    ) -> None:
        """Without draws leave the last three out; without a `log_tail` it is computed."""
        tokens = len(token_ids)
        self.token_ids = token_ids
        self.logits = logits
        self.logsumexp = logsumexp
        self.entropy = entropy
        self.gold_logit = gold_logit
        self.gold_rank = gold_rank
        self.log_tail = log_tail_of(logits, logsumexp) if log_tail is None else log_tail
        self.sample_ids = np.empty((tokens, 0), np.int32) if sample_ids is None else sample_ids
        self.sample_counts = np.empty((tokens, 0), np.int32) if sample_counts is None else sample_counts
        no_mass = np.full(tokens, -np.inf, np.float32)
        self.sample_log_mass = no_mass if sample_log_mass is None else sample_log_mass

    def __len__(self) -> int:
        return len(self.token_ids)

    def take(self, rows: NDArray[np.int64] | slice) -> TeacherRows:
        """The given rows, in the given order; those of a slice are shared, not copied."""
        return TeacherRows(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def check(self, tokenizer_size: int, vocab_size: int) -> None:
        """Refuse a signal that no teacher can have meant.

        Raises:
            StoreError: a wrong dtype or shape, NaN or +inf anywhere, -inf at rank 0, logits that
                increase, ids outside the tokenizer, a scalar outside its range.
        """
        for problem in self._problems(tokenizer_size, vocab_size):
            raise StoreError(f"teacher signal: {problem}; this shard was not written")

    def _problems(self, tokenizer_size: int, vocab_size: int) -> Sequence[str]:
        tokens, k = self.token_ids.shape
        found = []
        for name, dtype in (
            ("token_ids", np.int32),
            ("logits", np.float32),
            ("logsumexp", np.float32),
            ("entropy", np.float32),
            ("gold_logit", np.float32),
            ("gold_rank", np.int32),
            ("log_tail", np.float32),
        ):
            array = getattr(self, name)
            shape = (tokens, k) if name in ("token_ids", "logits") else (tokens,)
            if array.dtype != dtype or array.shape != shape:
                found.append(f"{name}: expected {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
        if found or tokens == 0:
            return found
        if np.isnan(self.logits).any() or np.isposinf(self.logits).any():
            found.append("logits: expected finite numbers (or -inf below rank 0), got NaN or +inf")
        elif not np.isfinite(self.logits[:, 0]).all():
            found.append("logits: expected a finite largest logit, got -inf")
        elif (self.logits[:, 1:] > self.logits[:, :-1]).any():
            found.append("logits: expected ranks in falling order, got an increase")
        for name in ("logsumexp", "entropy"):
            if not np.isfinite(getattr(self, name)).all():
                found.append(f"{name}: expected finite numbers, got NaN or infinity")
        if np.isnan(self.gold_logit).any() or np.isposinf(self.gold_logit).any():
            found.append("gold_logit: expected numbers, got NaN or +inf")
        if np.isnan(self.log_tail).any() or (self.log_tail > 0).any():
            found.append("log_tail: expected logarithms of probabilities, got NaN or more than 0")
        if self.token_ids.min() < 0 or self.token_ids.max() >= tokenizer_size:
            found.append(f"token_ids: expected 0 to {tokenizer_size - 1}, got up to {self.token_ids.max()}")
        if self.gold_rank.min() < 0 or self.gold_rank.max() >= vocab_size:
            found.append(f"gold_rank: expected 0 to {vocab_size - 1}, got {self.gold_rank.max()}")
        return found


def concatenate(parts: Sequence[TeacherRows]) -> TeacherRows:
    """Join rows end to end; all parts hold the same K."""
    return TeacherRows(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(TeacherRows)})


def log_tail_of(logits: NDArray[np.float32], logsumexp: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log of the probability outside the (T, K) logits, (T,), no less than what rounding leaves of it."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is not a number is refused by `check`
        mass = np.exp(logits - logsumexp[:, None].astype(np.float64)).sum(axis=1)
        tail: NDArray[np.float32] = np.log(np.clip(1 - mass, TAIL_FLOOR, 1.0)).astype(np.float32)
    return tail
