"""The demo's world and an untrained model of its vocabulary: enough for every stage, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from logitbank.scripts.demo_world import Pretraining, World, make_mirror, make_model

UNTRAINED = Pretraining(layers=1, width=32, steps=1, batch=1)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with `hub` and `model`."""
    folder = tmp_path_factory.mktemp("world")
    make_mirror(folder / "hub", World(train_rows=24, eval_rows=12))
    make_model(folder / "model", UNTRAINED)
    return folder


@pytest.fixture(scope="session")
def settings(world: Path) -> list[str]:
    """Overrides on top of `--config demo`: two tasks in two languages, students of a second."""
    return [
        f"model.name={world / 'model'}",
        f"data.mirror={world / 'hub'}",
        "tasks=[nli,pos]",
        "languages=[en,es]",
        "data.max_validation_per_task=2",
        "fewshot.num_demonstrations={nli: 2, pos: 2}",
        "training.global_batch_size=4",
        "training.micro_batch_size=4",
        "teacher.top_k=8",
    ]
