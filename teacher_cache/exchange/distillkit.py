"""DistillKit's layout of captured logits: the whole sequence, compressed log-probabilities, and packed token ids.

Row i of both predicts token i + 1. A capture by vLLM has one row fewer than tokens, because nothing is predicted after
the last. All tokens are learned, but the first if there are no labels.

Shape letters: L tokens of a sequence, R rows of log-probabilities, K entries of each.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Collection, Sequence

import fsspec
import numpy as np
from numpy.typing import NDArray

from logitbank.errors import TaskError
from logitbank.teacher_cache.exchange.cells import Cells
from logitbank.teacher_cache.exchange.compressed import CompressedLogprobs
from logitbank.teacher_cache.exchange.foreign import ForeignRow, without_fillers
from logitbank.teacher_cache.exchange.layouts import (
    LayoutOptions,
    RowReader,
    learned_positions,
    optional_text,
    require,
)

VALUES, IDS = "compressed_logprobs", "bytepacked_indices"
LEGACY = "packed_indices"
COLUMNS = ("id", "input_ids", "labels", VALUES, IDS, LEGACY)
CONFIG_NAME = "compression_config.yaml"


class DistillKit:
    """`input_ids`, `compressed_logprobs` and `bytepacked_indices`, with a `compression_config.yaml`."""

    def columns(self, options: LayoutOptions) -> Collection[str]:
        """See `Layout`."""
        return COLUMNS

    def recognises(self, columns: Collection[str], options: LayoutOptions) -> bool:
        """See `Layout`."""
        return VALUES in columns or LEGACY in columns

    def reader(self, first: Sequence[Cells], options: LayoutOptions) -> RowReader:
        """See `Layout`."""
        if LEGACY in first[0].columns:
            raise TaskError(
                f"{first[0].place}: holds DistillKit's legacy compression ({LEGACY}); expected {VALUES} and {IDS}, "
                "which its current capture writes"
            )
        return _DistillKitReader(_compressor(options))


class _DistillKitReader:
    tolerance = 0.05  # a polynomial meets the sum of probabilities no better

    def __init__(self, compressor: CompressedLogprobs) -> None:
        self._compressor = compressor
        self.about = compressor.about

    def read(self, cells: Cells) -> ForeignRow:
        """See `RowReader`."""
        require(cells, "input_ids", VALUES, IDS)
        input_ids = cells.vector("input_ids", "whole")
        values = self._bytes(cells, VALUES, self._compressor.value_bytes)
        packed = self._bytes(cells, IDS, self._compressor.id_bytes)
        if len(values) != len(packed) or len(values) not in (len(input_ids) - 1, len(input_ids)):
            raise TaskError(
                f"{cells.place}, {VALUES}: expected {len(input_ids) - 1:,} rows, for all {len(input_ids):,} input_ids "
                f"but the first, and as many of {IDS}, got {len(values):,} and {len(packed):,}"
            )
        labelled = "labels" in cells.columns
        positions = learned_positions(cells, input_ids) if labelled else np.arange(1, len(input_ids))
        rows = positions - 1
        token_ids, entries = without_fillers(self._compressor.ids(packed[rows]), self._compressor.values(values[rows]))
        return ForeignRow(
            cells.place,
            optional_text(cells, "id"),
            None,
            None,
            input_ids,
            positions,
            token_ids=token_ids,
            values=entries,
        )

    def _bytes(self, cells: Cells, column: str, width: int) -> NDArray[np.uint8]:
        """(R, width) the bytes of each row."""
        found = cells.matrix(column, "whole")
        wrong = np.flatnonzero(found.lengths != width)
        if len(wrong):
            raise TaskError(
                f"{cells.place}, {column}: expected {width} bytes a row, as {CONFIG_NAME} says, got "
                f"{found.lengths[wrong[0]]} in row {wrong[0] + 1:,}; use the one that was written with the files"
            )
        if ((found.values < 0) | (found.values > 255)).any():
            raise TaskError(f"{cells.place}, {column}: expected bytes, got numbers outside 0 to 255")
        return found.values.astype(np.uint8).reshape(len(found), width)


def _compressor(options: LayoutOptions) -> CompressedLogprobs:
    """What the compressor was told, from the file that was named, or the one beside the first file."""
    path = options.compression or posixpath.join(posixpath.dirname(options.files[0]), CONFIG_NAME)
    try:
        with fsspec.open(path, "r", encoding="utf-8") as file:
            text = file.read()
    except Exception as error:  # each client has its own family
        raise TaskError(
            f"--compression-config: {shlex.quote(path)} cannot be read ({type(error).__name__}); give the "
            f"{CONFIG_NAME} that DistillKit wrote with the rows"
        ) from error
    return CompressedLogprobs.of(text, f"--compression-config {shlex.quote(path)}")


LAYOUT = DistillKit()
