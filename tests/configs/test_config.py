"""Merging, overriding and refusing configurations."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from logitbank.configs import Config, ConfigError, config_keys, config_to_dict, load_config, shipped_configs


def test_files_merge_left_to_right_and_overrides_come_last(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("model: {name: m}\ntraining: {max_steps: 7, save_steps: 3}\n")
    over = tmp_path / "over.yaml"
    over.write_text("training: {max_steps: 8}\n")
    config = load_config([str(base), str(over)], ["training.save_steps=5", "tasks=[pos]"])
    assert (config.training.max_steps, config.training.save_steps, config.tasks) == (8, 5, ["pos"])
    assert config.training.learning_rate == Config().training.learning_rate


def test_configuration_is_immutable() -> None:
    config = load_config([], ["model.name=m"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_load(name: str) -> None:
    after_a_model = ("gsm8k", "sweep-ner", "sweep-pos", "warmup-then-sft", "preference")  # whose own file has its name
    overrides = ["model.name=m"] if name in after_a_model else []
    assert load_config([name], overrides).model.name


def test_the_study_s_settings_are_the_defaults() -> None:
    config = load_config(["llama-3.2-3b"])
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 32, 0.05)
    assert (config.training.max_steps, config.training.learning_rate) == (1000, 2e-4)
    assert (config.teacher.top_k, config.distillation.lambda_distill) == (256, 0.5)
    assert load_config(["qwen3-8b"]).training.gradient_checkpointing
    assert not load_config(["gemma-3-270m"]).training.use_lora


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainig.max_steps=3"], "trainig: unknown configuration key; did you mean training"),
        (["training.max_step=3"], "did you mean training.max_steps?"),
        (["lambda_distill=0.1"], "did you mean distillation.lambda_distill?"),
        (["distillation.top_k=3"], "did you mean teacher.top_k?"),
        (["training.max_steps=many"], "training.max_steps: expected an integer, got 'many'"),
        (["training.use_lora=maybe"], "training.use_lora: expected true or false, got 'maybe'"),
        (["distillation.n_top_logits=x"], "distillation.n_top_logits: expected an integer or null, got 'x'"),
        (["tasks=nli"], "tasks: expected a list such as .*, got 'nli'; write tasks=.nli.$"),
        (["tasks={nli: 1}"], "tasks: expected a list such as .*, got {'nli': 1}"),
        (["fewshot.num_demonstrations={nli:1}"], "fewshot.num_demonstrations: expected a mapping .*a space after"),
        (["fewshot.num_demonstrations=[1]"], "fewshot.num_demonstrations: expected a mapping"),
        (["training=3"], "training: expected a group of keys, got 3"),
        (["training.max_steps=0"], "training.max_steps: expected a number of at least 1, got 0"),
        (["tasks=[nli,poss]"], "tasks: expected one of .*got 'poss'; did you mean pos?"),
        (["languages=[en,xx]"], "languages: expected one of .*got 'xx'"),
        (["tasks=[]"], "tasks: expected at least one"),
        (["tasks=[nli,nli]"], "tasks: expected each name at most once"),
        (["store.encoding=zip"], "store.encoding: expected one of"),
        (["data.sources={nli: snli}"], "data.sources.nli: expected one of"),
        (["training.global_batch_size=6", "training.micro_batch_size=4"], "expected a multiple of"),
        (["training.epochs=0"], "training.epochs: expected a number above 0, got 0"),
        (["training.epochs=all"], "training.epochs: expected a number or null, got 'all'"),
        (["training.loss_weight=turn"], "training.loss_weight: expected one of token, conversation"),
        (["lora.target_modules=[]"], "lora.target_modules: expected names of modules, or all-linear"),
        (["lora.target_modules=[all-linear,x]"], "lora.target_modules: all-linear already names every linear layer"),
        (["lora.target_modules={a: b}"], "lora.target_modules: expected a list"),
        (["chat.turns=first"], "chat.turns: expected one of all, last, got 'first'"),
        (["chat.thinking=false"], "chat.thinking: expected one of drop, keep, got 'False'"),
        (["chat.holdout=1"], "chat.holdout: expected a share below 1, got 1"),
        (["chat.holdout=-0.1"], "chat.holdout: expected a number of at least 0, got -0.1"),
        (["chat.trian=x"], "did you mean chat.train?"),
        (["data.max_student_tokens=0"], "data.max_student_tokens: expected a number of at least 8, got 0"),
        (["seed"], "expected key=value"),
    ],
)
def test_wrong_values_are_one_line_errors(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?").replace(r".*\?", ".*?")) as caught:
        load_config([], ["model.name=m", *overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "epochs", "steps"),
    [
        ([], None, 1000),
        (["training.epochs=2.5"], 2.5, 1000),
        (["training.epochs=2", "training.max_steps=7"], None, 7),
        (["training.max_steps=7", "training.epochs=2"], 2.0, 7),
        (["training.epochs=2", "training.max_steps=7", "training.epochs=3"], 3.0, 7),
        (["training.epochs=2", "training.epochs=null"], None, 1000),
    ],
)
def test_the_length_of_a_run_is_the_one_given_last(layers: list[str], epochs: float | None, steps: int) -> None:
    training = load_config([], ["model.name=m", *layers]).training
    assert (training.epochs, training.max_steps) == (epochs, steps)


def test_two_lengths_of_a_run_in_one_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("training: {epochs: 2, max_steps: 10}\n")
    with pytest.raises(ConfigError, match=r"training\.epochs: expected either this or training\.max_steps, got both"):
        load_config([str(file)], ["model.name=m"])


@pytest.mark.parametrize("given", ["all-linear", "[all-linear]"])
def test_all_linear_layers_are_named_as_in_peft(given: str) -> None:
    assert load_config([], ["model.name=m", f"lora.target_modules={given}"]).lora.target_modules == ["all-linear"]


def test_a_missing_model_name_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError, match=r"model\.name: required"):
        load_config([])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no file"),
        ("- 1\n", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("model: 3\n", "model: expected a group of keys"),
    ],
)
def test_wrong_files_are_one_line_errors(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "wrong.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config([str(path)], ["model.name=m"])
    assert "\n" not in str(caught.value)


def test_keys_and_dict_cover_the_whole_schema() -> None:
    config = load_config([], ["model.name=m"])
    nested = config_to_dict(config)
    for key in config_keys():
        value = nested
        for part in key.split("."):
            value = value[part]
    assert "model.name" in config_keys()


def test_a_configuration_of_defaults_is_checked_without_torch() -> None:
    """Commands that only look at files stay quick."""
    program = "import sys; from logitbank.configs import load_config; load_config(['qwen3-1.7b']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "logitbank.configs.validate" in loaded
    assert not {"torch", "transformers", "accelerate"} & set(loaded)
