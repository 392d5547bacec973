"""DistillKit's captures: every part of its compressor against bytes made, and decoded, one number at a time."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from logitbank.teacher_cache.exchange.compressed import CompressedLogprobs
from tests.teacher_cache import foreign
from tests.teacher_cache.foreign import ALL, Row
from tests.teacher_cache.imports import Import, refused

Config = dict[str, Any]
PLAIN: Config = {"d": foreign.VOCAB, "k": 12, "exact_k": 12, "residual_bins": [], "delta_encoding": False}
FITTED: Config = {**PLAIN, "exact_k": 4, "polynomial_terms": [0, 1, 2, "sqrt"]}
VARIANTS: dict[str, Config] = {
    "all exact": PLAIN,
    "steps": {**PLAIN, "delta_encoding": True},
    "polynomial": FITTED,
    "polynomial of steps": {**FITTED, "delta_encoding": True},
    "places from 0 to 1": {**FITTED, "normalize_t": True, "polynomial_terms": [0, "exp"], "term_dtype": "float64"},
    "recommended": {**FITTED, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, "sqrt"]},
    "half precision": {**FITTED, "exact_dtype": "float16", "term_dtype": "bfloat16"},
    "residuals alone": {
        **PLAIN,
        "exact_k": 2,
        "residual_bins": [
            {"scale_dtype": "float16", "element_bits": 7, "num_elements": 5},
            {"scale_dtype": "float32", "element_bits": 3, "num_elements": 5},
        ],
    },
    "residuals of a polynomial": {
        **FITTED,
        "d": 1 << 18,
        "residual_bins": [
            {"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 3},
            {"scale_dtype": "float64", "element_bits": 12, "num_elements": 2},
        ],
    },
}


def rounded(value: float, dtype: str) -> tuple[bytes, float]:
    """The bytes of a number, and what they mean."""
    if dtype == "bfloat16":
        upper = struct.pack("<f", value)[2:]
        return upper, struct.unpack("<f", b"\0\0" + upper)[0]
    code = {"float16": "<e", "float32": "<f", "float64": "<d"}[dtype]
    data = struct.pack(code, value)
    return data, struct.unpack(code, data)[0]


def packed(numbers: Sequence[int], bits: int) -> bytes:
    """Numbers of so many bits each, the highest bit first, and zeros up to a whole byte."""
    text = "".join(format(number, f"0{bits}b") for number in numbers)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def term(kind: int | str, place: float) -> float:
    return {"sqrt": math.sqrt, "exp": math.exp}[kind](place) if isinstance(kind, str) else place**kind


def compress(values: Sequence[float], config: Config) -> tuple[bytes, list[float]]:
    """The bytes of a row of falling log-probabilities, and what they mean."""
    steps = [value - before for value, before in zip(values, [0.0, *values], strict=False)]
    given = steps if config["delta_encoding"] else list(values)
    exact = [rounded(value, config.get("exact_dtype", "float32")) for value in given[: config["exact_k"]]]
    data, rest = b"".join(each for each, _ in exact), given[config["exact_k"] :]
    meant = [0.0] * len(rest)
    if terms := config.get("polynomial_terms"):
        unit = config.get("normalize_t", False)
        places = [number / (len(rest) - 1) if unit else float(number) for number in range(len(rest))]
        columns = [[term(kind, place) for kind in terms] for place in places]
        fitted = np.linalg.lstsq(np.array(columns), np.array(rest), rcond=None)[0]
        coefficients = [rounded(float(value), config.get("term_dtype", "float32")) for value in fitted]
        data += b"".join(each for each, _ in coefficients)
        meant = [sum(c * x for (_, c), x in zip(coefficients, row, strict=True)) for row in columns]
    first = 0
    for each in config["residual_bins"]:
        bits, run = each["element_bits"], range(first, first + each["num_elements"])
        left, half = [rest[at] - meant[at] for at in run], 1 << (bits - 1)
        scale_bytes, scale = rounded(max(map(abs, left)) / half, each["scale_dtype"])
        if bits == 1:
            numbers = [int(value > 0) for value in left]
            units = [2 * number - 1 for number in numbers]
        else:
            numbers = [min(max(round(value / scale), -half), half - 1) + half for value in left]
            units = [number - half for number in numbers]
        for at, unit_count in zip(run, units, strict=True):
            meant[at] += unit_count * scale
        data += scale_bytes + packed(numbers, bits)
        first += each["num_elements"]
    whole = [value for _, value in exact] + meant
    if config["delta_encoding"]:
        whole = [math.fsum(whole[: number + 1]) for number in range(len(whole))]
    return data, whole


def id_bits(config: Config) -> int:
    return math.ceil(math.log2(config["d"]))


@pytest.mark.numeric
@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_mean_what_the_format_says(variant: str) -> None:
    config = VARIANTS[variant]
    compressor = CompressedLogprobs.of(yaml.safe_dump(config), "config")
    rng = np.random.default_rng(1)
    values = -np.sort(rng.exponential(2, (40, config["k"])), axis=1)
    ids = rng.integers(0, config["d"], values.shape)
    made = [compress(row.tolist(), config) for row in values]
    data = np.array([list(each) for each, _ in made], np.uint8)
    assert data.shape[1] == compressor.value_bytes
    expected = np.array([meant for _, meant in made])
    np.testing.assert_allclose(compressor.values(data), expected, rtol=1e-12, atol=1e-12)
    assert np.abs(expected - values).mean() < 0.5  # it is those values that were compressed
    places = np.array([list(packed(row.tolist(), id_bits(config))) for row in ids], np.uint8)
    assert places.shape[1] == compressor.id_bytes
    np.testing.assert_array_equal(compressor.ids(places), ids)


def captured(config: Config, **changes: Any) -> tuple[list[Row], list[np.ndarray]]:
    """Rows of all examples as a capture writes them, and the log-probabilities that they mean."""
    rows, meant = [], []
    for example in ALL:
        made = [compress(values, config) for values in example.top_log_p(config["k"])[:-1].tolist()]
        tokens = example.top(config["k"])[:-1].tolist()
        rows.append(
            {
                "input_ids": example.ids.tolist(),
                "compressed_logprobs": [list(data) for data, _ in made],
                "bytepacked_indices": [list(packed(ids, id_bits(config))) for ids in tokens],
                **changes,
            }
        )  # fmt: skip
        meant.append(np.array([values for _, values in made]))
    return rows, meant


def save(folder: Path, rows: list[Row], config: Config | None) -> str:
    """What a capture leaves in a directory, with its column types; the glob of its files."""
    of_bytes = pa.list_(pa.list_(pa.uint8()))
    kinds = {"input_ids": pa.list_(pa.uint64()), "compressed_logprobs": of_bytes, "bytepacked_indices": of_bytes}
    columns = {name: pa.array([row[name] for row in rows], kinds.get(name)) for name in rows[0]}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "data_0.parquet")
    if config is not None:
        (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    return f"{folder}/*.parquet"


@pytest.mark.numeric
@pytest.mark.parametrize("variant", ["all exact", "recommended"])
def test_a_capture_becomes_a_store(
    variant: str, take: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = VARIANTS[variant]
    rows, meant = captured(config)
    store = take(save(tmp_path / "captured", rows, config))
    assert ("8 approximated" in capsys.readouterr().out) == (variant == "recommended")
    assert store.bounded("theirs") == ("logits", "entropy", "gold")
    for number, example in enumerate(ALL):
        np.testing.assert_array_equal(store.examples[number].input_ids, example.ids)
        np.testing.assert_array_equal(store.examples[number].answer_positions, np.arange(1, len(example.ids)))
        found, order = store.read([number], "theirs"), np.argsort(-meant[number], axis=1, kind="stable")
        np.testing.assert_array_equal(found.token_ids, np.take_along_axis(example.top(config["k"])[:-1], order, axis=1))
        np.testing.assert_allclose(found.logits, np.take_along_axis(meant[number], order, axis=1), rtol=1e-6)
        sums = np.log(np.maximum(np.exp(meant[number]).sum(axis=1), 1.0))
        np.testing.assert_allclose(found.logsumexp, sums, rtol=1e-6, atol=1e-9)


def test_labels_choose_what_is_learned(take: Import, tmp_path: Path) -> None:
    rows, meant = captured(PLAIN)
    for row, example in zip(rows, ALL, strict=True):
        row["labels"] = example.labels.tolist()
    store = take(save(tmp_path / "captured", rows, PLAIN))
    for number, example in enumerate(ALL):
        np.testing.assert_array_equal(store.examples[number].answer_positions, example.positions)
        expected = meant[number][example.positions - 1].astype(np.float32)
        np.testing.assert_array_equal(store.read([number], "theirs").logits, expected)


@pytest.mark.parametrize(
    ("config", "change", "expected"),
    [
        (None, None, "captured/compression_config.yaml cannot be read (FileNotFoundError); give the"),
        ({**PLAIN, "k": 11, "exact_k": 11}, None, "row 1, compressed_logprobs: expected 44 bytes a row, as comp"),
        ({**PLAIN, "d": 1 << 17}, None, "row 1, bytepacked_indices: expected 26 bytes a row, as compression_conf"),
        ({**PLAIN, "exact_k": 20}, None, "compression_config.yaml, exact_k: expected 0 to 12 (k), got 20"),
        ({**PLAIN, "exact_dtype": "int8"}, None, "cannot be understood: exact_dtype: expected float16, bfloat16"),
        ({**FITTED, "polynomial_terms": ["log"]}, None, "polynomial_terms: expected powers, sqrt, exp, got 'log'"),
        ({"k": 12}, None, "expected the keys d, k and exact_k"),
        (PLAIN, lambda row: {"input_ids": row["input_ids"][:-2]}, "expected 5 rows, for all 6 input_ids but the first"),
        (PLAIN, lambda row: {"packed_indices": [[1]]}, "row 1: holds DistillKit's legacy compression (packed_indices)"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_one_line(
    config: Config | None,
    change: Callable[[Row], Row] | None,
    expected: str,
    take: Import,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows, _ = captured(PLAIN)
    if change is not None:
        rows = [row | change(row) for row in rows]
    files = save(tmp_path / "captured", rows, config)
    assert expected in refused(capsys, lambda: take(files))
    assert not (tmp_path / "store").exists()
