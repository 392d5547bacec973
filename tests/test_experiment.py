"""The vocabulary that rooms share: conditions, views and the record of a training run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from logitbank.errors import ConfigError
from logitbank.experiment import (
    CONDITIONS,
    TRAINING_RECORD,
    TrainingRecord,
    condition_of,
    is_same_model,
    view_of_argument,
)


def test_conditions_are_those_of_the_study() -> None:
    found = {name: (each.trained, each.view, each.demonstrations) for name, each in CONDITIONS.items()}
    assert found == {
        "base": (False, None, False),
        "fewshot": (False, None, True),
        "finetuned": (True, None, False),
        "distilled": (True, "fewshot", False),
        "control": (True, "zeroshot", False),
        "shuffled_answers": (True, "shuffled_answers", False),
    }


def test_no_view_is_spelt_none() -> None:
    assert view_of_argument("none") is None
    assert view_of_argument("fewshot") == "fewshot"


@pytest.mark.parametrize(
    ("view", "teacher", "condition"),
    [
        (None, None, "finetuned"),
        (None, "org/big", "finetuned"),
        ("fewshot", None, "distilled"),
        ("fewshot", "org/small", "distilled"),
        ("context", "org/small", "distilled"),
        ("zeroshot", None, "control"),
        ("zeroshot", "/models/small", "control"),  # a local copy
        ("zeroshot", "org/big", "distilled"),
        ("context", "org/big", "distilled"),
        ("shuffled_answers", "org/small", "shuffled_answers"),
        ("shuffled_answers", "org/big", "distilled"),
        ("mine", "org/small", "mine"),
    ],
)
def test_a_condition_says_what_the_student_learnt_from(view: str | None, teacher: str | None, condition: str) -> None:
    assert condition_of(view, teacher=teacher, model="org/small") == condition


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("org/small", "org/small", True),
        ("org/small", "/models/small/", True),
        ("org/small", "org/large", False),
        ("runs/a/final", "runs/b/final", False),
        ("runs/a/final", "./runs/a/final", True),
        ("runs/a/checkpoint-20", "runs/b/checkpoint-20", False),
        ("runs/a/finalist", "runs/b/finalist", True),
    ],
)
def test_models_are_one_by_their_last_part_unless_training_named_it(one: str, other: str, same: bool) -> None:
    assert is_same_model(one, other) == is_same_model(other, one) == same


RECORD = TrainingRecord(
    run="r",
    condition="distilled",
    model="m",
    view="fewshot",
    seed=1,
    config={"seed": 1},
    store="s",
    store_fingerprint="f",
    view_fingerprint="v",
    versions={"torch": "2"},
    step=3,
)


def test_a_record_is_read_as_it_was_written_and_cannot_be_changed(tmp_path: Path) -> None:
    assert TrainingRecord.read(tmp_path) is None
    (tmp_path / TRAINING_RECORD).write_text(json.dumps(RECORD.to_json() | {"of_a_later_version": 1}))
    assert TrainingRecord.read(tmp_path) == RECORD
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORD.step = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "expected a JSON object, got list"),
        ('{"run": "r"}', "these keys are missing: condition, model"),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / TRAINING_RECORD).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        TrainingRecord.read(tmp_path)
    assert "\n" not in str(caught.value)
