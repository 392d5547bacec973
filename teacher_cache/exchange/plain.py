"""The plain layout: a row for each answer token, under the names that this package uses itself.

Shape letters: L tokens of a sequence, T its answer tokens, K ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import TaskError
from logitbank.teacher_cache.exchange.cells import Cells, Kind, Ragged
from logitbank.teacher_cache.exchange.foreign import ForeignRow, entries_of
from logitbank.teacher_cache.exchange.layouts import (
    LayoutOptions,
    RowReader,
    learned_positions,
    optional_text,
    require,
)

COLUMNS = (
    "id",
    "task",
    "language",
    "input_ids",
    "labels",
    "answer_positions",
    "top_ids",
    "top_logprobs",
    "logits",
    "logsumexp",
    "entropy",
    "gold_logprob",
    "gold_logit",
    "gold_rank",
)


class Plain:
    """`input_ids` (L), `labels` (L) or `answer_positions` (T), `top_ids` (T, K) and `top_logprobs` (T, K)."""

    def columns(self, options: LayoutOptions) -> Collection[str]:
        """See `Layout`."""
        return COLUMNS

    def recognises(self, columns: Collection[str], options: LayoutOptions) -> bool:
        """See `Layout`."""
        return "top_ids" in columns or "top_logprobs" in columns

    def reader(self, first: Sequence[Cells], options: LayoutOptions) -> RowReader:
        """See `Layout`."""
        return _PlainReader()


class _PlainReader:
    tolerance = 0.01
    about = ""

    def read(self, cells: Cells) -> ForeignRow:
        """See `RowReader`. Logits come before log-probabilities, where a row has both; one needs a `logsumexp`."""
        raw = "logits" in cells.columns
        values = "logits" if raw else "top_logprobs"
        require(cells, *(("logsumexp",) if raw else ()))
        require(cells, "input_ids", "top_ids", values)
        input_ids = cells.vector("input_ids", "whole")
        positions = _positions(cells, input_ids)
        ids, numbers = cells.matrix("top_ids", "whole"), cells.matrix(values, "real")
        for name, found in (("top_ids", ids), (values, numbers)):
            if len(found) != len(positions):
                raise TaskError(
                    f"{cells.place}, {name}: expected {len(positions):,} lists, one for each answer token, "
                    f"got {len(found):,}"
                )
        require_pairs(cells, ids, numbers, ("top_ids", values))
        token_ids, entries = entries_of(ids, numbers)
        logsumexp = _scalars(cells, "logsumexp", len(positions), "real")
        gold = _scalars(cells, "gold_logit" if raw else "gold_logprob", len(positions), "real")
        if logsumexp is not None and not raw:
            entries = entries + logsumexp[:, None]
            gold = None if gold is None else gold + logsumexp
        return ForeignRow(
            place=cells.place,
            example_id=optional_text(cells, "id"),
            task=optional_text(cells, "task"),
            language=optional_text(cells, "language"),
            input_ids=input_ids,
            answer_positions=positions,
            token_ids=token_ids,
            values=entries,
            logsumexp=logsumexp,
            entropy=_scalars(cells, "entropy", len(positions), "real"),
            gold=gold,
            gold_rank=_scalars(cells, "gold_rank", len(positions), "whole"),
        )


def require_pairs(cells: Cells, ids: Ragged, values: Ragged, names: tuple[str, str]) -> None:
    """Raise `TaskError` if there are not as many tokens as values."""
    if len(ids) != len(values):
        raise TaskError(f"{cells.place}, {names[1]}: expected {len(ids):,} lists, as {names[0]}, got {len(values):,}")
    wrong = np.flatnonzero(ids.lengths != values.lengths)
    if len(wrong):
        at = int(wrong[0])
        raise TaskError(
            f"{cells.place}, {names[1]}: expected as many values as {names[0]} in list {at + 1:,} "
            f"({ids.lengths[at]}), got {values.lengths[at]}"
        )


def _positions(cells: Cells, input_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    if "answer_positions" not in cells.columns:
        require(cells, "labels")
        return learned_positions(cells, input_ids)
    positions = cells.vector("answer_positions", "whole")
    inside = (positions > 0) & (positions < len(input_ids))
    if not inside.all() or (np.diff(positions) <= 0).any():
        raise TaskError(
            f"{cells.place}, answer_positions: expected ascending positions from 1 to {len(input_ids) - 1}, "
            f"got {positions.tolist() if len(positions) < 9 else f'{positions[:8].tolist()} …'}"
        )
    return positions


def _scalars(cells: Cells, column: str, tokens: int, kind: Kind) -> NDArray[Any] | None:
    if column not in cells.columns:
        return None
    values = cells.vector(column, kind)
    if len(values) != tokens:
        raise TaskError(
            f"{cells.place}, {column}: expected {tokens:,} numbers, one for each answer token, got {len(values):,}"
        )
    return values


LAYOUT = Plain()
