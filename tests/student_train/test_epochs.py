"""How long a run is: `training.epochs` in place of `training.max_steps`."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import TrainingConfig
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.records import Run
from logitbank.student_train.train import train


@pytest.mark.parametrize(
    ("epochs", "examples", "batch", "steps"),
    [(1, 32, 8, 4), (1, 33, 8, 5), (2.5, 32, 8, 10), (0.5, 24, 8, 2), (0.1, 30, 1, 3), (0.001, 24, 8, 1)],
)
def test_steps_see_every_example_so_often(epochs: float, examples: int, batch: int, steps: int) -> None:
    training = TrainingConfig(epochs=epochs, global_batch_size=batch)
    assert training.steps_over(examples) == steps


def test_smaller_tasks_are_gone_through_more_often() -> None:
    tasks = {"small": np.arange(10), "large": np.arange(10, 40)}
    order = ExampleOrder(tasks, np.zeros(40, dtype=np.int64), seed=0)
    assert order.epochs_in(5, 8) == {"small": 2.0, "large": pytest.approx(2 / 3)}
    seen = [example for step in range(5) for example in order.step(step, 8)]
    assert [seen.count(example) for example in range(10)] == [2] * 10
    assert sum(example >= 10 for example in seen) == 20


def test_a_run_of_epochs_is_that_of_its_steps(
    configure: Callable[..., Config],
    small_store: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """24 examples once and a half in steps of 8: 5 steps; learning rate, schedule and checkpoints follow."""
    caplog.set_level(logging.INFO)
    url = str(tmp_path / "store.zarr")
    shutil.copytree(small_store.url, url)

    def run(name: str, *changes: str) -> Path:
        config = configure("distillation.schedule=linear", "training.save_steps=2", *changes)
        return train(Run(config, url, "fewshot", tmp_path / name, tmp_path / name / "results"))

    by_epochs = run("epochs", "training.epochs=1.5")
    assert "training.epochs 1.5: 5 steps; passes: nli 1.67, pos 1.67" in caplog.text
    by_steps = run("steps", "training.max_steps=5")
    record = json.loads((by_epochs / "training.json").read_text())
    assert (record["step"], record["config"]["training"]["max_steps"]) == (5, 5)
    assert record["config"]["training"]["epochs"] == 1.5
    expected = load_file(by_steps / "model.safetensors")
    for name, tensor in load_file(by_epochs / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    shutil.rmtree(by_epochs)
    run("epochs", "training.epochs=1.5")  # from step 4 on
    for name, tensor in load_file(by_epochs / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    shutil.rmtree(url)
    run("epochs", "training.epochs=1.5")
    assert "done already" in caplog.text
    with pytest.raises(ConfigError, match=r"training\.epochs: .* was trained with 1\.5, got 2\.0"):
        run("epochs", "training.epochs=2")
    with pytest.raises(ConfigError, match=r"training\.epochs: .* was trained with None, got 1\.5"):
        run("steps", "training.epochs=1.5")
