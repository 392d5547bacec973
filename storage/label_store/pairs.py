"""Pairs as a label store keeps them: small columns in memory, texts compressed and read on demand.

Shape letters: N pairs, B bytes of their texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from logitbank.errors import StoreError
from logitbank.preference import CLASSES, Pair, Turns, prompt_keys
from logitbank.storage.groups import ChunkedReader, ExampleIds, create_flat_array, join_names, read_all, starts_of

TEXT_CHUNK = 1 << 18  # bytes
TEXT_CHUNKS_KEPT = 512  # decoded, 128 MiB of them
NOWHERE = -1  # the fold of rows that are not for training, the part of those that are not for validation
TARGET_ERROR = 1e-5  # by which three probabilities may miss 1


def hash_pairs(pairs: Sequence[Pair], columns: Mapping[str, NDArray[np.int8]]) -> str:
    """SHA-256 of all that `write_pairs` would write."""
    digest = hashlib.sha256()
    for pair in pairs:
        coded = _coded(pair)
        digest.update(f"{pair.example_id}\n{len(coded)}\n".encode("utf-8", "surrogatepass"))
        digest.update(coded)
    digest.update(_targets(pairs).tobytes())
    for values in columns.values():
        digest.update(values.tobytes())
    return digest.hexdigest()


def write_pairs(group: zarr.Group, pairs: Sequence[Pair], columns: Mapping[str, NDArray[np.int8]]) -> None:
    """Fill a group with the columns that `PairTable` reads.

    Args:
        group: where they go.
        pairs: N of them.
        columns: (N,) int8 columns besides: `fold`, `part`.

    Raises:
        StoreError: an id that repeats or holds a line break, or a target that is none.
    """
    text, lengths = bytearray(), np.empty(len(pairs), np.int32)
    for position, pair in enumerate(pairs):
        coded = _coded(pair)
        lengths[position] = len(coded)
        text += coded
    numbers: dict[str, NDArray[Any]] = {
        "prompt_key": prompt_keys(pairs),
        "pair_key": np.array([pair.pair_key for pair in pairs], dtype=np.uint64),
        "text_start": starts_of(lengths),
        "text_length": lengths,
    }
    others: dict[str, NDArray[Any]] = {
        "example_ids": join_names([pair.example_id for pair in pairs]),
        "target": _targets(pairs),
        **columns,
    }
    for name, values in numbers.items():
        create_flat_array(group, name, values, "pcodec")
    for name, values in others.items():
        create_flat_array(group, name, values, "zstd")
    create_flat_array(group, "text", np.frombuffer(text, dtype=np.uint8), "text", chunk=TEXT_CHUNK)


def _coded(pair: Pair) -> bytes:
    """The turns of the prompt and of both answers as JSON in UTF-8."""
    content = [pair.prompt, pair.response_a, pair.response_b]
    try:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 lacks but JSON can escape
        return json.dumps(content, separators=(",", ":")).encode()


def _targets(pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """(N, 3) float32."""
    for pair in pairs:
        if pair.target is None:
            raise StoreError(f"{pair.example_id}: has no label; expected one for every row of a store")
        if not (abs(sum(pair.target) - 1) <= TARGET_ERROR and min(pair.target) >= 0):
            raise StoreError(f"{pair.example_id}: expected three probabilities whose sum is 1, got {pair.target}")
    return np.array([pair.target for pair in pairs], dtype=np.float32).reshape(-1, len(CLASSES))


class PairTable:
    """N pairs of a store.

    Attributes:
        example_id: (N,) names, decoded as they are asked for.
        fold: (N,) int8; −1 outside the training rows.
        part: (N,) int8: 0 selection, 1 calibration, 2 holdout; −1 outside the validation rows.
        target: (N, 3) float32, probabilities of `CLASSES`.
        prompt_key: (N,) uint64.
        pair_key: (N,) uint64.
    """

    def __init__(self, open_array: Callable[[str], zarr.Array[Any]], column: str | None = None) -> None:
        """Read the small columns.

        Args:
            open_array: opens one of the group's arrays by name.
            column: which of `fold` and `part` the group has.
        """
        self.target: NDArray[np.float32] = read_all(open_array("target"))
        self.prompt_key: NDArray[np.uint64] = read_all(open_array("prompt_key"))
        self.pair_key: NDArray[np.uint64] = read_all(open_array("pair_key"))
        self.example_id = ExampleIds.joined(read_all(open_array("example_ids")), len(self.target))
        nowhere = np.full(len(self.target), NOWHERE, np.int8)
        self.fold: NDArray[np.int8] = read_all(open_array("fold")) if column == "fold" else nowhere
        self.part: NDArray[np.int8] = read_all(open_array("part")) if column == "part" else nowhere
        self._start: NDArray[np.int64] = read_all(open_array("text_start"))
        self._length: NDArray[np.int32] = read_all(open_array("text_length"))
        self._text = ChunkedReader(open_array("text"), keep=TEXT_CHUNKS_KEPT)

    def __len__(self) -> int:
        return len(self.target)

    def turns(self, position: int) -> tuple[Turns, Turns, Turns]:
        """The turns of the prompt, of the first and of the second answer."""
        text = self._text.read(int(self._start[position]), int(self._length[position]))
        prompt, response_a, response_b = json.loads(text.tobytes())
        return tuple(prompt), tuple(response_a), tuple(response_b)

    def pair(self, position: int) -> Pair:
        """One pair; IndexError beyond the last."""
        if not 0 <= position < len(self):
            raise IndexError(f"pair {position}: expected 0 to {len(self) - 1}")
        first, second, tie = self.target[position].tolist()
        return Pair(self.example_id[position], *self.turns(position), target=(first, second, tie))

    def index_of(self, example_id: str) -> int | None:
        """Position of a pair; None if there is none of that id."""
        if not len(self):
            return None
        positions = self.example_id.positions_of(example_id)
        return int(positions[0]) if len(positions) else None
