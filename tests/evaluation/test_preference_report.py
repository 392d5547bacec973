"""Tables and pictures of class probabilities, against numpy on the same rows."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.evaluation.report.reliability import reliability_charts
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.write import write_report
from logitbank.preference import SWAPPED
from logitbank.storage.results import Catalogue
from logitbank.tasks.scoring.classes import BINS, bins_of, class_metrics, class_statistics
from tests.evaluation.class_rows import Floats, add_class_run, labels, softmax
from tests.evaluation.conftest import add_run
from tests.evaluation.test_query import run, table_of

ATTACK = "</script><img src=x onerror=alert(1)>"
TITLE = "Class probabilities: preference (test)"
DIFFERENCES = ("log loss −finetuned", "accuracy −finetuned", "Brier score −finetuned", "ECE −finetuned")


def metrics(probabilities: Floats, targets: Floats) -> dict[str, float]:
    found = class_statistics(probabilities, targets)
    return {name: float(v) for name, v in class_metrics({n: s.mean() for n, s in found.items()}).items()}


def tables(results: Path, capsys: pytest.CaptureFixture[str]) -> str:
    run(results, "tables")
    return capsys.readouterr().out


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, dict[str, list[Floats]], Floats]:
    """Two conditions of three folds, and a baseline, on 150 test rows of 75 prompts."""
    rng = np.random.default_rng(0)
    targets, clusters = labels(rng, 150), [str(index // 2) for index in range(150)]
    found: dict[str, list[Floats]] = {"finetuned": [], "distilled": []}
    for condition, skill in (("finetuned", 0.3), ("distilled", 1.2)):
        for fold in range(3):
            found[condition].append(softmax(rng.normal(size=(150, 3)) + skill * targets))
            add_class_run(tmp_path, found[condition][-1], targets, clusters=clusters, condition=condition, fold=fold,
                          question=f"{ATTACK} {{}}")  # fmt: skip
    found["shares"] = [np.tile([0.4, 0.35, 0.25], (150, 1))]
    add_class_run(tmp_path, found["shares"][0], targets, clusters=clusters, condition="shares", setup="baseline",
                  about={"training_run": None, "max_steps": None}, question=f"{ATTACK} {{}}")  # fmt: skip
    return tmp_path, found, targets


def test_each_condition_has_its_metrics_and_its_differences(
    world: tuple[Path, dict[str, list[Floats]], Floats], capsys: pytest.CaptureFixture[str]
) -> None:
    results, found, targets = world
    text = tables(results, capsys)
    table = table_of(text, TITLE)
    means = {
        condition: {name: np.mean([metrics(each, targets)[name] for each in own]) for name in metrics(own[0], targets)}
        for condition, own in found.items()
    }
    shown = {"log loss (nats)": ("log_loss", 1, 4), "accuracy (%)": ("accuracy", 100, 1),
             "Brier score": ("brier", 1, 4), "ECE (%)": ("ece", 100, 1)}  # fmt: skip
    assert list(table) == ["finetuned", "distilled", "shares"]
    for condition, row in table.items():
        for column, (metric, scale, digits) in shown.items():
            assert row[column].split()[0] == f"{scale * means[condition][metric]:.{digits}f}", (condition, column)
            assert " ±" in row[column] or " [" in row[column]
        for column, (metric, scale, digits) in zip(DIFFERENCES, shown.values(), strict=True):
            difference = scale * (means[condition][metric] - means["finetuned"][metric])
            first = row[column].split()[0]
            assert first == ("—" if condition == "finetuned" else f"{difference:+.{digits}f}"), (condition, column)
    assert "≈0" not in table["distilled"][DIFFERENCES[0]]
    assert "lower is better, so a difference below zero is better" in text
    assert "Of several students: finetuned 3 folds, distilled 3 folds." in text
    assert "preference (test), log loss: distilled is better than finetuned (-" in text
    assert "preference (test), log loss: shares is" in text
    assert "Overview" not in text
    assert "Summary" not in text


def test_students_of_another_setup_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    targets = labels(rng, 30)
    for condition, setup in (("finetuned", "short"), ("distilled", "long")):
        add_class_run(tmp_path, softmax(rng.normal(size=(30, 3))), targets, condition=condition, setup=setup)
    assert "−finetuned" not in tables(tmp_path, capsys)
    add_class_run(tmp_path, softmax(rng.normal(size=(30, 3))), targets, condition="merged", setup="long")
    table = table_of(tables(tmp_path, capsys), TITLE)
    assert table["distilled"][DIFFERENCES[0]] == "—"
    assert "±" in table["merged"][DIFFERENCES[0]]
    add_class_run(tmp_path, softmax(rng.normal(size=(30, 3))), targets, condition="finetuned", setup="other")
    assert "−finetuned" not in tables(tmp_path, capsys), "which of the two is not said"


def test_other_comparisons_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    targets = labels(rng, 30)
    add_class_run(tmp_path, softmax(targets), targets, condition="finetuned")
    add_class_run(tmp_path, softmax(targets), targets, ids=[f"x{i}" for i in range(30)])
    assert "−finetuned" not in tables(tmp_path, capsys)


def test_held_out_folds_have_the_scores_of_all_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    drawn = [(softmax(rng.normal(size=(size, 3))), labels(rng, size)) for size in (40, 70)]
    for fold, (probabilities, targets) in enumerate(drawn):
        add_class_run(tmp_path, probabilities, targets, ids=[f"{fold}-{i}" for i in range(len(targets))], fold=fold,
                      split="held_out")  # fmt: skip
    expected = metrics(*(np.concatenate(part) for part in zip(*drawn, strict=True)))
    text = tables(tmp_path, capsys)
    row = table_of(text, "Class probabilities: preference (held_out)")["distilled"]
    assert row["log loss (nats)"].split()[0] == f"{expected['log_loss']:.4f}"
    assert row["ECE (%)"].split()[0] == f"{100 * expected['ece']:.1f}"
    assert "the rows of its folds are pooled" in text


def test_the_position_table_tells_bias_from_preference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Logits that favour A by 0.3, and whatever stands first by 0.5."""
    rng = np.random.default_rng(3)
    targets = labels(rng, 397)
    content, first = rng.normal(size=(397, 3)) + np.array([0.3, 0, 0]), np.array([0.5, 0, 0])
    given, back = softmax(content + first), softmax(content[:, SWAPPED] + first)[:, SWAPPED]
    orders = {"given": given, "swapped": back}
    more = {
        f"{order}_{name}": p[:, k]
        for order, p in orders.items()
        for k, name in enumerate(("model_a", "model_b", "tie"))
    }
    gains_N = 50 * (given[:, 0] - given[:, 1] - back[:, 0] + back[:, 1])
    prompts_N = np.argsort(np.argsort(gains_N)) // 4  # comparisons of a prompt are alike
    clusters = [str(prompt) for prompt in prompts_N]
    add_class_run(tmp_path, (given + back) / 2, targets, more=more, clusters=clusters)
    add_class_run(tmp_path, given, targets, condition="finetuned")
    table = table_of(tables(tmp_path, capsys), "Position bias: preference (test)")

    def lead(p: Floats) -> float:
        return float(100 * (p[:, 0] - p[:, 1]).mean())

    row = table["distilled"]
    assert row["as given"] == f"{lead(given):+.1f}"
    assert row["swapped"] == f"{lead(back):+.1f}"
    assert row["both orders"] == f"{(lead(given) + lead(back)) / 2:+.1f}"
    assert row["labels"] == f"{lead(targets):+.1f}"
    first_place, width = row["first place"].split(" ±")
    assert first_place == f"{(lead(given) - lead(back)) / 2:+.1f}"
    assert float(first_place) > 5
    sums_M = np.bincount(prompts_N, weights=gains_N - gains_N.mean())
    deviation = math.sqrt((sums_M**2).sum()) / 397  # of a mean over prompts drawn with all their comparisons
    assert float(width) == pytest.approx(1.96 * deviation, rel=0.15, abs=0.05)  # 1,000 draws and one decimal
    assert row["first choice changes (%)"] == f"{100 * (given.argmax(axis=1) != back.argmax(axis=1)).mean():.1f}"
    assert table["finetuned"] == {**dict.fromkeys(row, "—"), "as given": f"{lead(given):+.1f}", "labels": row["labels"]}


def test_a_reliability_diagram_shows_each_bin(world: tuple[Path, dict[str, list[Floats]], Floats]) -> None:
    results, found, targets = world
    (chart,) = reliability_charts(Results.load(Catalogue([results])))
    *lines, ideal = chart.series
    assert (ideal.name, ideal.dashed, ideal.x) == ("calibrated", True, ideal.y)
    assert [line.name.split(",")[0] for line in lines] == ["finetuned", "distilled", "shares"]
    for line in lines:
        own = found[line.name.split(",")[0]]
        confidence = np.concatenate([each.max(axis=1) for each in own])
        right = np.concatenate([targets[np.arange(150), each.argmax(axis=1)] for each in own])
        bins = bins_of(confidence)
        there = [number for number in range(BINS) if np.any(bins == number)]
        assert line.x == pytest.approx([100 * confidence[bins == number].mean() for number in there], abs=0.006)
        assert line.y == pytest.approx([100 * right[bins == number].mean() for number in there], abs=0.006)
        assert line.said[0] == f"{np.sum(bins == there[0])} of {len(bins)}"
        ece = np.mean([metrics(each, targets)["ece"] for each in own])
        assert line.name.endswith(f"ECE {100 * ece:.1f}%")


def test_a_report_shows_everything_and_trusts_no_text(world: tuple[Path, dict[str, list[Floats]], Floats]) -> None:
    results = world[0]
    files = write_report(Catalogue([results]), results / "report.md")
    assert {path.name for path in files} >= {"reliability-0.png", "report.md", "report.html"}
    page, text = (results / "report.html").read_text(), (results / "report.md").read_text()
    assert "![preference (test): how often the likeliest class is right" in text
    assert 'id="chart-reliability-0"' in page
    for title in (TITLE, "Position bias: preference (test)"):
        assert f"## {title}" in text
        assert f"<h2>{title}</h2>" in page
    assert "<img" not in page
    assert "log_loss " in page, "each example says what it scored"
    assert "points" not in re.sub(r"Mean P\(A\) − P\(B\) in points", "", text), "no gap of log losses in points"


def test_log_losses_enter_no_mean_over_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    for condition, value in (("finetuned", 0.5), ("distilled", 0.75)):
        targets = labels(rng, 30)
        add_run(tmp_path, {("nli", "en"): value}, condition=condition, setup="s-test")
        add_class_run(tmp_path, softmax(targets), targets, condition=condition, step=None)  # type: ignore[arg-type]
    text = tables(tmp_path, capsys)
    assert table_of(text, "Summary per condition: task_mean")["m"] == {"finetuned": "50.0", "distilled": "75.0"}
    assert list(table_of(text, "Overview: m")) == ["nli (accuracy)", "task_mean"]
    assert "preference, scored by class probabilities, is in none" in text
    assert "log loss (nats)" in text


def test_a_curve_of_log_losses_is_in_nats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    targets = labels(rng, 30)
    expected: dict[str, Any] = {}
    for step in (50, 100):
        probabilities = softmax(rng.normal(size=(30, 3)))
        expected[f"step {step}"] = f"{metrics(probabilities, targets)['log_loss']:.4f}"
        add_class_run(tmp_path, probabilities, targets, step=step)
    row = table_of(tables(tmp_path, capsys), "Checkpoints: preference (log_loss)")["m distilled"]
    assert {name: text.split()[0] for name, text in row.items()} == expected
