"""The vLLM teacher says what the transformers teacher says, in every field, and the same each time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.configs import Config, ConfigError, load_config
from logitbank.configs.schema import ModelConfig, VllmConfig
from logitbank.models.huggingface import load_tokenizer
from logitbank.models.workers import Worker
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows, TeacherStore
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.vllm import VllmTeacher
from logitbank.teacher_cache.fill import fill_share
from logitbank.teacher_cache.plan import TeacherPlan, make_plan
from logitbank.teacher_cache.session import begin

VIEWS = ("zeroshot", "fewshot")  # the first also gives the pilot
FLOAT32, BFLOAT16 = 1e-3, 0.25  # nats; a bfloat16 logit near 20 is itself a multiple of 1/8


class Teacher:
    """One engine for the tests of this module, with what it is asked."""

    def __init__(self, settings: list[str]) -> None:
        self.config: Config = load_config([], [*settings, "teacher.engine=vllm"])
        self.encoder = PromptEncoder(load_tokenizer(self.config.model))
        self.plan = make_plan(self.config, self.encoder, VIEWS)
        self.engine = VllmTeacher(
            self.config.model,
            self.config.vllm,
            dtype="float32",
            tokenizer_size=len(self.encoder.tokenizer),
            batch_tokens=self.config.teacher.batch_tokens,
            max_tokens=self.plan.longest,
        )

    def fill(
        self, path: Path, plan: TeacherPlan, config: Config, worker: int | None = None, workers: int | None = None
    ) -> Path:
        share = None if worker is None or workers is None else Worker(worker, workers, "test")
        with begin(str(path), config, plan, self.encoder, self.engine, worker=share) as session:
            fill_share(session, share)
        return path


@pytest.fixture(scope="module")
def teacher(settings: list[str]) -> Teacher:
    return Teacher(settings)


def _differences(ours: Path, theirs: Path, tolerance: float) -> dict[str, int]:
    """Check two stores against each other; per task, the answer tokens compared."""
    mine, other = TeacherStore.open(str(ours)), TeacherStore.open(str(theirs))
    assert mine.views == other.views
    assert (mine.info.vocab_size, mine.info.tokenizer_size) == (other.info.vocab_size, other.info.tokenizer_size)
    assert list(mine.examples.example_id) == list(other.examples.example_id)
    everything = range(len(mine.examples))
    for view in mine.views:
        a, b = mine.read(everything, view), other.read(everything, view)
        for field in ("logits", "logsumexp", "entropy", "gold_logit"):
            difference = np.abs(getattr(a, field).astype(np.float64) - getattr(b, field))
            assert difference.max() < tolerance, f"{view} {field}"
        _check_ids(a, b, tolerance)
        # A rank may move past tokens whose logits are as close as the tolerance, and past no others.
        for row in np.flatnonzero(a.gold_rank != b.gold_rank):
            low, high = sorted((int(a.gold_rank[row]), int(b.gold_rank[row])))
            if high < a.logits.shape[1]:
                assert a.logits[row, low] - a.logits[row, high] < 2 * tolerance
    lengths = mine.examples.answer_length
    return {name: int(lengths[mine.examples.task == i].sum()) for i, name in enumerate(mine.info.tasks)}


def _check_ids(a: TeacherRows, b: TeacherRows, tolerance: float) -> None:
    """Tokens at the same rank are the same, except among logits closer than the tolerance."""
    last = b.logits[:, -1]
    for row, rank in zip(*np.nonzero(a.token_ids != b.token_ids), strict=True):
        (elsewhere,) = np.nonzero(b.token_ids[row] == a.token_ids[row, rank])
        theirs = b.logits[row, elsewhere[0]] if len(elsewhere) else last[row]
        assert abs(float(a.logits[row, rank]) - float(theirs)) < 2 * tolerance


def test_float32_stores_agree_on_all_tasks(
    teacher: Teacher, transformers_store: Callable[..., Path], tmp_path: Path
) -> None:
    ours = teacher.fill(tmp_path / "ours", teacher.plan, teacher.config)
    views = [argument for view in VIEWS for argument in ("--view", view)]
    compared = _differences(ours, transformers_store(*views, "teacher.dtype=float32"), FLOAT32)
    assert set(compared) == {"gsm8k", "nli", "pa", "qa", "ner", "pos"}
    assert min(compared.values()) > 0
    identity = TeacherStore.open(str(ours)).info.teacher
    assert (identity["engine"], identity["dtype"]) == ("vllm", "float32")
    assert identity["versions"]["vllm"]


def test_bytes_do_not_depend_on_the_workers(teacher: Teacher, settings: list[str], tmp_path: Path) -> None:
    config = load_config([], [*settings, "tasks=[nli,qa,ner]", "data.max_train_per_task=8", "store.shard_tokens=32"])
    plan = make_plan(config, teacher.encoder, ["zeroshot"])
    alone = teacher.fill(tmp_path / "alone", plan, config)
    for worker in (1, 0):
        teacher.fill(tmp_path / "two", plan, config, worker, 2)
    assert TeacherStore.open(str(alone)).info.shards >= 4
    objects = {file.relative_to(alone) for file in alone.rglob("*") if file.is_file() and ".lock" not in file.name}
    for file in objects:
        assert (alone / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_shared_prompts_and_single_tokens(teacher: Teacher) -> None:
    """Prompts that share blocks of the cache, answers of one token, a gold token far from the top."""
    rng = np.random.default_rng(3)
    common = rng.integers(0, 1000, 300).astype(np.int32)
    answers = [rng.integers(0, most, size) for most, size in ((150_000, 1), (150_000, 9), (9, 3))]
    batch = [
        Sequenced(AnsweredSequence.answering(np.concatenate([common, rng.integers(0, 1000, tail)]), answer))
        for tail, answer in zip((5, 5, 40), answers, strict=True)
    ]
    together = teacher.engine.score(batch, 20)
    assert len(together) == 13
    alone = [teacher.engine.score([item], 20) for item in batch]
    for field in fields(TeacherRows):
        joined: Any = np.concatenate([getattr(rows, field.name) for rows in alone])
        if field.name not in ("token_ids", "gold_rank"):
            np.testing.assert_allclose(getattr(together, field.name), joined, atol=1e-4, err_msg=field.name)
    assert together.gold_rank.max() > 1000
    together.check(teacher.engine._tokenizer_size, teacher.engine.vocab_size)


def test_spans_of_a_conversation_have_the_rows_of_each_by_itself(teacher: Teacher) -> None:
    """Later turns begin with earlier ones, answers included."""
    rng = np.random.default_rng(5)
    batch = []
    for lengths in ([40, 9, 5, 12, 30, 1], [70, 20], [3, 1, 2, 17]):
        ends = np.cumsum(lengths)
        spans = [(int(end) - length, length) for end, length in zip(ends, lengths, strict=True)][1::2]
        batch.append(Sequenced(AnsweredSequence(rng.integers(0, 150_000, ends[-1]), spans)))
    together = teacher.engine.score(batch, 20)
    apart = [
        Sequenced(AnsweredSequence(item.sequence.ids[: span.stop], [span]))
        for item in batch
        for span in item.sequence.spans
    ]
    assert len(apart) == 6
    alone = [teacher.engine.score([item], 20) for item in apart]
    assert len(together) == sum(map(len, alone))
    for field in ("logits", "logsumexp", "entropy", "gold_logit"):
        joined = np.concatenate([getattr(rows, field) for rows in alone])
        np.testing.assert_allclose(getattr(together, field), joined, atol=1e-4, err_msg=field)


def test_the_command_agrees_in_bfloat16(
    settings: list[str], transformers_store: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["--view", "zeroshot", "teacher.dtype=bfloat16", "tasks=[nli,ner]"]
    command = [sys.executable, "-m", "logitbank", "build-teacher-cache", "--store", str(tmp_path / "ours"), *settings]
    done = subprocess.run([*command, *arguments, "teacher.engine=vllm"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "zeroshot complete" in done.stdout
    _differences(tmp_path / "ours", transformers_store(*arguments), BFLOAT16)


def test_a_model_that_cannot_be_opened_is_one_line(tmp_path: Path, settings: list[str]) -> None:
    model = load_config([], settings).model.name
    with pytest.raises(ConfigError, match=r"teacher.engine: vLLM cannot open .*proxy-qwen3: \S+") as error:
        VllmTeacher(
            ModelConfig(model),
            VllmConfig(kv_cache_gib=0.5),
            dtype="float32",
            tokenizer_size=100,
            batch_tokens=1024,
            max_tokens=1 << 20,  # more than the model's context
        )
    assert "\n" not in str(error.value)
