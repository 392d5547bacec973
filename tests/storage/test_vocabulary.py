"""The numbering of tokens: what is frequent gets small codes, and every code means one token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.storage import StoreError, Vocabulary

SIZE = 60


def pilot(seed: int, rows: int = 30, top_k: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(SIZE)[:top_k] for _ in range(rows)])
    return ids[np.argsort(ids[:, 0] % 5)].astype(np.int32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, SIZE))
def test_codes_give_back_their_tokens_and_repeat_in_no_row(seed: int, top_k: int) -> None:
    vocabulary = Vocabulary.learn(pilot(seed), SIZE)
    rng = np.random.default_rng(seed + 1)
    ids = np.stack([rng.permutation(SIZE)[:top_k] for _ in range(50)]).astype(np.int32)
    codes = vocabulary.codes(ids)
    np.testing.assert_array_equal(vocabulary.token_ids(codes), ids)
    assert all(len(set(row)) == len(row) for row in codes[:, 1:].tolist())


def test_frequent_tokens_and_those_of_the_context_come_first() -> None:
    ids = np.array([[7, 1, 2], [7, 1, 3], [9, 4, 2], [9, 4, 3], [5, 4, 1]], dtype=np.int32)
    vocabulary = Vocabulary.learn(ids, SIZE)
    # Rank r counts about 16 / (16 + r): 4 stands at rank 1 three times, 7 and 9 at rank 0 twice, 1 at 1, 1 and 2.
    assert vocabulary.tokens[:4].tolist() == [4, 1, 7, 9]
    assert vocabulary.contexts.tolist() == [7, 9]  # 5 was first only once
    under_seven = vocabulary.tokens[vocabulary.fronts[1]]
    assert under_seven[:4].tolist() == [1, 7, 2, 3]
    assert vocabulary.codes(np.array([[7, 3, 4]], dtype=np.int32)).tolist()[0][0] == 2  # its position
    assert vocabulary.codes(np.array([[7, 3, 2]], dtype=np.int32)).tolist()[0][1:] == [3, 2]  # places in the front


def test_a_code_that_stands_for_no_token_is_refused() -> None:
    vocabulary = Vocabulary.learn(pilot(0), SIZE)
    last = SIZE - 1 + vocabulary.fronts.shape[1]
    assert vocabulary.token_ids(np.array([[SIZE - 1, last]], np.uint32)).tolist() == [[vocabulary.tokens[-1]] * 2]
    for codes in ([SIZE, 0], [0, last + 1]):
        with pytest.raises(StoreError, match="expected codes below"):
            vocabulary.token_ids(np.array([codes], np.uint32))


@pytest.mark.parametrize(
    ("tokens", "contexts", "fronts", "message"),
    [
        ([0, 1, 1], [], [[0]], "permutation"),
        ([2, 0, 1], [1], [[0, 1]], "do not fit"),
        ([2, 0, 1], [], [[0, 3]], "distinct positions"),
        ([2, 0, 1], [], [[0, 0]], "distinct positions"),
    ],
)
def test_a_numbering_that_is_none_is_refused(
    tokens: list[int], contexts: list[int], fronts: list[list[int]], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        Vocabulary(np.array(tokens, np.int32), np.array(contexts, np.int32), np.array(fronts, np.uint32))


def test_its_hash_is_over_all_of_it() -> None:
    one = Vocabulary.learn(pilot(0), SIZE)
    fronts = one.fronts.copy()
    fronts[-1, :2] = fronts[-1, 1::-1]
    assert one.hash() == Vocabulary.learn(pilot(0), SIZE).hash()
    assert len({one.hash(), Vocabulary(one.tokens, one.contexts, fronts).hash()}) == 2
