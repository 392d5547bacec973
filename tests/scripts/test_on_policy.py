"""The study of sampled answers, and what is said where answers, student and teacher do not fit."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from logitbank.__main__ import main
from logitbank.configs import load_config
from logitbank.models.weights import weights_hash
from logitbank.scripts.demo_world import make_model
from logitbank.scripts.incontext import table
from logitbank.scripts.on_policy import ARMS, CONDITIONS, DIFFERENCES, Study, run_seed
from logitbank.scripts.stages import Stages
from logitbank.storage import TeacherStore
from tests import processes
from tests.scripts.conftest import UNTRAINED

NOT_ITS_OWN = "they are not its own"


@pytest.fixture(scope="module")
def study(settings: list[str], world: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One seed, run."""
    output = tmp_path_factory.mktemp("on-policy")
    (output / "model").symlink_to(world / "model")
    small = ["tasks=[pos]", "languages=[en]", "data.max_train_per_task=4", "evaluation.max_samples=2"]
    own = [item for item in settings if not item.startswith(("model.name", "data.mirror", "languages", "tasks"))]
    return Study(output, rounds=2, steps=2, seeds=2, overrides=[*own, *small])


@pytest.fixture(scope="module")
def scores(study: Study) -> dict[str, dict[str, float]]:
    return run_seed(study, 1)


def test_a_seed_scores_every_student_after_rounds_that_build_on_each_other(
    study: Study, scores: dict[str, dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    assert list(scores) == list(CONDITIONS)
    assert all(set(of_task) == {"pos"} for of_task in scores.values())
    records = {
        (arm, number): json.loads((study.student(1, arm, number) / "final/training.json").read_text())
        for arm in ARMS
        for number in (1, 2)
    }
    for (arm, number), record in records.items():
        before = None if number == 1 else str(study.student(1, arm, 1) / "final")
        assert record["config"]["training"]["init_from"] == before
        assert record["config"]["distillation"]["ce_weight"] == (1.0 if arm == "given" else 0.0)
        assert record["step"] == 2
    assert len({record["training_set"] for record in records.values()}) == 3  # given, and one for each round
    stores = [TeacherStore.open(str(study.student(1, "on_policy", number) / "store")) for number in (1, 2)]
    first, second = (store.info.answers for store in stores)
    assert first is not None
    assert second is not None
    model = load_config([], [f"model.name={study.output / 'model'}"]).model
    assert (first["weights"], first["training"]) == (weights_hash(model), None)
    writer = study.student(1, "on_policy", 1) / "final"
    assert second["model"] == str(writer)
    assert second["weights"] == weights_hash(replace(model, name=str(writer)))
    assert second["training"]["store_fingerprint"] == stores[0].info.fingerprint
    assert second["training"]["teacher"] == str(study.output / "model")
    assert first["sampling"]["seed"] != second["sampling"]["seed"]
    caplog.set_level(logging.INFO)
    before = (study.student(1, "on_policy", 2) / "final/training.json").read_bytes()
    assert run_seed(study, 1) == scores
    assert caplog.text.count("done already") == 2 + 6
    assert (study.student(1, "on_policy", 2) / "final/training.json").read_bytes() == before


@pytest.mark.usefixtures("scores")
def test_a_student_that_did_not_write_the_answers_is_told(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = study.student(1, "on_policy", 2)
    stages = Stages("s", ["demo"], study.settings(1), str(own / "store"), tmp_path / "results")
    stages.train("fewshot", tmp_path / "own", [f"training.init_from={study.student(1, 'on_policy', 1) / 'final'}"])
    assert "warning" not in caplog.text
    stages.train("fewshot", tmp_path / "other")
    assert f"but the student begins with {study.output / 'model'}" in caplog.text
    assert NOT_ITS_OWN in caplog.text


@pytest.mark.usefixtures("scores")
def test_another_teacher_than_the_writers_is_told_by_builds_and_inspection(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(tmp_path / "teacher", replace(UNTRAINED, seed=5))
    said = f"the answers were written by a student of {study.output / 'model'}, but {tmp_path / 'teacher'} scored them"
    answers = study.student(1, "on_policy", 2) / "answers.jsonl"
    for teacher in ([], [f"teacher.model={tmp_path / 'teacher'}"]):
        url = str(tmp_path / f"store-{len(teacher)}")
        Stages("s", ["demo"], [*study.settings(1), *teacher], url, tmp_path).build(["fewshot"], answers)
        main(["inspect-cache", "--store", url])
        shown = capsys.readouterr().out
        assert f"answers by {study.student(1, 'on_policy', 1) / 'final'}" in shown
        assert f"a student of {study.output / 'model'} (view fewshot); temperature 1, top_p 1, n 1, seed 2001" in shown
        assert (said in shown) == (said in caplog.text) == bool(teacher)


def test_generated_answers_lie_beside_the_store(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--answers generate`: the file that `sample-answers` writes in a process, and the store that is made of it."""

    def run_process(words: Sequence[str]) -> None:
        assert list(words[:3]) == [sys.executable, "-m", "logitbank"]
        assert not processes.run(*words[3:]).returncode

    monkeypatch.setattr("logitbank.teacher_cache.build_command.run_process", run_process)
    words = ["--config", "demo", *study.settings(1), "sampling.n=2"]
    main(["build-teacher-cache", "--store", str(tmp_path / "s"), "--view", "zeroshot", "--answers", "generate", *words])
    main(["sample-answers", "--output", str(tmp_path / "a.jsonl"), *words])
    assert (tmp_path / "s.answers.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    opened = TeacherStore.open(str(tmp_path / "s"))
    assert len(opened.examples) == 2 * (tmp_path / "a.jsonl").read_bytes().count(b"\n")
    assert not opened.missing_shards("zeroshot")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--store", "memory://s"], "--answers: generate writes beside a directory, got --store memory://s; run"),
        (
            ["--store", "s", "--worker", "0/2"],
            "--answers: generate is of one process; run logitbank sample-answers first",
        ),
        (["--store", "s", "--dry-run"], "--dry-run: generated answers are not known yet; run logitbank sample-answers"),
    ],
)
def test_where_nothing_can_be_generated(
    settings: list[str], words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["build-teacher-cache", "--config", "demo", "--answers", "generate", *words, *settings])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_the_table_has_a_row_for_each_student_and_each_paired_difference() -> None:
    by_seed = [{name: {"nli": (i + n) / 10} for i, name in enumerate(CONDITIONS)} for n in (0, 2)]
    lines = table(by_seed, CONDITIONS, DIFFERENCES).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        *CONDITIONS,
        *(f"{first} − {second}" for first, second in DIFFERENCES),
    ]
    assert "| 40.0 ±127.1 |" in lines[2 + 3]
    assert "| +10.0 ±0.0 |" in lines[-3]


def test_a_dry_run_lists_the_students(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", "on-policy", "--output", str(tmp_path / "s"), "--dry-run", "--seeds", "2", "--rounds", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 3 * 3
    assert lines[8] == "seed-0/on_policy-3: 50 steps from on_policy-2, on answers of on_policy-2"
    assert not (tmp_path / "s").exists()
