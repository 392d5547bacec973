"""One of each kind, from outside the package: registered by a line, chosen by name, run from data to scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from logitbank.configs import ConfigError, load_config
from logitbank.evaluation import evaluate_command
from logitbank.registry import ENCODINGS, EVALUATION_ENGINES, LOSSES, STRATEGIES, TASKS, TEACHER_ENGINES, Registry
from logitbank.storage import TeacherStore
from logitbank.student_train import train_command
from logitbank.teacher_cache import build_command
from logitbank.teacher_cache.inspection import command as inspect_command
from tests import tiny

MINE = [
    (TASKS, "parity", "PARITY"),
    (ENCODINGS, "eighths", "EIGHTHS"),
    (LOSSES, "absolute", "Absolute"),
    (STRATEGIES, "halved", "Halved"),
    (TEACHER_ENGINES, "oracle", "Oracle"),
    (EVALUATION_ENGINES, "always_even", "open_always_even"),
]
CHOICES = {
    "tasks": "[parity]",
    "store.encoding": "eighths",
    "teacher.engine": "oracle",
    "distillation.loss": "absolute",
    "distillation.strategy": "fixed*halved",
    "evaluation.engine": "always_even",
}


@pytest.fixture
def registered() -> Iterator[None]:
    for registry, name, attribute in MINE:
        registry.register(name, f"tests.extensions:{attribute}")
    yield
    for registry, name, _ in MINE:
        registry.unregister(name)


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """A tiny model, data of 12 numbers in each split, and everything of our own."""
    folder = tmp_path / "hub" / "me" / "parity"
    folder.mkdir(parents=True)
    for start, split in ((0, "train"), (100, "validation"), (200, "test")):
        rows = [f"{number},{1 - number % 2}" for number in range(start, start + 12)]
        (folder / f"{split}.csv").write_text("\n".join(["number,label", *rows]) + "\n")
    tokenizer = tiny.chat_tokenizer()
    model = tiny.save_model(tmp_path / "model", tokenizer, rows=len(tokenizer) + 8)
    return [
        f"model.name={model}",
        f"data.mirror={tmp_path / 'hub'}",
        "languages=[en]",
        "teacher.top_k=8",
        "training.use_lora=false",
        "training.max_steps=2",
        "training.warmup_steps=0",
        "training.global_batch_size=4",
        "training.num_workers=0",
        *(f"{key}={value}" for key, value in CHOICES.items()),
    ]


@pytest.mark.usefixtures("registered")
def test_one_of_each_kind_runs_from_data_to_scores(settings: list[str], tmp_path: Path) -> None:
    store, student, results = (str(tmp_path / name) for name in ("store", "student", "results"))
    build_command.main(["--store", store, "--view", "fewshot", *settings])
    inspect_command.main(["--store", store, "--verify"])
    opened = TeacherStore.open(store)
    assert (opened.info.encoding, opened.info.teacher["engine"], opened.info.tasks) == (
        "eighths",
        "oracle",
        ("parity",),
    )
    rows = opened.read(range(len(opened.examples)), "fewshot")
    assert (rows.gold_rank == 0).all()
    np.testing.assert_array_equal(rows.logits[:, 0], np.float32(5))

    train_command.main(["--store", store, "--view", "fewshot", "--output", student, "--results", results, *settings])
    log = pq.read_table(tmp_path / "results" / "training_log").to_pylist()
    assert {row["value"] for row in log if row["metric"] == "lambda"} == {0.25}  # half of lambda_distill

    checkpoint = ["--checkpoint", f"{student}/final"]
    evaluate_command.main(["--condition", "distilled", *checkpoint, "--results", results, *settings])
    metrics = pq.read_table(tmp_path / "results" / "metrics").to_pylist()
    assert {row["metric"]: row["value"] for row in metrics} == {"accuracy": 0.5, "parse_failure": 0.0}


@pytest.mark.usefixtures("registered")
def test_what_an_engine_refuses_is_refused_in_its_own_words(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override, says in (
        ("teacher.load_in_8bit=true", "error: teacher.load_in_8bit: an oracle has no weights"),
        ("teacher.top_k=1000", "the size of the vocabulary, got 1000"),
    ):
        with pytest.raises(SystemExit):
            build_command.main(["--store", str(tmp_path / "store"), *settings, override])
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(("registry", "name"), [(registry, name) for registry, name, _ in MINE])
def test_a_name_is_known_while_it_is_registered_and_listed_with_the_others(
    registry: Registry[object], name: str, registered: None
) -> None:
    chosen = {registry.key: CHOICES[registry.key]}
    load_config([], ["model.name=m", *(f"{key}={value}" for key, value in chosen.items())])
    with pytest.raises(ConfigError, match=name):  # the list of choices has it
        load_config([], ["model.name=m", f"{registry.key}={'[nonsense]' if registry is TASKS else 'nonsense'}"])
    with pytest.raises(ConfigError, match=f"{name} is already registered"):
        registry.register(name, "elsewhere:thing")


@pytest.mark.parametrize("key", CHOICES)
def test_a_name_that_is_not_registered_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: expected one of"):
        load_config([], ["model.name=m", f"{key}={CHOICES[key]}"])
