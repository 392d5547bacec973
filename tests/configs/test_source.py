"""What a program may give as a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitbank.configs import config_of, load_config
from logitbank.errors import ConfigError


def test_every_form_means_the_same(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("model: {name: base}\ntraining: {max_steps: 5}\n")
    expected = load_config([str(file)], ["seed=3"])
    nested = {"model": {"name": "base"}, "training": {"max_steps": 5}}
    for source in (
        expected,
        [file, "seed=3"],
        [str(file), {"seed": 3}],
        {**nested, "seed": 3},
        {"model.name": "base", "training.max_steps": 5, "seed": 3},
        ["seed=3", {"model.name": "base"}, "training.max_steps=5"],
    ):
        assert config_of(source) == expected
    assert config_of(file) == config_of(str(file)) == load_config([str(file)])
    assert config_of("demo") == load_config(["demo"])


def test_what_is_wrong_has_the_same_messages() -> None:
    with pytest.raises(ConfigError, match=r"training\.max_stepz: unknown configuration key; did you mean"):
        config_of({"model.name": "base", "training.max_stepz": 5})
    with pytest.raises(ConfigError, match=r"training\.max_steps: expected an integer, got 'many'"):
        config_of({"model.name": "base", "training": {"max_steps": "many"}})
    with pytest.raises(ConfigError, match="no file nowhere"):
        config_of(["nowhere", "model.name=base"])
