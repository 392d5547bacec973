"""Plans: made once, in bounded memory, kept in the store; killed at any point, the next run goes on."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logitbank.errors import ConfigError, StoreError
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherStore, verify
from logitbank.tasks.encoding import TeacherSequence
from logitbank.teacher_cache.session import begin
from tests.plans import ListedQuestions
from tests.teacher_cache.fakes import FakeTeacher, configuration, contents, small_questions

FORK = multiprocessing.get_context("fork")


class CountingQuestions(ListedQuestions):
    """Counts how often everything is asked; `at` is called before each question."""

    def __init__(self, at: Callable[[int], object] = lambda number: None) -> None:
        base = small_questions()
        super().__init__(base.encoder, base.records, base.sequences)
        self.passes = 0
        self._at = at

    def asked(self, number: int) -> list[Any]:
        self.passes += number == len(self) - 1
        self._at(number)
        return super().asked(number)


def build(path: Path, questions: ListedQuestions, engine: Any = None, **options: Any) -> None:
    opened = engine or FakeTeacher()
    with begin(
        str(path), configuration(), questions, lambda longest: opened, finds_prefixes=True, **options
    ) as session:
        session.fill(session.missing())


def body(path: Path, at: Callable[[int], object], open_engine: Callable[[int], Any]) -> None:
    with begin(str(path), configuration(), CountingQuestions(at), open_engine, finds_prefixes=True) as session:
        session.fill(session.missing()[:2])


def die(*arguments: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(path: Path, at: Callable[[int], object], open_engine: Callable[[int], Any]) -> None:
    process = FORK.Process(target=body, args=(path, at, open_engine))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "store"
    build(path, CountingQuestions())
    assert not verify(str(path))
    return contents(path)


def test_a_build_killed_in_the_pass_leaves_nothing_and_the_next_plans(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "store"
    killed(path, lambda number: die() if number == 70 else None, lambda longest: FakeTeacher())
    assert not contents(path)
    questions = CountingQuestions()
    build(path, questions)
    assert questions.passes == 1
    assert contents(path) == whole


def test_a_build_killed_while_the_teacher_loads_goes_on_with_its_plan(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "store"
    killed(path, lambda number: None, die)
    assert "plan/base.json" in contents(path)
    assert "manifest/base.json" not in contents(path)
    questions = CountingQuestions()
    build(path, questions)
    assert questions.passes == 0
    assert contents(path) == whole


def test_a_build_killed_in_the_pilot_goes_on_with_its_plan(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "store"
    killed(path, lambda number: None, lambda longest: FakeTeacher(die))
    questions = CountingQuestions()
    build(path, questions)
    assert questions.passes == 0
    assert contents(path) == whole


def test_a_plan_whose_first_settings_were_given_up_leaves_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "store"
    killed(path, lambda number: None, die)
    few = small_questions(7)
    build(path, few)
    assert not verify(str(path))
    assert len(TeacherStore.open(str(path)).examples) == 7


def test_a_store_without_its_plan_is_planned_again_and_gets_it_back(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "store"
    build(path, CountingQuestions())
    shutil.rmtree(path / "plan")
    (path / "manifest/zeroshot/1.json").unlink()
    questions = CountingQuestions()
    build(path, questions)
    assert questions.passes == 1
    assert {key: data for key, data in contents(path).items() if key != "plan/base.json"} == {
        key: data for key, data in whole.items() if key != "plan/base.json"
    }
    build(path, questions)
    assert questions.passes == 1


def test_a_damaged_plan_is_reported_and_made_again(tmp_path: Path) -> None:
    build(tmp_path, CountingQuestions())
    plan = tmp_path / "plan/fewshot.json"
    plan.write_bytes(plan.read_bytes().replace(b"prompt_hash", b"prompt_hush"))
    (problem,) = verify(str(tmp_path))
    assert problem.startswith("plan/fewshot.json: damaged")
    questions = CountingQuestions()
    build(tmp_path, questions)
    assert questions.passes == 1
    assert not verify(str(tmp_path))


def test_of_two_workers_one_plans_while_the_other_waits(tmp_path: Path) -> None:
    path, asked = tmp_path / "store", FORK.Value("i", 0)

    def work(index: int) -> None:
        def slowly(number: int) -> None:
            time.sleep(0.002)
            asked.value += 1

        from logitbank.models.workers import Worker

        questions = CountingQuestions(slowly)
        with begin(
            str(path),
            configuration(),
            questions,
            lambda longest: FakeTeacher(),
            finds_prefixes=True,
            worker=Worker(index, 2, "test"),
        ) as session:
            session.fill([item for item in session.missing() if item.shard % 2 == index])

    processes = [FORK.Process(target=work, args=(index,)) for index in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert asked.value < 150  # one pass over the 100 examples, and the first one of each
    assert not verify(str(path))


def test_prompts_that_are_not_what_was_planned_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "store"
    build(path, CountingQuestions())
    (path / "manifest/fewshot/0.json").unlink()
    changed = CountingQuestions()
    first, shown = changed.sequences["fewshot"][0]
    other = AnsweredSequence.answering([1, 2, 3], first.answer_ids)
    changed.sequences = {
        **changed.sequences,
        "fewshot": [TeacherSequence(other, shown), *changed.sequences["fewshot"][1:]],
    }
    with pytest.raises(StoreError, match="view fewshot, shard 0: expected the prompts and answers that were planned"):
        build(path, changed)


def test_nothing_is_written_where_no_example_fits(tmp_path: Path) -> None:
    nothing = CountingQuestions()
    nothing.asked = lambda number: []  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"data\.max_student_tokens: none of"):
        build(tmp_path / "store", nothing)
    assert not (tmp_path / "store").exists()


def test_a_plan_says_what_each_shard_costs(tmp_path: Path) -> None:
    questions = small_questions()
    with begin(str(tmp_path), configuration(), questions, lambda longest: FakeTeacher()) as session:
        missing = session.missing()
        assert {(item.view, item.shard) for item in missing} == {
            (view, shard) for view, shards in session.shards.items() for shard in range(shards)
        }
        asked = {view: sum(len(it.sequence) - 1 for it in found) for view, found in questions.sequences.items()}
        for view, tokens in asked.items():
            assert sum(item.tokens for item in missing if item.view == view) == tokens
        advanced: list[int] = []
        tally = session.fill(missing[3:5], advanced.append)
        assert sum(advanced) == tally.tokens == sum(item.tokens for item in missing[3:5])
        assert session.missing() == [*missing[:3], *missing[5:]]


MEASURED = """
import json, resource, sys, tempfile
from pathlib import Path
import numpy as np
from logitbank.sequences import AnsweredSequence
from logitbank.storage import ExampleRecord
from logitbank.tasks.encoding import TeacherSequence
from logitbank.teacher_cache.session import begin
from tests.plans import ListedQuestions
from tests.teacher_cache.fakes import ENCODER, FakeTeacher, configuration

class Many(ListedQuestions):
    views = ("fewshot",)
    def __init__(self, count):
        super().__init__(ENCODER, [], {})
        self.views, self.count = ("fewshot",), count
    def __len__(self):
        return self.count
    def asked(self, number):
        from logitbank.teacher_cache.questions import Asked
        record, sequence = self.again("fewshot", number, 0)
        return [Asked(record, number, 0, {"fewshot": TeacherSequence(sequence, 5)}, {"fewshot": 0})]
    def again(self, view, source, part):
        drawn = np.random.default_rng(source).integers(0, 60, 6400).astype(np.int32)
        prompt, answer = drawn[:4000], drawn[4000:]
        record = ExampleRecord(f"nli/en/train/{source}", "nli", "en", AnsweredSequence.answering(prompt[:800], answer))
        return record, AnsweredSequence.answering(prompt, answer)
    def key(self, view=None):
        return {"view": view, "count": self.count}

def run(count, folder):
    config = configuration(**{"store.shard_tokens": 4096, "store.chunk_tokens": 1024})
    with begin(folder, config, Many(count), lambda longest: FakeTeacher(), finds_prefixes=True):
        pass

with tempfile.TemporaryDirectory() as folder:
    run(20, folder + "/warm")
    before = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (before + (int(sys.argv[2]) << 20),) * 2)
    run(int(sys.argv[1]), folder + "/store")
"""


def test_memory_does_not_grow_with_the_tokens() -> None:
    """The system gives a build 40 MiB for 58 MB of token ids, of examples and of prompts."""
    command = [sys.executable, "-c", MEASURED, "2000", "40"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
