"""Ids of two models are compared one by one, by the tokens they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from logitbank.models.vocabulary import ModelTokens, TokenDifferences
from tests import tiny


def tokens(model: str, *spellings: str | None, rows: int | None = None) -> ModelTokens:
    return ModelTokens(model, spellings, rows)


@pytest.mark.parametrize(
    ("theirs", "different"),
    [
        (tokens("b", "x", "y", "z"), []),
        (tokens("b", "x", "y", "z", None, None), []),  # padding on one side
        (tokens("b", "x", "y", "z", "more"), [3]),
        (tokens("b", "x", "y"), [2]),
        (tokens("b", "x", None, "z"), [1]),
        (tokens("b", "y", "x", "z"), [0, 1]),
        (tokens("b", "x", "y", "z", rows=2), [2]),  # a tokenizer with more ids than the model has logits
        (tokens("b", "x", "y", "z", rows=9), []),
    ],
)
def test_an_id_differs_where_its_token_does(theirs: ModelTokens, different: list[int]) -> None:
    ours = tokens("a", "x", "y", "z")
    assert TokenDifferences(ours, theirs).ids.tolist() == different
    assert TokenDifferences(theirs, ours).ids.tolist() == different


@pytest.mark.parametrize(
    ("sequences", "first"), [([[0, 3]], None), ([[0, 3], [4, 2]], 2), ([[5, 4, 99]], 4), ([], None)]
)
def test_only_ids_in_use_count(sequences: Sequence[Sequence[int]], first: int | None) -> None:
    differences = TokenDifferences(tokens("a", *"vwxyz"), tokens("b", *"vwayb"))
    assert differences.ids.tolist() == [2, 4]
    assert differences.first_used(np.asarray(ids, dtype=np.int32) for ids in sequences) == first
    same = TokenDifferences(tokens("a", *"vwxyz"), tokens("b", *"vwxyz"))
    assert same.first_used(np.asarray(ids) for ids in sequences) is None


def test_a_difference_names_both_tokens_and_where_ours_lies_in_the_other() -> None:
    differences = TokenDifferences(tokens("my student", "a", "b", "c", "d"), tokens("t", "b", "a", None, "d", rows=3))
    said = [differences.describe(i) for i in differences.ids.tolist()]
    assert said == [
        "id 0 is 'a' for 'my student' and 'b' for t, whose 'a' is id 1",
        "id 1 is 'b' for 'my student' and 'a' for t, whose 'b' is id 0",
        "id 2 is 'c' for 'my student' and no token for t",
        "id 3 is 'd' for 'my student' and beyond the 3 lm_head rows for t",
    ]


def test_added_tokens_belong_to_a_tokenizer() -> None:
    tokenizer = tiny.byte_tokenizer(control=("<tool>",))
    found = ModelTokens.of("bytes", tokenizer)
    assert len(found.spellings) == len(tokenizer)
    assert found.spelling(len(tokenizer) - 1) == "<tool>"
    assert found.spelling(len(tokenizer)) is None
    assert [found.spelling(i) for i in tokenizer("ab").input_ids] == ["a", "b"]
