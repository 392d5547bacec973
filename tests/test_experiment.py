"""The vocabulary that rooms share: conditions, views and the record of a training run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from logitbank.errors import ConfigError
from logitbank.experiment import CONDITIONS, TRAINING_RECORD, TrainingRecord, condition_of_view, view_of_argument


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


def test_a_view_has_its_condition_and_an_unknown_one_its_own_name() -> None:
    views = (None, "fewshot", "zeroshot", "shuffled_answers", "mine")
    assert [condition_of_view(view) for view in views] == [
        "finetuned",
        "distilled",
        "control",
        "shuffled_answers",
        "mine",
    ]
    assert view_of_argument("none") is None
    assert view_of_argument("fewshot") == "fewshot"


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
        ('{"run": "r"}', "it lacks condition, model"),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / TRAINING_RECORD).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        TrainingRecord.read(tmp_path)
    assert "\n" not in str(caught.value)
