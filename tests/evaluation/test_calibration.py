"""The temperature: fitted as a grid would, written whole, and refused for anything else than it was fitted with."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.errors import ConfigError, OutputError
from logitbank.evaluation.calibration import (
    CALIBRATION,
    HIGHEST,
    LOWEST,
    Calibration,
    Part,
    Protocol,
    fit_temperature,
    measure,
    negative_log_likelihood,
    require_writable,
    tempered,
)

PROTOCOL = Protocol("a" * 64, (512, 1024), True, False)


def _log_p(seed: int, rows: int = 300, scale: float = 2.0) -> Any:
    logits = scale * np.random.default_rng(seed).normal(size=(rows, 3))
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def _targets(seed: int, rows: int = 300) -> Any:
    return np.random.default_rng(seed).dirichlet([0.4, 0.4, 0.4], size=rows)


def _winners(log_p: Any, true: float, seed: int) -> Any:
    """(N,3) one-hot targets, drawn from the probabilities at a temperature."""
    p = torch.from_numpy(log_p / true).softmax(-1).numpy()
    generator = np.random.default_rng(seed)
    return np.array([generator.multinomial(1, row) for row in p], dtype=np.float64)


def _calibration(**changes: Any) -> Calibration:
    part = Part(4, "e1", {"nll": 1.2, "log_loss": 1.1, "ece": 0.2}, {"nll": 1.0, "log_loss": 1.0, "ece": 0.1})
    return dataclasses.replace(Calibration(1.5, PROTOCOL, part, part), **changes)


@pytest.mark.numeric
@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_the_best_of_a_fine_grid(seed: int) -> None:
    log_p = _log_p(seed)
    targets = 0.9 * _winners(log_p, [0.5, 1.5, 2.5, 4.0][seed], seed + 10) + 0.1 * _targets(seed)
    grid = np.exp(np.linspace(math.log(LOWEST), math.log(HIGHEST), 6001))
    # in torch and one temperature at a time, not through `tempered`
    losses = [
        float(-(torch.from_numpy(targets) * (torch.from_numpy(log_p) / t).log_softmax(-1)).sum(-1).mean()) for t in grid
    ]
    found = fit_temperature(log_p, targets)
    step = math.log(grid[1] / grid[0])
    assert abs(math.log(found / grid[int(np.argmin(losses))])) <= step
    assert negative_log_likelihood(tempered(log_p, found), targets) <= min(losses) + 1e-12


@pytest.mark.numeric
@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_targets_is_found(true: float) -> None:
    """Cross-entropy with targets p is least at p itself; a flat optimum allows the root of float64's precision."""
    log_p = _log_p(3)
    targets = torch.from_numpy(log_p / true).softmax(-1).numpy()
    assert fit_temperature(log_p, targets) == pytest.approx(true, rel=1e-6)


def test_probabilities_that_say_nothing_keep_their_temperature() -> None:
    assert fit_temperature(np.full((5, 3), -math.log(3)), _targets(0, 5)) == 1.0


def test_probabilities_without_any_doubt_end_at_the_bounds() -> None:
    log_p = _log_p(1, rows=20)
    right = np.eye(3)[log_p.argmax(1)]
    assert fit_temperature(log_p, right) == pytest.approx(LOWEST, rel=1e-3)
    wrong = np.eye(3)[log_p.argmin(1)]
    assert fit_temperature(log_p, wrong) == pytest.approx(HIGHEST, rel=1e-3)


@pytest.mark.numeric
def test_both_sides_of_a_temperature_are_measured() -> None:
    log_p, targets = _log_p(5), np.eye(3)[np.random.default_rng(2).integers(0, 3, 300)]
    found = measure(log_p, targets, 2.0, "e")
    assert (found.rows, found.examples_hash) == (300, "e")
    cooled = torch.from_numpy(log_p / 2).log_softmax(-1).numpy()
    for figures, p in ((found.before, log_p), (found.after, cooled)):
        assert figures["nll"] == pytest.approx(-(targets * p).sum() / 300)
        assert figures["log_loss"] == pytest.approx(figures["nll"]), "nothing here is near 0"
    assert found.after["ece"] < found.before["ece"], "confidence falls towards the third that is right by chance"
    impossible = measure(np.array([[0.0, -800.0, -900.0]]), np.array([[0.0, 1.0, 0.0]]), 2.0, "e")
    assert impossible.before["nll"] == pytest.approx(800)
    assert impossible.before["log_loss"] == pytest.approx(-math.log(1e-15)), "clipped, as leaderboards do"


def test_what_is_written_is_read_back_and_replaced(tmp_path: Path) -> None:
    assert Calibration.read(tmp_path) is None
    _calibration(temperature=2.0).write(tmp_path)
    _calibration().write(tmp_path)
    assert Calibration.read(tmp_path) == _calibration()
    assert [path.name for path in tmp_path.iterdir()] == [CALIBRATION]
    content = json.loads((tmp_path / CALIBRATION).read_text())
    assert content["temperature"] == 1.5
    assert content["holds_for"] == {
        "weights": "a" * 64,
        "tokens": [512, 1024],
        "swap_average": True,
        "load_in_8bit": False,
    }
    assert content["holdout"]["after"] == {"nll": 1.0, "log_loss": 1.0, "ece": 0.1}


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": 1}', '{"temperature": "hot"}'])
def test_an_unreadable_calibration_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / CALIBRATION).write_text(content)
    with pytest.raises(ConfigError, match=r"cannot be read .*; fit it again with --calibrate"):
        Calibration.read(tmp_path)


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_a_temperature_that_is_none_is_refused(tmp_path: Path, temperature: float) -> None:
    _calibration(temperature=temperature).write(tmp_path)
    with pytest.raises(ConfigError, match="expected a temperature above 0"):
        Calibration.read(tmp_path)


def test_a_place_that_cannot_be_written_is_found_before_and_after(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"--calibrate: cannot write .*copy the checkpoint"):
        require_writable(tmp_path / "file")
    require_writable(tmp_path)
    (tmp_path / CALIBRATION).mkdir()
    with pytest.raises(OutputError, match="--calibrate: cannot write"):
        _calibration().write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CALIBRATION, "file"], "nothing half-written is left"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "b" * 64}, "was fitted with weights aaaaaaaaaaaa, but this evaluation uses bbbbbbbbbbbb"),
        ({"tokens": (512,)}, r"evaluation.tta_tokens \[512, 1024\], but this evaluation uses \[512\]"),
        ({"swap_average": False}, "evaluation.swap_average true, but this evaluation uses false"),
        ({"load_in_8bit": True}, "evaluation.load_in_8bit false, but this evaluation uses true"),
    ],
)
def test_it_holds_for_what_it_was_fitted_with_alone(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    _calibration().require(tmp_path, PROTOCOL)
    with pytest.raises(ConfigError, match=f"{said}; fit it again with --calibrate, or add --no-calibration"):
        _calibration().require(tmp_path, dataclasses.replace(PROTOCOL, **change))
