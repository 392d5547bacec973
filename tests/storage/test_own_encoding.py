"""An encoding from outside the package: one object and one `register` call serve all that stores do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from logitbank.configs import ConfigError, load_config
from logitbank.registry import ENCODINGS
from logitbank.storage import StoreError, TeacherRows, TeacherStore, Vocabulary, verify
from logitbank.storage.teacher_store.encodings import (
    Arrays,
    ArraySpec,
    Slack,
    block_log_tails,
    log_tail_beyond,
    rank_blocks,
)
from logitbank.teacher_cache.estimate import bytes_per_token
from tests.storage import stores

SCALARS = ("logsumexp", "entropy", "gold_logit")


class Eighths:
    """Logits in eighths of a nat, rounded down; the rest as it is."""

    name = "eighths"
    log_mass_dtype = "uint8"

    def __init__(self, slack: Slack) -> None:
        self.slack = slack

    def arrays(self, top_k: int) -> list[ArraySpec]:
        return [
            ArraySpec("token_ids", "int32", top_k, "pcodec"),
            ArraySpec("eighths", "int32", top_k, "pcodec"),
            ArraySpec("log_tails", "float32", len(rank_blocks(top_k)), "pcodec", per_block=True),
            *(ArraySpec(name, "float32", None, "pcodec") for name in SCALARS),
            ArraySpec("gold_rank", "int32", None, "pcodec"),
        ]

    def encode(self, rows: TeacherRows, vocabulary: Vocabulary) -> dict[str, NDArray[Any]]:
        return {
            "token_ids": rows.token_ids,
            "eighths": np.floor(rows.logits * 8).astype(np.int32),
            "log_tails": block_log_tails(rows).astype(np.float32),
            **{name: getattr(rows, name) for name in SCALARS},
            "gold_rank": rows.gold_rank,
        }

    def decode(self, arrays: Arrays, top_k: int, vocabulary: Vocabulary) -> TeacherRows:
        logits = arrays["eighths"].astype(np.float32) / 8
        return TeacherRows(
            token_ids=arrays["token_ids"][:, :top_k],
            logits=logits[:, :top_k],
            **{name: arrays[name] for name in (*SCALARS, "gold_rank")},
            log_tail=log_tail_beyond(arrays["log_tails"][:, -1], logits[:, top_k:], arrays["logsumexp"]),
        )

    def encode_log_mass(self, log_mass: NDArray[np.float32]) -> NDArray[Any]:
        return np.rint(log_mass * -4).astype(np.uint8)

    def decode_log_mass(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        return (stored / -4).astype(np.float32)

    def bytes_per_token(self, top_k: int) -> float:
        return 3.0 * top_k


@pytest.fixture
def registered(request: pytest.FixtureRequest) -> Iterator[str]:
    """Its name, registered; the parameter is the slack it claims."""
    ENCODINGS.register("eighths", Eighths(request.param))
    yield "eighths"
    if "eighths" in ENCODINGS:
        ENCODINGS.unregister("eighths")


@pytest.mark.parametrize("registered", [Slack(logits=1 / 8, scalars=1 / 8)], indirect=True)
def test_one_object_serves_all_that_stores_do(registered: str, tmp_path: Path) -> None:
    url, examples = str(tmp_path / "store"), stores.records(20)
    stores.build(url, examples, encoding=registered, top_k=40)
    assert verify(url) == []
    store = TeacherStore.open(url)
    rows = store.read(range(20), "zeroshot", 24)
    said = []  # a shard at a time, as the stand-in teacher was asked
    for shard in range(store.info.shards):
        answers = [store.examples.answer_ids(example) for example in store.plan.examples_of(shard)]
        said.append(stores.teacher_rows(np.concatenate(answers), 40, seed=len("zeroshot")))
    logits = np.concatenate([part.logits for part in said])[:, :24]
    np.testing.assert_array_equal(rows.logits, np.floor(logits * 8) / 8)
    np.testing.assert_array_equal(rows.token_ids, np.concatenate([part.token_ids for part in said])[:, :24])
    assert bytes_per_token(registered, 40) == 120
    assert load_config([], ["model.name=m", f"store.encoding={registered}"]).store.encoding == registered


@pytest.mark.parametrize("registered", [Slack()], indirect=True)
def test_the_check_of_a_store_allows_what_the_encoding_claims(registered: str, tmp_path: Path) -> None:
    stores.build(str(tmp_path), stores.records(20), encoding=registered, views=("zeroshot",), top_k=40)
    problems = "\n".join(verify(str(tmp_path)))
    assert "gold_rank: the logit of that rank is not the gold logit" in problems
    assert "add up to probability 1" in problems


@pytest.mark.parametrize("registered", [Slack()], indirect=True)
def test_a_store_of_an_unknown_encoding_is_refused(registered: str, tmp_path: Path) -> None:
    stores.build(str(tmp_path), stores.records(4), encoding=registered, views=("zeroshot",))
    ENCODINGS.unregister(registered)
    with pytest.raises(
        StoreError, match="its encoding is eighths, but the registered ones are compact, float16, exact"
    ):
        TeacherStore.open(str(tmp_path))
    with pytest.raises(ConfigError, match=r"store\.encoding"):
        load_config([], ["model.name=m", "store.encoding=eighths"])
