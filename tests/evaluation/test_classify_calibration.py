"""Temperatures through evaluation: fitted on averages, applied once, refused where they do not hold."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.configs import Config, data_settings
from logitbank.errors import ConfigError, OutputError
from logitbank.evaluation.calibration import CALIBRATION, Calibration
from logitbank.preference import SeenPrompts, prompt_keys
from logitbank.storage.results.catalogue import Catalogue
from logitbank.tasks.preference import load_pairs
from tests.evaluation.comparisons import (
    Formula,
    classifier_checkpoint,
    evaluated,
    metrics_in,
    never,
    numbers,
    probabilities,
    write_csv,
)

Make = Callable[..., Config]


@pytest.mark.numeric
def test_the_temperature_is_fitted_on_averages_and_applied_once(
    comparing: Make, student: Path, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = comparing("evaluation.tta_tokens=[330,400]", "evaluation.swap_average=true")
    found = evaluated(config, student, tmp_path / "r", Formula(), calibrate=True)
    fitted = Calibration.read(student)
    assert fitted is not None

    pairs = load_pairs("calibration", data_settings(config))
    parts = []
    for tokens in (330, 400):
        parts.append(probabilities(pairs, tokenizer, tokens))
        parts.append(probabilities([pair.swapped() for pair in pairs], tokenizer, tokens)[:, [1, 0, 2]])
    mean = torch.from_numpy(np.mean(parts, axis=0))
    targets = torch.tensor([pair.target for pair in pairs]).double()

    def loss(log_t: float) -> float:
        return float(-(targets * (mean.log() / math.exp(log_t)).log_softmax(-1)).sum(-1).mean())

    grid = np.linspace(-3, 3, 6001)
    best = grid[int(np.argmin([loss(at) for at in grid]))]
    assert math.log(fitted.temperature) == pytest.approx(best, abs=1.1e-3), "a step of the grid and float32 logits"
    assert abs(best) > 0.05, "or a temperature forgotten would not show"
    assert fitted.calibration.rows == len(pairs)
    assert fitted.calibration.before["nll"] == pytest.approx(loss(0.0), abs=1e-6)
    assert fitted.calibration.after["nll"] == pytest.approx(loss(best), abs=1e-5)
    assert fitted.holds_for.tokens == (330, 400)

    for row in found:
        raw = np.array(numbers(row, "raw"))
        once = raw ** (1 / fitted.temperature)
        assert numbers(row, "p") == pytest.approx(list(once / once.sum()), abs=1e-12)
    printed = capsys.readouterr().out
    assert f"calibration: wrote {student / CALIBRATION}" in printed
    assert f"calibration: applied once to the averaged probabilities, T={fitted.temperature:.4g}; " in printed
    mean_log_loss = np.mean([dict(row["statistics"])["log_loss"] for row in found])
    assert metrics_in(tmp_path / "r")["log_loss"] == pytest.approx(mean_log_loss), "what is submitted is scored"


def test_the_holdout_decides_nothing_but_a_warning(
    comparing: Make, student: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True)
    before = Calibration.read(student)
    assert before is not None
    assert not worse_on_holdout(before, capsys)
    scored = evaluated(comparing("evaluation.split=holdout"), student, tmp_path / "r", Formula())
    likeliest = {row["example_id"].rpartition("/")[2]: json.loads(row["parsed"]) for row in scored}
    with (files / "validation.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    changed = [{**row, "winner": likeliest.get(row["id"], row["winner"])} for row in found]  # as sure as it is right
    config = comparing(f"preference.validation={write_csv(tmp_path / 'v.csv', changed)}")
    evaluated(config, student, tmp_path / "r", Formula(), calibrate=True)
    after = Calibration.read(student)
    assert after is not None
    assert (after.temperature, after.calibration) == (before.temperature, before.calibration)
    assert after.holdout != before.holdout
    assert worse_on_holdout(after, capsys)


def worse_on_holdout(found: Calibration, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether the temperature harms the holdout, which the command must have said if and only if it does."""
    worse = found.holdout.after["log_loss"] > found.holdout.before["log_loss"]
    assert (
        "warning: the temperature makes the log loss on the holdout rows worse:" in capsys.readouterr().out
    ) == worse
    return worse


def test_a_temperature_at_the_end_of_its_range_is_said(
    comparing: Make,
    student: Path,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True)
    assert "at the limit of its range" not in capsys.readouterr().out
    with (files / "validation.csv").open(encoding="utf-8") as file:
        ties = [{**row, "winner": "tie"} for row in csv.DictReader(file)]
    config = comparing(f"preference.validation={write_csv(tmp_path / 'v.csv', ties)}")
    evaluated(config, student, tmp_path / "r", Formula(), calibrate=True)
    assert (
        "warning: the temperature is at the limit of its range, 0.05 to 20: 16 rows cannot" in capsys.readouterr().out
    )


def test_a_calibration_that_is_there_is_not_fitted_again(
    comparing: Make, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Formula()
    evaluated(comparing(), student, tmp_path / "r", first, calibrate=True)
    assert len(first.opened) == 1, "one model for calibration and evaluation"
    evaluated(comparing(), student, tmp_path / "r", never, calibrate=True)
    printed = capsys.readouterr().out
    assert "already fitted on the same rows, weights and settings" in printed
    assert "distilled preference/und: is already finished, skipped" in printed
    (student / CALIBRATION).write_text("{")
    evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True)
    assert Calibration.read(student) is not None, "what is broken is fitted anew"


def test_raw_and_calibrated_rows_are_two_evaluations(comparing: Make, student: Path, tmp_path: Path) -> None:
    plain = evaluated(comparing(), student, tmp_path / "r", Formula())
    calibrated = evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True)
    assert evaluated(comparing(), student, tmp_path / "r", never) == calibrated, "inference applies it by itself"
    assert evaluated(comparing(), student, tmp_path / "r", never, raw=True) == plain
    assert {row["run"] for row in plain}.isdisjoint(row["run"] for row in calibrated)
    assert [numbers(row, "raw") for row in calibrated] == [numbers(row, "p") for row in plain]
    setups = Catalogue([tmp_path / "r"]).rows("SELECT DISTINCT setup FROM runs")
    assert len(setups) == 2, "no gap is formed between them"


def test_students_with_temperatures_of_their_own_can_be_compared(comparing: Make, tmp_path: Path) -> None:
    for name, view in (("finetuned", None), ("distilled", "llama")):
        directory = classifier_checkpoint(tmp_path / name, view=view, weights=name.encode(), condition=name)
        evaluated(comparing(), directory, tmp_path / "r", Formula(), condition=name, calibrate=True)
    runs = Catalogue([tmp_path / "r"]).rows("SELECT * FROM runs")
    assert len(runs) == 2
    assert len({run["setup"] for run in runs}) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.tta_tokens=[330]"], "evaluation.tta_tokens"),
        (["evaluation.swap_average=true"], "evaluation.swap_average"),
        (["evaluation.load_in_8bit=true"], "evaluation.load_in_8bit"),
    ],
)
def test_a_calibration_of_other_settings_is_refused(
    comparing: Make, student: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True)
    with pytest.raises(ConfigError, match=f"{CALIBRATION}: was fitted with {said} .*add --no-calibration"):
        evaluated(comparing(*overrides), student, tmp_path / "r", never)
    evaluated(comparing(*overrides), student, tmp_path / "r", Formula(), raw=True)


def test_a_calibration_of_other_weights_is_refused(comparing: Make, student: Path, tmp_path: Path) -> None:
    evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True)
    (student / "adapter_model.safetensors").write_bytes(b"trained on")
    with pytest.raises(ConfigError, match=f"{CALIBRATION}: was fitted with weights"):
        evaluated(comparing(), student, tmp_path / "r", never)


@pytest.mark.parametrize("how", ["trained", "selected"])
@pytest.mark.parametrize("part", ["calibration", "holdout"])
def test_rows_that_the_student_knows_calibrate_nothing(comparing: Make, tmp_path: Path, how: str, part: str) -> None:
    keys = prompt_keys(load_pairs(part, data_settings(comparing())))[:1]
    seen = SeenPrompts.of(keys) if how == "trained" else SeenPrompts.of([], keys)
    directory = classifier_checkpoint(tmp_path / "c", seen=seen)
    with pytest.raises(ConfigError, match=f"--calibrate: .* was {how} on the prompts of [12] of the .* rows of {part}"):
        evaluated(comparing(), directory, tmp_path / "r", never, calibrate=True)
    assert not (directory / CALIBRATION).exists()
    assert not (tmp_path / "r").exists()


def test_who_does_not_say_what_it_saw_is_not_calibrated(comparing: Make, student: Path, tmp_path: Path) -> None:
    (student / "seen_prompts.npz").unlink()
    with pytest.raises(ConfigError, match=r"--calibrate: .* has no seen_prompts.npz"):
        evaluated(comparing(), student, tmp_path / "r", never, calibrate=True)


def test_a_place_without_room_for_a_calibration_is_found_first(comparing: Make, student: Path, tmp_path: Path) -> None:
    (student / CALIBRATION).mkdir()
    with pytest.raises(OutputError, match="--calibrate: cannot write"):
        evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True)
    assert not (tmp_path / "r").exists()
