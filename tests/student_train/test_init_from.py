"""Runs that begin with the weights of a checkpoint, and losses in which cross-entropy has another weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from logitbank.configs import Config, ConfigError
from logitbank.evaluation.writers import find_writer
from logitbank.student_train.checks import warn_of_answers
from logitbank.student_train.losses.step_loss import step_loss
from logitbank.student_train.records import Run
from logitbank.student_train.student import build_student
from logitbank.student_train.train import train
from tests.student_train.test_resume import logged

CPU = torch.device("cpu")
TWO_STEPS = ("training.max_steps=2", "training.logging_steps=1", "training.warmup_steps=0")
KINDS = {"adapter": "training.use_lora=true", "model": "training.use_lora=false"}


@pytest.fixture(scope="module")
def trained(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in found:
            output = tmp_path_factory.mktemp(kind) / "run"
            config = configure(*TWO_STEPS, KINDS[kind])
            found[kind] = train(Run(config, small_store.url, "fewshot", output, output / "results"))
        return found[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_begins_with_the_weights_of_a_checkpoint(
    trained: Callable[[str], Path], configure: Callable[..., Config], kind: str
) -> None:
    final = trained(kind)
    student = build_student(configure(KINDS[kind], f"training.init_from={final}"), CPU)
    (file,) = final.glob("*.safetensors")
    own = student.state_dict()
    for name, tensor in load_file(file).items():
        held = own[name.replace(".weight", ".default.weight") if "lora" in name else name]
        assert torch.equal(held, tensor), name
    trainable = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora" in name for name in trainable) == (kind == "adapter")


def test_a_run_that_is_resumed_goes_on_with_its_own_weights(
    trained: Callable[[str], Path], configure: Callable[..., Config], small_store: SimpleNamespace, tmp_path: Path
) -> None:
    settings = (KINDS["model"], f"training.init_from={trained('model')}", *TWO_STEPS, "training.max_steps=4")
    config = configure(*settings, "training.save_steps=2")
    whole = train(Run(config, small_store.url, "fewshot", tmp_path / "whole", tmp_path / "results"))
    cut = Run(config, small_store.url, "fewshot", tmp_path / "whole", tmp_path / "results")
    before = load_file(next(whole.glob("*.safetensors")))
    for file in whole.iterdir():
        file.unlink()
    whole.rmdir()
    after = load_file(next(train(cut).glob("*.safetensors")))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    record = json.loads((whole / "training.json").read_text())
    assert record["config"]["training"]["init_from"] == str(trained("model"))


def test_what_cannot_be_begun_with_is_one_line(
    trained: Callable[[str], Path], configure: Callable[..., Config], tmp_path: Path
) -> None:
    adapter, model = trained("adapter"), trained("model")
    for settings, says in (
        ((KINDS["model"], f"training.init_from={adapter}"), "expected the directory of a model .*has no config.json"),
        ((KINDS["adapter"], f"training.init_from={model}"), "expected the directory of an adapter"),
        ((KINDS["adapter"], f"training.init_from={tmp_path}"), "expected the directory of an adapter"),
        ((KINDS["adapter"], f"training.init_from={adapter}", "lora.r=3"), r"lora\.r: expected \d+, as in training"),
        ((KINDS["model"], f"training.init_from={model}", "model.name=other"), "was trained from .*; expected other"),
    ):
        with pytest.raises(ConfigError, match=says):
            build_student(configure(*settings), CPU)


@pytest.mark.numeric
def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    logsumexp, gold, kd, strength, weight = torch.rand(5, 7, generator=generator)
    student: Any = SimpleNamespace(logsumexp_T=logsumexp, gold_T=gold, argmax_T=None)
    teacher: Any = SimpleNamespace(taught_T=None)
    term: Any = lambda student, teacher: kd  # noqa: E731
    found = step_loss(student, teacher, kd_term=term, lambda_T=strength, step_tokens=9, weight_T=weight, ce_weight=0.3)
    ce = logsumexp.double() - gold.double()
    expected = (weight.double() * (0.3 * ce + strength.double() * kd.double())).sum() / 9
    assert float(found.total) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_cross_entropy_counts_as_its_weight_says(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, weight: float
) -> None:
    """The logged loss is the sum of its terms; without CE and λ no weight moves."""
    shared = (*TWO_STEPS, KINDS["model"], f"distillation.ce_weight={weight}")
    for name, strength in (("taught", 0.5), ("untaught", 0.0)):
        config = configure(*shared, f"distillation.lambda_distill={strength}", "training.weight_decay=0")
        run = Run(config, small_store.url, "fewshot", tmp_path / name, tmp_path / name / "results")
        final = train(run)
        rows = logged(run.results)
        for step in (1, 2):
            ce, kd, loss = (rows[step, "all", metric] for metric in ("ce", "kd", "loss"))
            assert loss == pytest.approx(weight * ce + strength * kd, rel=1e-5)
        start = load_file(next(Path(config.model.name).glob("*.safetensors")))
        end = load_file(next(final.glob("*.safetensors")))
        assert all(torch.equal(tensor, end[key]) for key, tensor in start.items()) == (weight == strength == 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["distillation.ce_weight=-1"], r"distillation\.ce_weight: expected a number of at least 0, got -1"),
        (["distillation.ce_weight=0.5", "distillation.strategy=gradient_conflict"], "weighs the gradients itself"),
    ],
)
def test_weights_that_cannot_be(configure: Callable[..., Config], settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configure(*settings)


@pytest.mark.parametrize("kind", KINDS)
def test_the_writer_of_answers_is_known_again_by_its_weights(
    trained: Callable[[str], Path], configure: Callable[..., Config], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A run that begins with the checkpoint that wrote the answers is told nothing; any other is."""
    final = str(trained(kind))
    writer = find_writer(configure(KINDS[kind], f"sampling.model={final}"))
    assert writer.same_tokens
    about = {"model": final, "weights": writer.weights}
    store: Any = SimpleNamespace(url="s", info=SimpleNamespace(answers=about, teacher_model="t"))
    warn_of_answers(store, configure(KINDS[kind], f"training.init_from={final}"))
    assert not caplog.records
    warn_of_answers(store, configure(KINDS[kind]))
    assert f"s: the answers were written by {final} ({writer.weights[:8]}), but the student begins with" in caplog.text
