"""axolotl's layout for knowledge distillation, as its loaders read it and its preprocessing writes it.

The first version has a list of `{"token": "token_id:123", "logprob": -0.1}` for each position, as vLLM's server
answers. The second has two lists: log-probabilities and `target_token_ids`. Rows belong to the end of `input_ids`. A
row predicts the token at its own position, as vLLM gives it for a prompt, or the next one, as the trainer's loss reads
it; the tokens of the sequences tell which.

Shape letters: L tokens of a sequence, R rows of log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import TaskError, counted
from logitbank.teacher_cache.exchange.cells import Cells, Ragged
from logitbank.teacher_cache.exchange.foreign import ABSENT, NO_PROBABILITY, ForeignRow, entries_of
from logitbank.teacher_cache.exchange.layouts import (
    LayoutOptions,
    Predicts,
    RowReader,
    learned_positions,
    optional_text,
    require,
)
from logitbank.teacher_cache.exchange.plain import require_pairs

FIELDS = ("target_logprobs", "logprobs")
COLUMNS = ("id", "input_ids", "labels", "attention_mask", "target_token_ids", "target_mask", *FIELDS)
PREFIX = "token_id:"
SURE = 4.0  # standard errors between the two readings of the rows


class Axolotl:
    """`input_ids`, `labels`, and `logprobs` or `target_logprobs`."""

    def columns(self, options: LayoutOptions) -> Collection[str]:
        """See `Layout`."""
        return COLUMNS if options.logprobs_field is None else (*COLUMNS, options.logprobs_field)

    def recognises(self, columns: Collection[str], options: LayoutOptions) -> bool:
        """See `Layout`."""
        return _field(columns, options) is not None

    def reader(self, first: Sequence[Cells], options: LayoutOptions) -> RowReader:
        """See `Layout`."""
        if options.row_predicts is not None:
            return _AxolotlReader(options, options.row_predicts, "")
        return _AxolotlReader(options, *_told(first, options))


class _AxolotlReader:
    tolerance = 0.01

    def __init__(self, options: LayoutOptions, predicts: Predicts, about: str) -> None:
        self.about = about
        self._options = options
        self._ahead = 1 if predicts == "next" else 0

    def read(self, cells: Cells) -> ForeignRow:
        """See `RowReader`. Without labels, whatever has a row is learned."""
        ids, rows = _aligned(cells, self._options)
        if "labels" in cells.columns:
            positions = learned_positions(cells, cells.vector("input_ids", "whole"))
            positions -= _padding(cells)[0]
        else:
            positions = np.flatnonzero(rows.filled) + self._ahead
        positions = positions[(positions > 0) & (positions < len(ids))]
        lacking = positions[~rows.filled[positions - self._ahead]]
        if len(lacking):
            raise TaskError(
                f"{cells.place}: expected log-probabilities of every token that is learned, got none of the one at "
                f"position {lacking[0]:,}; {counted(len(lacking), 'token')} in all"
            )
        chosen = positions - self._ahead - rows.start
        token_ids, values = entries_of(rows.ids.take(chosen), rows.values.take(chosen))
        return ForeignRow(
            cells.place, optional_text(cells, "id"), None, None, ids, positions, token_ids=token_ids, values=values
        )


class _Rows:
    """The rows of a sequence.

    Attributes:
        ids, values: R runs of tokens and log-probabilities.
        start: the position of the first.
        filled: (L,) bool, which positions have a row that says something.
    """

    def __init__(self, ids: Ragged, values: Ragged, length: int, mask: Ragged | None) -> None:
        self.ids, self.values = ids, values
        self.start = length - len(values)
        self.filled = np.zeros(length, np.bool_)
        says = values.values > NO_PROBABILITY
        says |= np.isnan(values.values)  # which is refused later
        if mask is not None:
            says &= mask.values != 0
        self.filled[self.start :] = np.add.reduceat(np.append(says, False), values.offsets[:-1]) > 0
        self.filled[self.start :] &= values.lengths > 0


def _aligned(cells: Cells, options: LayoutOptions) -> tuple[NDArray[np.int64], _Rows]:
    """The tokens of a sequence without its padding, and the rows at their positions."""
    field = _field(cells.columns, options)
    if field is None:
        require(cells, options.logprobs_field or FIELDS[1])
    require(cells, "input_ids")
    assert field is not None
    ids = cells.vector("input_ids", "whole")
    token_ids, values = _pairs(cells, field)
    mask = cells.matrix("target_mask", "whole") if "target_mask" in cells.columns else None
    if mask is not None and not np.array_equal(mask.offsets, values.offsets):
        raise TaskError(f"{cells.place}, target_mask: expected as many numbers as {field}, in lists of the same length")
    if len(values) > len(ids):
        raise TaskError(
            f"{cells.place}, {field}: expected at most {len(ids):,} lists, as there are input_ids, got {len(values):,}"
        )
    start, stop = _padding(cells)
    if start or stop < len(ids):
        if len(values) != len(ids):
            raise TaskError(
                f"{cells.place}, {field}: expected a list for each of the {len(ids):,} input_ids, which are padded, "
                f"got {len(values):,}"
            )
        kept = np.arange(start, stop)
        token_ids, values = token_ids.take(kept), values.take(kept)
        mask = None if mask is None else mask.take(kept)
        ids = ids[start:stop]
    return ids, _Rows(token_ids, values, len(ids), mask)


def _padding(cells: Cells) -> tuple[int, int]:
    """Where the sequence begins and ends among its padding."""
    length = len(cells.vector("input_ids", "whole"))
    if "attention_mask" not in cells.columns:
        return 0, length
    mask = cells.vector("attention_mask", "whole")
    seen = np.flatnonzero(mask)
    if len(mask) != length or not len(seen) or (mask[seen[0] : seen[-1] + 1] != 1).any():
        raise TaskError(
            f"{cells.place}, attention_mask: expected {length:,} numbers, 1 for one sequence and 0 around it; rows "
            "that pack several sequences cannot be imported"
        )
    return int(seen[0]), int(seen[-1]) + 1


def _field(columns: Collection[str], options: LayoutOptions) -> str | None:
    """The column of log-probabilities."""
    names = FIELDS if options.logprobs_field is None else (options.logprobs_field,)
    return next((name for name in names if name in columns), None)


def _pairs(cells: Cells, field: str) -> tuple[Ragged, Ragged]:
    """Tokens and log-probabilities of each row."""
    entries = cells.entries(field)
    if entries is None:
        require(cells, "target_token_ids")
        ids, values = cells.matrix("target_token_ids", "whole"), cells.matrix(field, "real")
        require_pairs(cells, ids, values, ("target_token_ids", field))
        return ids, values
    if not {"token", "logprob"} <= entries.keys():
        raise TaskError(
            f"{cells.place}, {field}: expected token and logprob in each entry, got {', '.join(entries) or 'nothing'}"
        )
    tokens, values = entries["token"], entries["logprob"]
    try:
        numbers = [int(token.removeprefix(PREFIX)) if token.startswith(PREFIX) else None for token in tokens.values]
    except (AttributeError, ValueError):
        numbers = [None]
    if None in numbers:
        wrong = next((token for token in tokens.values if not str(token).startswith(PREFIX)), "something else")
        raise TaskError(
            f"{cells.place}, {field}: expected tokens written as {PREFIX}123, got {wrong!r}; ask vLLM for them with "
            "return_tokens_as_token_ids"
        )
    values = Ragged(values.values.astype(np.float64), values.offsets)
    return Ragged(np.asarray(numbers, np.int64), tokens.offsets), values


def _told(first: Sequence[Cells], options: LayoutOptions) -> tuple[Predicts, str]:
    """Which token a row predicts: under which reading the teacher finds the sequences' own tokens likely.

    Raises:
        TaskError: neither reading is clearly the better one.
    """
    own, following = [], []
    for cells in first:
        ids, rows = _aligned(cells, options)
        both = np.flatnonzero(rows.filled[1:] & rows.filled[:-1]) + 1
        own.append(_likelihood(rows, both, ids[both]))
        following.append(_likelihood(rows, both - 1, ids[both]))
    gains = np.concatenate(own) - np.concatenate(following)
    error = gains.std() / math.sqrt(len(gains)) if len(gains) else 0.0
    if not len(gains) or abs(gains.mean()) <= SURE * error:
        raise TaskError(
            f"{first[0].place}: cannot tell from the first {counted(len(first), 'row')} which token the "
            "log-probabilities at a position predict; add --row-predicts own or --row-predicts next"
        )
    predicts: Predicts = "own" if gains.mean() > 0 else "next"
    means = [float(np.concatenate(parts).mean()) for parts in (own, following)]
    chosen, other = means if predicts == "own" else means[::-1]
    where = "its own token" if predicts == "own" else "the token after it"
    return predicts, f"a row predicts {where}: mean probability {chosen:.3f}, otherwise {other:.3f}"


def _likelihood(rows: _Rows, positions: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability that the rows at some positions give to some tokens."""
    chosen = positions - rows.start
    ids, values = entries_of(rows.ids.take(chosen), rows.values.take(chosen))
    found: NDArray[np.float64] = np.where((ids == tokens[:, None]) & (ids != ABSENT), np.exp(values), 0.0).sum(axis=1)
    return found


LAYOUT = Axolotl()
