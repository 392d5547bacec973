"""DistillKit's compressed log-probabilities, decoded in float64.

The bytes of one row, in order, all numbers little-endian: the `exact_k` first values; the coefficients of a
polynomial (powers of the place, or its square root or exponential) that gives the others; and for runs of these a
scale with as many small integers, the residuals in units of it, packed bit by bit, the highest bit first. With
`delta_encoding` each value but the first is the step from the one before it. Token ids are packed in the same way.

Shape letters: R rows, K values of a row, B bytes, P terms of the polynomial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from logitbank.errors import TaskError

DTYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}
FUNCTIONS = {"sqrt": np.sqrt, "exp": np.exp}
MOST_BITS = 32  # of a packed integer


@dataclass(frozen=True)
class Bin:
    """A run of residuals.

    Attributes:
        scale_dtype: of the scale, a key of `DTYPES`.
        bits: of each residual.
        count: how many.
    """

    scale_dtype: str
    bits: int
    count: int

    @property
    def packed_bytes(self) -> int:
        """Bytes of the residuals."""
        return _bytes_of(self.bits * self.count)


@dataclass(frozen=True)
class CompressedLogprobs:
    """How rows were compressed.

    Attributes:
        vocab_size: of the token ids.
        top_k: K.
        exact_k: values that are kept as they are.
        exact_dtype: of these, a key of `DTYPES`.
        terms: powers, or keys of `FUNCTIONS`.
        term_dtype: of their coefficients.
        bins: residuals, run after run; values after them have none.
        delta: whether values are steps.
        unit: whether the places of the polynomial are 0 to 1, not 0 to K − `exact_k` − 1.
    """

    vocab_size: int
    top_k: int
    exact_k: int
    exact_dtype: str
    terms: tuple[int | str, ...]
    term_dtype: str
    bins: tuple[Bin, ...]
    delta: bool
    unit: bool

    @classmethod
    def of(cls, text: str, where: str) -> CompressedLogprobs:
        """Read a `compression_config.yaml`; `where` is its name in messages.

        Raises:
            TaskError: a key that is missing or has a value that is not known.
        """
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise TaskError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None
        if isinstance(found, Mapping) and isinstance(found.get("logprob_compressor"), Mapping):
            found = found["logprob_compressor"]
        if not isinstance(found, Mapping) or not {"d", "k", "exact_k"} <= found.keys():
            raise TaskError(f"{where}: expected the keys d, k and exact_k of DistillKit's compressor")
        if "polynomial_degree" in found:
            raise TaskError(f"{where}: written by DistillKit's legacy compressor; expected the current one")
        try:
            made = cls(
                vocab_size=int(found["d"]),
                top_k=int(found["k"]),
                exact_k=int(found["exact_k"]),
                exact_dtype=_dtype(found, "exact_dtype"),
                terms=tuple(_term(term) for term in found.get("polynomial_terms") or ()),
                term_dtype=_dtype(found, "term_dtype"),
                bins=tuple(
                    Bin(_dtype(each, "scale_dtype"), int(each["element_bits"]), int(each["num_elements"]))
                    for each in found.get("residual_bins") or ()
                ),
                delta=bool(found.get("delta_encoding", True)),
                unit=bool(found.get("normalize_t", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(f"{where}: cannot be understood: {error}") from None
        made._check(where)
        return made

    def _check(self, where: str) -> None:
        sizes = {"d": self.vocab_size, "k": self.top_k}
        sizes |= {f"residual_bins: num_elements {number}": each.count for number, each in enumerate(self.bins, 1)}
        for name, size in sizes.items():
            if size < 1:
                raise TaskError(f"{where}, {name}: expected at least 1, got {size}")
        if not 0 <= self.exact_k <= self.top_k:
            raise TaskError(f"{where}, exact_k: expected 0 to {self.top_k} (k), got {self.exact_k}")
        approximated = self.top_k - self.exact_k
        if sum(each.count for each in self.bins) > approximated:
            raise TaskError(f"{where}, residual_bins: expected at most {approximated} elements (k - exact_k)")
        for each in self.bins:
            if not 1 <= each.bits <= MOST_BITS:
                raise TaskError(
                    f"{where}, residual_bins: element_bits from 1 to {MOST_BITS} are supported, got {each.bits}"
                )

    @property
    def about(self) -> str:
        """For people: how much of a row is exact."""
        fitted = self.top_k - self.exact_k
        return f"{self.exact_k} values of {self.top_k} stored as {self.exact_dtype}" + (
            f", {fitted} approximated" if fitted else ""
        )

    @property
    def id_bits(self) -> int:
        """Bits of a token id; the logarithm is taken in float32, as the writer takes it."""
        return int(np.ceil(np.log2(np.float32(self.vocab_size))))

    @property
    def id_bytes(self) -> int:
        """Bytes of a row of token ids."""
        return _bytes_of(self.top_k * self.id_bits)

    @property
    def value_bytes(self) -> int:
        """Bytes of a row of values."""
        size = self.exact_k * _width(self.exact_dtype) + len(self.terms) * _width(self.term_dtype)
        return size + sum(_width(each.scale_dtype) + each.packed_bytes for each in self.bins)

    def ids(self, packed: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(R, K) token ids of (R, B) bytes."""
        return _unpacked(packed, self.id_bits, self.top_k)

    def values(self, data: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(R, K) log-probabilities of (R, B) bytes."""
        fitted = self.top_k - self.exact_k
        exact, rest = self._split(data, self.exact_k, self.exact_dtype)
        coefficients, rest = self._split(rest, len(self.terms), self.term_dtype)
        values = np.zeros((len(data), fitted))
        for number, column in enumerate(self._polynomial(fitted)):
            values += coefficients[:, number, None] * column
        first = 0
        for each in self.bins:
            scale, rest = self._split(rest, 1, each.scale_dtype)
            residuals = _unpacked(rest[:, : each.packed_bytes], each.bits, each.count)
            rest = rest[:, each.packed_bytes :]
            # one bit means either sign, more bits an integer around 0
            signed = residuals * 2 - 1 if each.bits == 1 else residuals - (1 << (each.bits - 1))
            values[:, first : first + each.count] += signed * scale
            first += each.count
        whole = np.concatenate([exact, values], axis=1)
        return np.cumsum(whole, axis=1) if self.delta else whole

    def _polynomial(self, places: int) -> list[NDArray[np.float64]]:
        """P columns, each term at every place."""
        at = np.linspace(0.0, 1.0, places) if self.unit else np.arange(places, dtype=np.float64)
        return [FUNCTIONS[term](at) if isinstance(term, str) else at**term for term in self.terms]

    @staticmethod
    def _split(data: NDArray[np.uint8], count: int, dtype: str) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """(R, count) numbers, and the bytes after them."""
        size = count * _width(dtype)
        numbers = np.ascontiguousarray(data[:, :size]).view(DTYPES[dtype]).reshape(len(data), count)
        if dtype == "bfloat16":  # the upper half of a float32
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float64), data[:, size:]


def _unpacked(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """(R, count) integers of (R, B) bytes."""
    each = np.unpackbits(packed, axis=1, count=bits * count).reshape(len(packed), count, bits)
    numbers = np.zeros((len(packed), count), np.int64)
    for bit in range(bits):
        numbers = (numbers << 1) | each[:, :, bit]
    return numbers


def _bytes_of(bits: int) -> int:
    return -(-bits // 8)


def _width(dtype: str) -> int:
    return np.dtype(DTYPES[dtype]).itemsize


def _dtype(found: Mapping[str, Any], key: str) -> str:
    name = str(found.get(key, "float32"))
    if name not in DTYPES:
        raise ValueError(f"{key}: expected {', '.join(DTYPES)}, got {name}")
    return name


def _term(term: Any) -> int | str:
    if (isinstance(term, int) and term >= 0) or term in FUNCTIONS:
        return int(term) if isinstance(term, int) else str(term)
    raise ValueError(f"polynomial_terms: expected powers, {', '.join(FUNCTIONS)}, got {term!r}")
