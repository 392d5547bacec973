"""What the five lines of a study say: averages, and which differences are resolved."""

from __future__ import annotations

from pathlib import Path

from logitbank.scripts.findings import Findings
from tests.evaluation.test_intervals import add_predictions, correct

RIGHT, WRONG, HALF = correct([True] * 60), correct([False] * 60), correct([False, True] * 30)


def test_a_single_study_names_the_tasks(tmp_path: Path) -> None:
    for task, finetuned, distilled in (("nli", WRONG, RIGHT), ("pa", RIGHT, WRONG), ("gsm8k", HALF, HALF)):
        add_predictions(tmp_path, (task, "en"), finetuned, condition="finetuned")
        add_predictions(tmp_path, (task, "en"), distilled, condition="distilled")
    found = Findings.of(tmp_path, [])
    assert list(found.averages()) == ["finetuned 50.0, distilled 50.0"]
    assert list(found.resolved()) == ["distilled−finetuned higher in nli, lower in pa (3 tasks)"]


def test_nothing_resolved_is_said(tmp_path: Path) -> None:
    for condition in ("finetuned", "control"):
        add_predictions(tmp_path, ("nli", "en"), HALF, condition=condition)
    assert list(Findings.of(tmp_path, []).resolved()) == ["control−finetuned not resolved (1 task)"]


def test_variants_and_models_are_counted(tmp_path: Path) -> None:
    for model in ("a", "b"):
        add_predictions(tmp_path, ("nli", "en"), HALF, model=model, condition="finetuned")
        add_predictions(tmp_path, ("nli", "en"), RIGHT, model=model, condition="distilled", variant="λ=0.1")
        add_predictions(tmp_path, ("nli", "en"), HALF, model=model, condition="distilled", variant="λ=0.5")
    found = Findings.of(tmp_path, [])
    averages = "finetuned 50.0, distilled 50.0 to 100.0 (2 variants)"
    assert list(found.averages()) == [f"a {averages}", f"b {averages}"]
    assert list(found.resolved()) == ["distilled−finetuned higher in 2, lower in 0 of 4 gaps"]


def test_an_average_over_a_part_says_so(tmp_path: Path) -> None:
    add_predictions(tmp_path, ("nli", "en"), RIGHT, condition="base")
    add_predictions(tmp_path, ("nli", "hi"), WRONG, condition="fewshot")
    assert list(Findings.of(tmp_path, []).averages()) == ["base 100.0 (1/2), fewshot 0.0 (1/2)"]
