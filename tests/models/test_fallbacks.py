"""Which of several models is taken for the memory that is free."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from logitbank.configs import Config, ConfigError, load_config
from logitbank.models.fallbacks import choose_model, free_memory, memory_needed
from logitbank.models.huggingface import load_causal_lm
from logitbank.student_train.student import build_student
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tokenizer = tiny.word_tokenizer(97)
    widths = {"large": 512, "middle": 256, "small": 64}
    return {
        name: tiny.save_model(
            tmp_path_factory.mktemp(name), tokenizer, rows=97, hidden_size=width, intermediate_size=2 * width
        )
        for name, width in widths.items()
    }


@pytest.fixture
def config(models: dict[str, Path]) -> Config:
    fallbacks = f"model.fallbacks=[{models['middle']},{models['small']}]"
    return load_config([], [f"model.name={models['large']}", "model.revision=main", fallbacks])


def need(config: Config, name: Path, *overrides: str, training: bool = True) -> int:
    changed = load_config([], [f"model.name={name}", *overrides])
    return memory_needed(changed, changed.model, CPU, training=training).total


def test_weights_are_those_that_the_model_has(models: dict[str, Path], config: Config) -> None:
    """Counted without reading them, tied ones once; and what trains is what PEFT adds."""
    whole = load_causal_lm(config.model)
    assert memory_needed(config, config.model, CPU, training=False).weights == 4 * whole.num_parameters()
    student = build_student(config, CPU, None)
    adapter = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert memory_needed(config, config.model, CPU, training=True).trained == 16 * adapter
    full = load_config([], [f"model.name={models['large']}", "training.use_lora=false"])
    assert memory_needed(full, full.model, CPU, training=True).trained == 12 * whole.num_parameters()


def test_4_bits_are_counted_as_such(models: dict[str, Path]) -> None:
    config = load_config([], [f"model.name={models['large']}", "lora.load_in_4bit=true"])
    quantised = load_causal_lm(config.model, load_in_4bit=True).get_memory_footprint()
    assert memory_needed(config, config.model, CPU, training=True).weights == pytest.approx(quantised, rel=0.05)


@pytest.mark.parametrize("name", ["large", "middle", "small"])
def test_the_first_that_fits_is_taken_and_named(
    models: dict[str, Path], config: Config, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        chosen = choose_model(config, CPU, training=True, free=need(config, models[name]))
    assert chosen.name == str(models[name])
    assert chosen.revision == ("main" if name == "large" else None)
    (line,) = caplog.messages
    assert f"using {models[name]}, which needs" in line
    assert (f"{models['large']} needs" in line) == (name != "large")
    assert (str(models["small"]) in line) == (name == "small")


def test_none_that_fits_is_an_error_with_the_numbers(models: dict[str, Path], config: Config) -> None:
    with pytest.raises(ConfigError) as error:
        choose_model(config, CPU, training=True, free=need(config, models["small"]) - 1)
    assert "\n" not in str(error.value)
    for path in models.values():
        assert f"{path} needs {need(config, path) / 2**30:,.2f} GiB" in str(error.value)


def test_training_needs_more_the_more_of_it_trains_and_stays_in_memory(models: dict[str, Path], config: Config) -> None:
    scoring = need(config, models["large"], "teacher.batch_tokens=512", training=False)
    checkpointing = need(config, models["large"], "training.gradient_checkpointing=true")
    adapter = need(config, models["large"])
    assert scoring < checkpointing < adapter < need(config, models["large"], "training.use_lora=false")
    assert adapter < need(config, models["large"], "training.micro_batch_size=8", "training.global_batch_size=8")


def test_without_fallbacks_nothing_is_read_and_an_earlier_choice_stays(models: dict[str, Path], config: Config) -> None:
    alone = load_config([], ["model.name=no/such-model"])
    assert choose_model(alone, CPU, training=True, free=0) is alone.model
    assert choose_model(config, CPU, training=True, earlier=str(models["small"]), free=1 << 40).name == str(
        models["small"]
    )


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = free_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == pytest.approx(alone / 4, rel=0.1)
