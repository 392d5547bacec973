"""Intervals of class probabilities: whole clusters are resampled, held-out folds are pooled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from logitbank.evaluation.report.clusters import bootstrap_clusters, cluster_sums
from logitbank.evaluation.report.intervals import DRAWS, Replicates, draw_counts, interval, load_replicates
from logitbank.storage.results import Catalogue
from logitbank.tasks import TASKS
from logitbank.tasks.scoring.classes import CLASS_METRICS, class_metrics, class_statistics
from tests.evaluation.class_rows import Floats, add_class_run, labels, softmax

TASK = TASKS["preference"]


def cell(condition: str = "distilled", split: str = "test") -> tuple[str, ...]:
    return ("m", condition, f"s-{split}", "", "", "preference", "und")


def replicates(results: Path) -> Replicates:
    return load_replicates(Catalogue([results]), CLASS_METRICS)


def statistics_of(probabilities: Floats, targets: Floats) -> tuple[list[str], Floats]:
    found = class_statistics(probabilities, targets)
    return list(found), np.stack(list(found.values()), axis=1)


@pytest.mark.numeric
def test_clusters_are_resampled_as_a_plain_loop_does() -> None:
    rng = np.random.default_rng(0)
    probabilities, targets = softmax(rng.normal(size=(40, 3))), labels(rng, 40)
    clusters = rng.integers(0, 9, 40).astype(np.uint64) * 2**60
    names, numbers = statistics_of(probabilities, targets)
    sums, sizes = cluster_sums(numbers, clusters)
    kinds = np.unique(clusters)
    assert sizes.tolist() == [np.sum(clusters == kind) for kind in kinds]
    counts = draw_counts(len(kinds), draws=30)
    got = bootstrap_clusters(TASK, sums, sizes, names, [counts[:11], counts[11:]])
    for draw in range(30):
        chosen = [
            row
            for kind, times in zip(kinds, counts[draw], strict=True)
            for row in np.flatnonzero(clusters == kind).tolist() * int(times)
        ]
        scored = class_statistics(probabilities[chosen], targets[chosen])
        expected = class_metrics({name: values.mean() for name, values in scored.items()})
        for metric, value in expected.items():
            assert got[metric][draw] == pytest.approx(value, rel=1e-12), metric


@pytest.mark.numeric
def test_resampling_rows_of_clusters_covers_too_seldom_and_resampling_clusters_enough() -> None:
    """60 prompts of 1 to 8 comparisons whose scores share a part; 400 experiments, a true mean of 0."""
    rng = np.random.default_rng(5)
    experiments, clusters = 400, 60
    covered, width = {"rows": 0, "clusters": 0}, {"rows": 0.0, "clusters": 0.0}
    for _ in range(experiments):
        sizes = rng.integers(1, 9, clusters)
        belongs = np.repeat(np.arange(clusters), sizes)
        scores = rng.normal(size=clusters)[belongs] + rng.normal(size=len(belongs))
        rows = rng.integers(0, len(scores), (200, len(scores)))
        sums, counted = cluster_sums(scores[:, None], belongs)
        counts = draw_counts(clusters, draws=200)
        draws = {"rows": scores[rows].mean(axis=1), "clusters": (counts @ sums)[:, 0] / (counts @ counted)}
        for name, values in draws.items():
            found = interval(values)
            covered[name] += found.low <= 0 <= found.high
            width[name] += found.half_width
    # the standard deviation of a share of 0.95 is 1.1%
    assert covered["clusters"] / experiments >= 0.91
    assert covered["rows"] / experiments <= 0.85
    assert width["clusters"] > 1.3 * width["rows"]


def test_copies_of_a_comparison_make_no_interval_narrower(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    probabilities, targets = softmax(rng.normal(size=(200, 3))), labels(rng, 200)
    again = np.repeat(np.arange(200), 4)
    prompts = [str(index) for index in again]
    add_class_run(tmp_path / "once", probabilities, targets, clusters=[str(index) for index in range(200)])
    add_class_run(tmp_path / "clustered", probabilities[again], targets[again], clusters=prompts)
    add_class_run(tmp_path / "alone", probabilities[again], targets[again])
    widths = {}
    for name in ("once", "clustered", "alone"):
        found = replicates(tmp_path / name).cell(cell(), "log_loss")
        assert found is not None
        widths[name] = found.half_width
    assert widths["clustered"] == pytest.approx(widths["once"], rel=0.1)
    assert widths["alone"] == pytest.approx(widths["once"] / 2, rel=0.1)


def test_differences_are_paired_by_cluster(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    targets, clusters = labels(rng, 300), [str(number) for number in np.repeat(np.arange(100), 3)]
    logits = rng.normal(size=(300, 3))
    shift = np.repeat(rng.normal(size=(100, 3)), 3, axis=0) / 5
    one, two = softmax(logits), softmax(logits + shift)
    add_class_run(tmp_path, one, targets, clusters=clusters, condition="finetuned")
    add_class_run(tmp_path, two, targets, clusters=clusters)
    found = replicates(tmp_path).difference([(cell(), cell("finetuned"))], "log_loss")
    assert found is not None
    own = [class_statistics(each, targets)["log_loss"] for each in (two, one)]
    by_prompt = (own[0] - own[1]).reshape(100, 3).mean(axis=1)
    assert found.half_width == pytest.approx(1.96 * by_prompt.std() / 10, rel=0.1)
    single = replicates(tmp_path).cell(cell(), "log_loss")
    assert single is not None
    assert found.half_width < single.half_width


def test_other_clusters_are_never_paired(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    targets, probabilities = labels(rng, 30), softmax(rng.normal(size=(30, 3)))
    add_class_run(tmp_path, probabilities, targets, condition="finetuned")
    add_class_run(tmp_path, probabilities, targets, clusters=["p"] * 30)
    assert replicates(tmp_path).difference([(cell(), cell("finetuned"))], "log_loss") is None


def test_equal_first_choices_on_few_prompts_are_no_certain_zero(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    targets, probabilities = labels(rng, 30), softmax(rng.normal(size=(30, 3)))
    for condition in ("finetuned", "distilled"):
        add_class_run(tmp_path, probabilities, targets, condition=condition, clusters=[str(i // 3) for i in range(30)])
    found = replicates(tmp_path)
    accuracy, loss = (found.difference([(cell(), cell("finetuned"))], metric) for metric in ("accuracy", "log_loss"))
    assert accuracy is not None
    assert accuracy.half_width > 0.05
    assert loss is not None
    assert loss.half_width == 0.0


@pytest.mark.numeric
def test_held_out_folds_are_pooled_row_by_row(tmp_path: Path) -> None:
    """Every metric, the calibration error too, is that of all rows together; so is its interval."""
    rng = np.random.default_rng(4)
    expected: dict[str, list[float]] = {metric: [] for metric in CLASS_METRICS}
    deviations = []
    for seed in (1, 2):
        drawn = [(softmax(rng.normal(size=(size, 3))), labels(rng, size)) for size in (60, 90, 150)]
        for fold, (probabilities, targets) in enumerate(drawn):
            add_class_run(tmp_path, probabilities, targets, ids=[f"{fold}-{i}" for i in range(len(targets))],
                          fold=fold, seed=seed, split="held_out", step=100 + fold)  # fmt: skip
        scored = class_statistics(*(np.concatenate(part) for part in zip(*drawn, strict=True)))
        for metric, value in class_metrics({name: numbers.mean() for name, numbers in scored.items()}).items():
            expected[metric].append(float(value))
        deviations.append(scored["log_loss"])
    found = replicates(tmp_path)
    own = cell(split="held_out")
    for metric, values in expected.items():
        assert found.values[own, metric] == pytest.approx(np.mean(values), rel=1e-12), metric
    interval_of_loss = found.cell(own, "log_loss")
    assert interval_of_loss is not None
    width = 1.96 * np.mean(deviations, axis=0).std() / np.sqrt(300)
    assert interval_of_loss.half_width == pytest.approx(width, rel=0.1)
    assert found.by_cell[own, "ece"].shape == (DRAWS,)


def test_folds_scored_on_the_same_rows_are_averaged_within_each_draw(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    targets = labels(rng, 200)
    losses = []
    for fold in range(5):
        probabilities = softmax(rng.normal(size=(200, 3)))
        add_class_run(tmp_path, probabilities, targets, fold=fold)
        losses.append(class_statistics(probabilities, targets)["log_loss"])
    found = replicates(tmp_path).cell(cell(), "log_loss")
    assert found is not None
    assert found.half_width == pytest.approx(1.96 * np.mean(losses, axis=0).std() / np.sqrt(200), rel=0.1)
