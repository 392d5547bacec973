"""NER against seqeval itself, POS token accuracy, and reading tags from raw text."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score

from logitbank.tasks import TASKS
from logitbank.tasks.ner import spans
from logitbank.tasks.pos import study_tag
from tests.tasks.scores import score as score_outputs

NER, POS = TASKS["ner"], TASKS["pos"]
TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"])
SENTENCES = st.lists(
    st.tuples(st.lists(TAGS, min_size=1, max_size=9), st.lists(TAGS, max_size=11)), min_size=1, max_size=6
)


@given(SENTENCES)
def test_ner_equals_seqeval_on_malformed_short_and_long_sequences(
    sentences: list[tuple[list[str], list[str]]],
) -> None:
    gold = [tags for tags, _ in sentences]
    fitted = [(predicted + ["O"] * len(tags))[: len(tags)] for tags, predicted in sentences]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns where a denominator is 0
        expected = {
            "f1": f1_score(gold, fitted),
            "precision": precision_score(gold, fitted),
            "recall": recall_score(gold, fitted),
        }
    score = score_outputs(NER, [" ".join(predicted) for _, predicted in sentences], gold, "en")
    assert {name: score[name] for name in expected} == pytest.approx(expected)
    assert score["parse_failure"] == sum(not predicted for _, predicted in sentences) / len(sentences)


def test_spans_and_their_repair() -> None:
    assert spans(["B-PER", "I-PER", "O", "B-LOC"]) == {("PER", 0, 1), ("LOC", 3, 3)}
    assert spans(["O", "I-PER", "I-PER"]) == {("PER", 1, 2)}
    assert spans(["B-PER", "I-ORG", "I-ORG"]) == {("PER", 0, 0), ("ORG", 1, 2)}
    assert spans(["B-PER", "B-PER"]) == {("PER", 0, 0), ("PER", 1, 1)}
    assert spans([]) == set()


@pytest.mark.parametrize(
    ("output", "tags"),
    [
        ("O B-PER I-PER", ["O", "B-PER", "I-PER"]),
        ("Tags: o b-per\nI-PER", ["O", "B-PER", "I-PER"]),
        ("['O', 'B-PER', 'I-PER']", ["O", "B-PER", "I-PER"]),
        ("Here they are: B-ORG junk O", ["B-ORG", "O", "O"]),
        ("O,B-MISC", ["O", "B-MISC"]),
        ("O . , B-LOC", ["O", "O", "O", "B-LOC"]),
        ("MISC B-LOC", ["O", "B-LOC"]),
        ("O | B-PER | I-PER", ["O", "B-PER", "I-PER"]),
        ("\u200fnothing here", None),
        ("", None),
    ],
)
def test_ner_reads_tags(output: str, tags: list[str] | None) -> None:
    assert NER.parse(output) == tags


def test_a_type_that_does_not_exist_is_a_wrong_span() -> None:
    score = score_outputs(NER, ["B-MISC B-PER"], [["B-LOC", "B-PER"]], "en")
    assert (score["precision"], score["recall"]) == (0.5, 0.5)


def test_pos_missing_is_wrong_surplus_is_ignored() -> None:
    gold = ["NOUN", "VERB", "PUNCT", "X"]
    outputs = ["NOUN VERB PUNCT X", "NOUN VERB", "NOUN VERB PUNCT X NOUN NOUN", "", "noun ADJ punct."]
    score = score_outputs(POS, outputs, [gold] * 5, "en")
    assert score["accuracy"] == pytest.approx((4 + 2 + 4 + 0 + 2) / 20)
    assert score["parse_failure"] == 0.2


def test_pos_accuracy_is_over_tokens_not_sentences() -> None:
    score = score_outputs(POS, ["NOUN", "ADJ ADJ ADJ"], [["NOUN"], ["VERB"] * 3], "en")
    assert score["accuracy"] == 0.25


@pytest.mark.parametrize(
    ("output", "tags"),
    [
        ("NOUN VERB", ["NOUN", "VERB"]),
        ("The tags: NOUN foo VERB", ["NOUN", "FOO", "VERB"]),
        ("PROPN AUX SCONJ _", ["NOUN", "VERB", "CONJ", "X"]),  # UD's own names fold as the gold tags do
        ("propn aux", ["NOUN", "VERB"]),
        ("NOUN | VERB | PUNCT", ["NOUN", "VERB", "PUNCT"]),
        ("| NOUN | VERB |", ["NOUN", "VERB"]),
        ("NOUN|VERB", ["NOUN", "VERB"]),
        ("NOUN . VERB", ["NOUN", "", "VERB"]),  # a token's place all the same
        ("noun verb", ["NOUN", "VERB"]),
        ("FOO VERB", ["FOO", "VERB"]),
        ("Part of speech: NOUN VERB", ["NOUN", "VERB"]),
        ("POS: NOUN VERB", ["NOUN", "VERB"]),
        ("I DO NOT KNOW", None),
        ("\u200f", None),
    ],
)
def test_pos_reads_tags(output: str, tags: list[str] | None) -> None:
    assert POS.parse(output) == tags


def test_upos_maps_to_the_twelve_tags() -> None:
    mapped = {name: study_tag(name) for name in ("AUX", "PROPN", "CCONJ", "SCONJ", "INTJ", "SYM", "_", "DET")}
    assert mapped == {
        "AUX": "VERB",
        "PROPN": "NOUN",
        "CCONJ": "CONJ",
        "SCONJ": "CONJ",
        "INTJ": "X",
        "SYM": "X",
        "_": "X",
        "DET": "DET",
    }
    assert study_tag(0) == "ADJ"
    assert study_tag(17) is None
    assert study_tag(-1) is None


def test_rows_as_integers_names_or_unusable() -> None:
    row = {"tokens": ["Ana", "sings"], "pos_tags": [11, 15]}
    by_name = {"tokens": ["Ana", "sings"], "pos_tags": ["PROPN", "VERB"]}
    for usable in (row, by_name):
        example = POS.to_example(usable, "en", "pos/en/train/0")
        assert example is not None
        assert example.answer == "NOUN VERB"
        assert POS.user_message(example) == "Tokens: Ana sings"
    for unusable in (
        {"tokens": [], "pos_tags": []},
        {"tokens": ["a", " "], "pos_tags": [0, 0]},
        {"tokens": ["a", "b"], "pos_tags": [0]},
        {"tokens": ["a"], "pos_tags": [-1]},
    ):
        assert POS.to_example(unusable, "en", "pos/en/train/0") is None
    assert NER.to_example({"tokens": ["a"], "ner_tags": [-1]}, "en", "ner/en/train/0") is None
    assert TASKS["nli"].to_example({"premise": "a", "hypothesis": "b", "label": -1}, "en", "x") is None
    assert TASKS["pa"].to_example({"sentence1": "NS", "sentence2": "b", "label": 1}, "en", "x") is None
