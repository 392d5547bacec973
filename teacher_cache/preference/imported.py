"""Logits that another program computed, from `.npy` files of one row per comparison.

Shape letters: N rows of the training file that have text, n rows of a fold, C classes.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from logitbank.configs import ConfigError
from logitbank.errors import counted
from logitbank.preference import CLASSES
from logitbank.storage import LabelStoreBuilder, Scorer
from logitbank.tasks.preference import Prepared, ReadPairs

IMPORTED = {"source": "imported logits"}  # the identity of a view that holds them
NAMED = 5  # rows that a message names


@dataclass(frozen=True)
class FoldLogits:
    """The logits of one fold.

    Attributes:
        file: that they came from.
        sha256: of the file.
        logits_NC: (n, C) float32, in the order of the store.
    """

    file: Path
    sha256: str
    logits_NC: NDArray[np.float32]

    @property
    def scorer(self) -> Scorer:
        """What shards record about them: it is not proven what the teacher had seen."""
        return Scorer(str(self.file), self.sha256, details={"imported": True})


def read_logits(pattern: str, asked: Sequence[int], prepared: Prepared, file_rows: ReadPairs) -> dict[int, FoldLogits]:
    """The logits of folds, from one file or from one for each fold.

    A file has a row for each row of `preference.train` that has text, in its order; rows that were merged, held out or
    dropped later are skipped. A file of one fold may instead have a row for each id that `folds.json` lists for it.

    Args:
        pattern: glob of `.npy` files; several belong to the folds in the order of the numbers in their names.
        asked: the folds to import; none for all.
        prepared: the rows of the store.
        file_rows: the rows of the training file.

    Returns:
        The logits of each fold.

    Raises:
        ConfigError: no file, as many as are neither one nor one a fold, or one whose array is not such logits.
    """
    folds = list(asked or range(len(prepared.report.folds)))
    paths = [Path(path) for path in sorted(LocalFileSystem().glob(pattern), key=_natural)]
    if not paths:
        raise ConfigError(f"--logits: no file matches {shlex.quote(pattern)}")
    if len(paths) not in (1, len(folds)):
        raise ConfigError(
            f"--logits: expected one file, or one for each of {counted(len(folds), 'fold')}, got "
            f"{len(paths)}: {', '.join(map(str, paths))}"
        )
    place = {pair.row_id: row for row, pair in enumerate(file_rows.pairs)}
    found = {}
    for fold, path in zip(folds, paths * len(folds) if len(paths) == 1 else paths, strict=False):
        rows = np.flatnonzero(prepared.folds == fold)
        ids = [prepared.train[row].row_id for row in rows]
        array_NC = _load(path)
        if len(array_NC) == len(place):
            array_NC = array_NC[[place[row] for row in ids]]
        elif len(array_NC) != len(ids):
            raise _other_rows(path, array_NC.shape, file_rows, fold, len(ids))
        _check_values(path, array_NC, ids)
        found[fold] = FoldLogits(path, hashlib.sha256(path.read_bytes()).hexdigest(), array_NC.astype(np.float32))
    return found


def write_logits(builder: LabelStoreBuilder, view: str, logits: Mapping[int, FoldLogits]) -> int:
    """Write every shard of these folds that a view still lacks; how many rows that were.

    Raises:
        StoreError: a view that a teacher scored, or a fold that was started with another file.
    """
    builder.add_view(view, IMPORTED, {})
    written = 0
    for fold, found in logits.items():
        first = builder.plan.rows_of_fold(fold).start
        for shard in builder.missing_shards(view, fold):
            rows = builder.shard_rows(shard)
            builder.write_shard(view, shard, found.logits_NC[rows.start - first : rows.stop - first], found.scorer)
            written += len(rows)
    return written


def _natural(path: str) -> list[str | int]:
    """Numbers in names count as numbers: fold 10 comes after fold 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def _load(path: Path) -> NDArray[np.floating]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"--logits: {path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"--logits: {path}: expected one array (.npy), got an archive of several")
    if array.ndim != 2 or array.shape[1] != len(CLASSES) or not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(
            f"--logits: {path}: expected floats of shape (rows, {len(CLASSES)}), the logits of {', '.join(CLASSES)}, "
            f"got {array.shape} of {array.dtype}"
        )
    return array


def _other_rows(path: Path, shape: tuple[int, ...], file_rows: ReadPairs, fold: int, fold_rows: int) -> ConfigError:
    dropped = file_rows.left_out
    without_text = ""
    if dropped:
        named = ", ".join(dropped[:NAMED]) + (", …" if len(dropped) > NAMED else "")
        without_text = f"; {counted(len(dropped), 'row')} without text dropped ({named})"
    return ConfigError(
        f"--logits: {path}: expected {len(file_rows.pairs):,} rows (preference.train in its order"
        f"{without_text}) or {fold_rows:,} (fold {fold} in the order of folds.json), got {shape[0]:,}"
    )


def _check_values(path: Path, array_NC: NDArray[np.floating], ids: Sequence[str]) -> None:
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(array_NC.astype(np.float32)).all(axis=1))
    if len(bad):
        raise ConfigError(
            f"--logits: {path}: expected finite numbers, got {array_NC[bad[0]].tolist()} for row {ids[bad[0]]} "
            f"({counted(len(bad), 'such row')})"
        )
    if (array_NC >= 0).all() and np.allclose(array_NC.sum(axis=1), 1, atol=1e-3):
        raise ConfigError(f"--logits: {path}: expected raw logits, got probabilities; take their logarithm")
