"""The vLLM teacher says what the transformers teacher says, in every field, and the same each time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.configs import Config, ConfigError, load_config
from logitbank.configs.schema import ModelConfig, VllmConfig
from logitbank.errors import StoreError
from logitbank.models.huggingface import load_tokenizer
from logitbank.models.workers import Worker
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows, TeacherStore
from logitbank.tasks.prompts import PromptEncoder
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.vllm import VllmTeacher
from tests.plans import fill_with, gather

VIEWS = ("zeroshot", "fewshot")  # the first also gives the pilot
FLOAT32, BFLOAT16 = 1e-3, 0.25  # nats; a bfloat16 logit near 20 is itself a multiple of 1/8


class Teacher:
    """One engine for the tests of this module, with what it is asked."""

    def __init__(self, settings: list[str]) -> None:
        self.config: Config = load_config([], [*settings, "teacher.engine=vllm"])
        self.encoder = PromptEncoder(load_tokenizer(self.config.model))
        self.engine = VllmTeacher(
            self.config.model,
            self.config.vllm,
            dtype="float32",
            tokenizer_size=len(self.encoder.tokenizer),
            batch_tokens=self.config.teacher.batch_tokens,
            max_tokens=gather(self.config, VIEWS).longest,
        )

    def fill(
        self,
        path: Path,
        config: Config,
        views: Sequence[str] = VIEWS,
        worker: int | None = None,
        workers: int | None = None,
    ) -> Path:
        share = None if worker is None or workers is None else Worker(worker, workers, "test")
        fill_with(str(path), config, views, self.engine, share)
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
    ours = teacher.fill(tmp_path / "ours", teacher.config)
    views = [argument for view in VIEWS for argument in ("--view", view)]
    compared = _differences(ours, transformers_store(*views, "teacher.dtype=float32"), FLOAT32)
    assert set(compared) == {"gsm8k", "nli", "pa", "qa", "ner", "pos"}
    assert min(compared.values()) > 0
    identity = TeacherStore.open(str(ours)).info.teacher
    assert (identity["engine"], identity["dtype"]) == ("vllm", "float32")
    assert identity["versions"]["vllm"]


def test_bytes_do_not_depend_on_the_workers(teacher: Teacher, settings: list[str], tmp_path: Path) -> None:
    config = load_config([], [*settings, "tasks=[nli,qa,ner]", "data.max_train_per_task=8", "store.shard_tokens=32"])
    alone = teacher.fill(tmp_path / "alone", config, ["zeroshot"])
    for worker in (1, 0):
        teacher.fill(tmp_path / "two", config, ["zeroshot"], worker, 2)
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


def test_answers_that_the_prefix_cache_holds_are_read_all_the_same(teacher: Teacher) -> None:
    """Equal prompts and beginnings of answers, longer than a block of the cache (128 tokens on a CPU)."""
    rng = np.random.default_rng(8)
    prompt, answer = rng.integers(0, 150_000, 100), rng.integers(0, 150_000, 200)
    other = np.concatenate([answer[:180], rng.integers(0, 150_000, 9)])
    batch = [Sequenced(AnsweredSequence.answering(prompt, ids)) for ids in (answer, answer, other)]
    together = teacher.engine.score(batch, 20)
    alone = [teacher.engine.score([item], 20) for item in batch]
    assert len(together) == 589
    for field in ("logits", "logsumexp", "entropy", "gold_logit"):
        joined = np.concatenate([getattr(rows, field) for rows in alone])
        np.testing.assert_allclose(getattr(together, field), joined, atol=1e-4, err_msg=field)


def test_an_answer_that_two_forward_passes_share_has_the_rows_of_one(teacher: Teacher) -> None:
    """A pass reads 8,192 tokens (`teacher.batch_tokens`), so it ends at token 502 of the eleventh of these."""
    rng = np.random.default_rng(9)
    items = [
        Sequenced(AnsweredSequence(rng.integers(0, 150_000, 770), [(480, 60), (765, 5)] if i == 10 else [(769, 1)]))
        for i in range(13)
    ]
    rows = teacher.engine.score(items, 5).take(np.arange(10, 75))
    alone = teacher.engine.score([items[10]], 5)
    for field in ("logits", "logsumexp", "entropy", "gold_logit"):
        np.testing.assert_allclose(getattr(rows, field), getattr(alone, field), atol=1e-4, err_msg=field)


@pytest.mark.parametrize("kind", ["sampled", "hybrid"])
def test_draws_are_those_of_the_transformers_teacher(
    kind: str, teacher: Teacher, settings: list[str], transformers_store: Callable[..., Path], tmp_path: Path
) -> None:
    drawn = [f"teacher.signal={kind}", "teacher.draws=20", "tasks=[nli,ner]", "teacher.dtype=float32"]
    config = load_config([], [*settings, "teacher.engine=vllm", *drawn])
    ours = teacher.fill(tmp_path / "ours", config, ["zeroshot"])
    theirs = transformers_store("--view", "zeroshot", *drawn)
    a, b = (TeacherStore.open(str(path)) for path in (ours, theirs))
    mine, other = (store.read(range(len(store.examples)), "zeroshot") for store in (a, b))
    np.testing.assert_allclose(mine.sample_log_mass, other.sample_log_mass, atol=2 * FLOAT32)
    counts = np.zeros((2, len(mine), a.info.vocab_size), dtype=np.int32)
    for side, rows in enumerate((mine, other)):
        np.add.at(counts[side], (np.arange(len(rows))[:, None], rows.sample_ids), rows.sample_counts)
    assert (counts.sum(axis=2) > 0).any()
    # A point near the border of two tokens may fall on the other side of it.
    assert np.abs(counts[0] - counts[1]).sum() <= 0.02 * counts[1].sum()


def test_two_processes_share_the_model(settings: list[str], teacher: Teacher, tmp_path: Path) -> None:
    """Tensor parallelism: each process has half of the `lm_head`."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("tensor parallelism on a CPU needs two cores")
    first, second, *_ = sorted(os.sched_getaffinity(0))
    overrides = ["tasks=[nli,ner]", "teacher.dtype=float32", "vllm.tensor_parallel=2"]
    command = [sys.executable, "-m", "logitbank", "build-teacher-cache", "--store", str(tmp_path / "two"), *settings]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": f"{first}|{second}"}
    done = subprocess.run(
        [*command, "--view", "zeroshot", "teacher.engine=vllm", *overrides],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    config = load_config([], [*settings, "teacher.engine=vllm", *overrides])
    alone = teacher.fill(tmp_path / "alone", config, ["zeroshot"])
    _differences(tmp_path / "two", alone, FLOAT32)


def test_a_store_whose_answers_were_decoded_is_not_continued(
    settings: list[str], teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([], [*settings, "tasks=[nli]", "teacher.engine=vllm"])
    identity = {key: value for key, value in teacher.engine.identity().items() if key != "capture"}
    with monkeypatch.context() as earlier:
        earlier.setattr(teacher.engine, "identity", lambda: identity)
        teacher.fill(tmp_path / "store", config, ["zeroshot"])
    with pytest.raises(
        StoreError, match=r"teacher\.capture = decode, but this run requests prefill; .*another --store"
    ):
        teacher.fill(tmp_path / "store", config, ["zeroshot"])


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
