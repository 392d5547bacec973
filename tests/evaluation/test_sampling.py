"""Answers that a model samples to training examples: their distribution, their files, and what resumes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.configs import Config, ConfigError
from logitbank.evaluation import sampling
from logitbank.evaluation.engines.base import Draw, Request, Sampling, open_engine, sample_of
from logitbank.evaluation.engines.drawing import draw_tokens
from logitbank.evaluation.engines.huggingface import HfEngine
from logitbank.evaluation.sampling import sample_answers
from logitbank.tasks.answers import record_path
from logitbank.uniforms import uniforms
from tests import tiny

TASKS = ("tasks=[nli,pa]", "languages=[en]", "data.max_train_per_task=9", "sampling.max_new_tokens=6")


def rows_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    return {row["id"]: row["answers"] for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.numeric
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.6)])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature: float, top_p: float) -> None:
    """Places that divide [0, 1) evenly: how many a token gets is its share, to one place."""
    logits = torch.tensor([2.0, -1.0, 0.5, 0.5, 9.0, 1.0])  # the fifth is a row of the head, and no token
    places, sampler = 10_000, Sampling(temperature, top_p, vocabulary=4)
    uniform = (torch.arange(places, dtype=torch.float64) + 0.5) / places
    drawn = Counter(draw_tokens(logits.expand(places, -1), uniform, sampler).tolist())
    p = np.exp(logits[:4].double().numpy() / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: 1 + int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-12))]
    assert set(drawn) == set(kept.tolist())
    for token in kept.tolist():
        assert abs(drawn[token] - places * p[token] / p[kept].sum()) <= 2


def test_at_temperature_0_the_likeliest_token_is_taken() -> None:
    logits, uniform = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 9.0]]), torch.tensor([0.99, 0.99]).double()
    assert draw_tokens(logits, uniform, Sampling(0.0, 1.0, 2)).tolist() == [1, 0]


def test_a_sample_ends_with_its_stop_token_or_where_no_token_follows() -> None:
    assert sample_of([5, 7, 2, 9], [2], 10) == sample_of([5, 7, 2], [2], 10)
    assert list(sample_of([5, 7, 2, 9], [2], 10).token_ids) == [5, 7, 2]
    assert not sample_of([2], [2], 10).cut_short
    assert sample_of([5, 7], [2], 10).cut_short
    assert list(sample_of([5, 11, 2], [2], 10).token_ids) == [5]  # 11 is a padding row
    assert sample_of([5, 11, 2], [2], 10).cut_short


def test_samples_of_a_batch_are_those_of_a_plain_loop(config: Callable[..., Config]) -> None:
    engine = open_engine(config("evaluation.batch_tokens=300"), None)
    assert isinstance(engine, HfEngine)
    rng, how = np.random.default_rng(0), Sampling(0.8, 0.9, 250)
    requests = [Request(rng.integers(256, size=size).tolist(), 3 + size % 5) for size in (4, 30, 11, 17)]
    draws = [Draw(request, 3, f"row {number}") for number, request in enumerate(requests)]
    ready: list[int] = []
    samples = engine.sample(draws, how, progress=ready.append)
    assert sum(ready) == 4
    for draw, sample in zip(draws, samples, strict=True):
        ids = list(draw.request.prompt_ids)
        for number in uniforms(3, draw.name, draw.request.max_new_tokens):
            with torch.inference_mode():
                logits = engine.model(torch.tensor([ids])).logits[:, -1]
            ids.append(int(draw_tokens(logits, torch.tensor([number]), how)))
            if ids[-1] in engine.stop_ids:
                break
        assert list(sample.token_ids) == ids[len(draw.request.prompt_ids) :]
        assert sample.cut_short == (ids[-1] not in engine.stop_ids)


def test_every_training_example_gets_its_answers_and_the_file_says_whose(
    config: Callable[..., Config], tmp_path: Path, tiny_model: Path, tokenizer: Any
) -> None:
    path = sample_answers(config(*TASKS, "sampling.n=3", "sampling.seed=5"), output=tmp_path / "a.jsonl")
    rows = rows_of(path)
    assert Counter(name.partition("/")[0] for name in rows) == {"nli": 9, "pa": 9}
    for answers in rows.values():
        assert len(answers) == 3
        assert len({tuple(answer["token_ids"]) for answer in answers}) > 1
        for answer in answers:
            ended = answer["token_ids"][-1] == tokenizer.eos_token_id
            assert answer["finish_reason"] == ("stop" if ended else "length")
            assert len(answer["token_ids"]) == 6 or ended
            assert answer["text"] == tokenizer.decode(answer["token_ids"], skip_special_tokens=True)
    record = json.loads(record_path(path).read_text())
    assert record["model"] == str(tiny_model)
    assert len(record["weights"]) == 64
    assert record["training"] is None
    assert {name: record["sampling"][name] for name in ("temperature", "top_p", "n", "seed", "engine")} == {
        "temperature": 1.0,
        "top_p": 1.0,
        "n": 3,
        "seed": 5,
        "engine": "hf",
    }


def test_a_killed_run_resumes_and_ends_with_the_same_answers(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "BLOCK", 8)
    settings = config(*TASKS, "sampling.n=2")
    whole = sample_answers(settings, output=tmp_path / "whole.jsonl").read_bytes()
    assert whole.count(b"\n") == 18
    asked: list[int] = []

    class Dying(HfEngine):
        def sample(self, draws: Any, how: Any, *, progress: Any) -> Any:
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(len(draws))
            return super().sample(draws, how, progress=progress)

    def opener(config: Config, checkpoint: Any) -> Any:
        engine = open_engine(config, checkpoint)
        engine.__class__ = Dying
        return engine

    path = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sample_answers(settings, output=path, opener=opener)
    assert not path.exists()
    partial = tmp_path / "cut.jsonl.partial"
    assert partial.read_bytes() == b"".join(whole.splitlines(keepends=True)[:8])
    partial.write_bytes(partial.read_bytes() + b'{"id": "nli/en/tr')  # the kernel wrote half of a block
    with pytest.raises(ConfigError, match=r"was started with sampling.temperature = 1.0, but this run requests 0.5"):
        sample_answers(config(*TASKS, "sampling.n=2", "sampling.temperature=0.5"), output=path)
    asked[:] = [0, 0, 0]  # lives now
    assert sample_answers(settings, output=path, opener=opener).read_bytes() == whole
    assert sum(asked) == 2 * (18 - 8)
    assert not partial.exists()

    def never(config: Config, checkpoint: Any) -> Any:
        raise AssertionError("the file is complete")

    assert sample_answers(settings, output=path, opener=never).read_bytes() == whole


def test_answers_do_not_depend_on_what_else_is_asked(config: Callable[..., Config], tmp_path: Path) -> None:
    both = rows_of(sample_answers(config(*TASKS), output=tmp_path / "both"))
    one = rows_of(sample_answers(config(*TASKS, "tasks=[pa]", "evaluation.batch_tokens=200"), output=tmp_path / "one"))
    assert one == {name: answers for name, answers in both.items() if name.startswith("pa/")}


def test_a_prompt_that_leaves_no_room_has_no_answer(config: Callable[..., Config], tmp_path: Path) -> None:
    rows = rows_of(sample_answers(config(*TASKS, "data.max_student_tokens=40"), output=tmp_path / "a"))
    assert set(map(len, rows.values())) == {0}


def test_a_writer_of_other_tokens_gives_text_alone(config: Callable[..., Config], tmp_path: Path) -> None:
    other = tiny.byte_tokenizer(tiny.CHAT_TEMPLATE, eos="<end>", turn=("<start>", "<end>"), control=("<pad>", "<more>"))
    model = tiny.save_model(tmp_path / "other", other, rows=264, initializer_range=0.4)
    path = sample_answers(config(*TASKS, f"sampling.model={model}"), output=tmp_path / "a.jsonl")
    answers = [answer for given in rows_of(path).values() for answer in given]
    assert len(answers) > 9
    assert all(answer["text"] and "token_ids" not in answer for answer in answers)
    assert json.loads(record_path(path).read_text())["model"] == str(model)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sampling.top_p=0", "sampling.top_p: expected a share above 0 and at most 1, got 0"),
        ("sampling.temperature=-1", "sampling.temperature: expected a number of at least 0, got -1"),
        ("sampling.n=0", "sampling.n: expected a number of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be(config: Callable[..., Config], override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(override)


def test_one_answer_is_all_that_there_is_at_temperature_0(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.n: expected 1 at temperature 0"):
        config("sampling.temperature=0", "sampling.n=2")
