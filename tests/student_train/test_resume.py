"""`--resume`: after a kill, from the right checkpoint, to the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from logitbank.configs import Config, ConfigError
from logitbank.student_train import checkpoints
from logitbank.student_train.records import Run
from logitbank.student_train.train import train

STEPS = ["training.max_steps=24", "training.save_steps=3", "training.logging_steps=2"]
KINDS = {
    "lora": ["training.use_lora=true", "lora.dropout=0.1", "distillation.strategy=loss_ratio"],
    "full": ["distillation.strategy=meta", "distillation.meta_batch_size=4"],
}


def weights(final: Path) -> dict[str, torch.Tensor]:
    (file,) = final.glob("*.safetensors")
    return load_file(file)


def logged(results: Path) -> dict[tuple[int, str, str], float]:
    clock = ("tokens_per_second", "data_wait", "peak_memory")
    files = sorted((results / "training_log").glob("*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    keys = [(row["step"], row["task"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys), "a step is logged twice"
    return {key: row["value"] for key, row in zip(keys, rows, strict=True) if key[2] not in clock}


def train_and_kill(run: Run, checkpoint: str) -> None:
    """Train in a process of its own and kill it a random while after a checkpoint appeared."""
    child = os.fork()
    if child == 0:
        try:
            train(run)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while not (run.output / checkpoint).exists():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_with_the_same_bits(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, kind: str
) -> None:
    config = configure(*STEPS, *KINDS[kind])
    whole = Run(config, small_store.url, "fewshot", tmp_path / "whole", tmp_path / "whole" / "results")
    train(whole)
    output = tmp_path / "killed"
    killed = Run(config, small_store.url, "fewshot", output, output / "results")
    train_and_kill(killed, random.choice(["checkpoint-6", "checkpoint-9"]))
    assert not (output / "final").exists()
    resumed = Run(config, small_store.url, "fewshot", output, output / "results", resume=True)
    expected, got = weights(whole.output / "final"), weights(train(resumed))
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    assert logged(output / "results") == logged(tmp_path / "whole" / "results")
    assert not list(output.glob(".*.partial"))
    assert len(list((output / "results" / "runs").glob("*.parquet"))) == 1


def test_a_truncated_checkpoint_is_skipped_with_a_warning(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = configure(*STEPS, "training.max_steps=10")
    whole = train(Run(config, small_store.url, None, tmp_path / "whole", tmp_path / "results-whole"))
    run = Run(config, small_store.url, None, tmp_path / "run", tmp_path / "results")
    train(run)
    for damaged, name in (
        (run.output / "checkpoint-9", "model.safetensors"),
        (run.output / "checkpoint-6", "files.json"),
    ):
        file = damaged / name
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)
    for path in (run.output / "final").rglob("*"):
        path.unlink()
    (run.output / "final").rmdir()
    resumed = train(Run(config, small_store.url, None, run.output, run.results, resume=True))
    assert "checkpoint-9 is damaged (model.safetensors has" in caplog.text
    assert "checkpoint-6 is damaged (no readable files.json)" in caplog.text
    assert "steps 4 to 10" in caplog.text
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())
    assert logged(run.results) == logged(tmp_path / "results-whole")


def test_only_the_newest_checkpoints_are_kept(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(*STEPS, "training.max_steps=12", "training.save_total_limit=2")
    train(Run(config, small_store.url, None, tmp_path / "run", tmp_path / "results"))
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-6", "checkpoint-9"]


@pytest.mark.parametrize(
    ("override", "view", "says"),
    [
        ("training.learning_rate=0.5", "fewshot", "training.learning_rate"),
        ("data.max_train_per_task=3", "fewshot", "data.max_train_per_task"),
        ("training.num_workers=0", "zeroshot", "--view"),
    ],
)
def test_another_run_is_not_resumed(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, override: str, view: str, says: str
) -> None:
    steps = ["training.max_steps=4", "training.save_steps=2"]
    run = Run(configure(*steps), small_store.url, "fewshot", tmp_path / "run", tmp_path / "results")
    train(run)
    (run.output / "final").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{says}.*was trained with"):
        train(Run(configure(*steps, override), small_store.url, view, run.output, run.results, resume=True))


def test_an_interrupted_run_is_not_started_over_by_accident(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = Run(configure("training.save_steps=2"), small_store.url, None, tmp_path / "run", tmp_path / "results")
    train(run)
    (run.output / "final").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="add --resume"):
        train(run)


def test_tensorboard_files_hold_the_log(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure("training.tensorboard=true")
    train(Run(config, small_store.url, "fewshot", tmp_path / "run", tmp_path / "results"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = {(e.step, tag): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    for (step, task, metric), value in logged(tmp_path / "results").items():
        assert scalars[step, f"{task}/{metric}"] == pytest.approx(value, rel=1e-5)


def test_the_crossover_is_the_first_step_below_the_teacher(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure("training.max_steps=40", "training.learning_rate=0.02", "training.save_steps=7")
    train(Run(config, small_store.url, "fewshot", tmp_path / "run", tmp_path / "results"))
    values = logged(tmp_path / "results")
    for task in ("nli", "pos"):
        below = [s for s in range(1, 41) if values[s, task, "student_ce"] < values[s, task, "teacher_ce"]]
        crossed = [
            (step, value) for (step, t, metric), value in values.items() if (t, metric) == (task, "crossover_step")
        ]
        assert crossed == [(below[0], float(below[0]))]
