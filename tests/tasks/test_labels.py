"""NLI, PA and GSM8K: reading an answer from raw text, and accuracy."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitbank.tasks import TASKS, DataSettings, TaskError
from logitbank.tasks.common import metrics_of
from logitbank.tasks.data import load_examples
from logitbank.tasks.scoring.likelihood import LikelihoodScores
from tests.tasks.scores import score as score_outputs

NLI, PA, GSM8K = TASKS["nli"], TASKS["pa"], TASKS["gsm8k"]


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ("entailment", "entailment"),
        (" Neutral.\n", "neutral"),
        ("CONTRADICTION!", "contradiction"),
        ("**neutral**", "neutral"),
        ("_neutral_", "neutral"),
        ("The answer is: entailment, not neutral", "entailment"),
        ("\u200fneutral\u200f", "neutral"),
        ("ｎｅｕｔｒａｌ", "neutral"),
        ("neutral\n\nPremise: it rains\nHypothesis: entailment", "neutral"),
        ("neutrality", None),
        ("0", None),
        ("", None),
        ("contra diction", None),
    ],
)
def test_nli_reads_the_first_label_word(output: str, label: str | None) -> None:
    assert NLI.parse(output) == label


@pytest.mark.parametrize(
    ("output", "label"),
    [("Yes", "yes"), ("no.", "no"), ("No, they are not. yes", "no"), ("nothing", None), ("eyes", None)],
)
def test_pa_reads_whole_words(output: str, label: str | None) -> None:
    assert PA.parse(output) == label


def test_what_cannot_be_read_is_wrong_and_counted() -> None:
    score = score_outputs(NLI, ["neutral", "Entailment", "banana", ""], ["neutral"] * 4, "en")
    assert score == {"accuracy": 0.25, "parse_failure": 0.5}


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("6 guns.\n#### 6", "6"),
        ("#### 1,234,567", "1234567"),
        ("#### $1,234.50", "1234.5"),
        ("####-12", "-12"),
        ("#### -$12", "-12"),
        ("#### $-12", "-12"),
        ("#### \N{MINUS SIGN}3", "-3"),
        ("#### .5", "0.5"),
        ("#### 18.", "18"),
        ("#### **18** dollars", "18"),
        ("####\n18", "18"),
        ("#### 18\n\nQuestion: two more\n#### 99", "18"),
        ("so 12-5 = 7", "7"),
        ("the result is 12-5", "5"),
        ("x = -3", "-3"),
        ("The total is $1,200.", "1200"),
        ("5 apples ####", "5"),
        ("#### \u200f42\u200f", "42"),
        ("٣ + ٤ = ٧", "7"),
        ("no number", None),
        ("####", None),
        ("", None),
        ("²", None),
    ],
)
def test_gsm8k_reads_the_final_number(output: str, number: str | None) -> None:
    assert GSM8K.parse(output) == (None if number is None else Decimal(number))


def test_gsm8k_compares_numbers() -> None:
    gold = "They pay 2*500=<<2*500=1000>>1000.\n#### 1,000"
    outputs = ["#### 1000", "#### $1,000.00", "it is 1000", "#### -1000", "#### 10000", "none"]
    assert score_outputs(GSM8K, outputs, [gold] * 6, "en") == {
        "accuracy": 0.5,
        "strict_accuracy": 1 / 6,
        "parse_failure": 1 / 6,
    }
    assert score_outputs(GSM8K, ["18"], ["18"], "en")["accuracy"] == 1  # a bare number as gold


@pytest.mark.parametrize(
    ("output", "strict"),
    [
        ("#### 1,000", 1),
        ("so ####1000 apples", 1),
        ("####\n1000", 1),
        ("#### $1000", 0),
        ("1000", 0),
        ("#### 1000.0", 1),
    ],
)
def test_gsm8k_strictly_counts_the_digits_behind_the_marker(output: str, strict: float) -> None:
    means = score_outputs(GSM8K, [output], ["#### 1,000"])
    assert (means["accuracy"], means["strict_accuracy"]) == (1, strict)
    assert GSM8K.metrics({"correct": 1.0, "parse_failure": 0.0}) == {"accuracy": 1.0, "parse_failure": 0.0}


def test_gsm8k_validation_is_no_training_data(shared: object) -> None:
    mirror = f"{shared}/hub"
    questions = {
        split: {
            example.fields["question"] for example in load_examples("gsm8k", split, "en", DataSettings(mirror=mirror))
        }
        for split in ("train", "validation")
    }
    assert len(questions["validation"]) == 100
    assert not questions["train"] & questions["validation"]


@given(st.text(), st.sampled_from(["nli", "pa", "gsm8k", "qa", "ner", "pos"]))
def test_no_text_crashes_a_scorer(output: str, name: str) -> None:
    reference = {"gsm8k": "#### 1", "qa": ["a"], "ner": ["O"], "pos": ["NOUN"]}.get(name, "yes")
    score = score_outputs(TASKS[name], [output], [reference], "en")
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in score.values())


@pytest.mark.parametrize("name", list(TASKS))
def test_nothing_to_score_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match="at least one output"):
        metrics_of(TASKS[name], [])


@pytest.mark.parametrize("name", list(TASKS))
def test_metrics_work_on_arrays_of_means(name: str) -> None:
    task = TASKS[name]
    references = {"gsm8k": "#### 1", "qa": ["a b"], "ner": ["B-PER", "O"], "pos": ["NOUN", "X"]}
    reference = {**references, "preference": (0.25, 0.75, 0)}.get(name, "no")
    outputs = ["B-PER B-LOC a no 1", '{"model_a": 0.5, "model_b": 0.3, "tie": 0.2}', ""]
    rows = [task.statistics(output, reference, "en") for output in outputs]
    if isinstance(task, LikelihoodScores):  # what a model's likelihood adds
        sums = ({"tokens": 4, "negative_log_likelihood": 6.5, "correct_tokens": 1}, {"tokens": 1}, {"tokens": 9})
        rows = [row | dict.fromkeys(sums[0], 3.0) | more for row, more in zip(rows, sums, strict=True)]
    weights = np.array([[1, 1, 1], [3, 0, 0], [0, 2, 1]]) / 3  # three resamples of three examples
    means = {key: weights @ np.array([row[key] for row in rows]) for key in rows[0]}
    for metric, values in task.metrics(means).items():
        for resample, value in zip(([0, 1, 2], [0, 0, 0], [1, 1, 2]), np.asarray(values), strict=True):
            scored = metrics_of(task, [rows[index] for index in resample])
            assert scored[metric] == pytest.approx(value)
