"""Bootstrap intervals: against a plain loop, and their coverage by simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from logitbank.evaluation.report.intervals import (
    DRAWS,
    Interval,
    bootstrap_metrics,
    draw_counts,
    interval,
    load_replicates,
    with_unseen_pairs,
)
from logitbank.evaluation.report.results import Results
from logitbank.evaluation.report.table import difference_with_interval, with_interval
from logitbank.storage.results.catalogue import Catalogue
from logitbank.storage.results.rows import write_rows
from logitbank.tasks import TASKS
from tests.evaluation.conftest import add_run
from tests.evaluation.test_query import run, table_of


def add_predictions(
    results: Path, cell: tuple[str, str], statistics: Sequence[Mapping[str, float]], *, first: int = 0, **identity: Any
) -> str:
    """A run whose predictions have the given statistics, and the metric row that follows from them; its name."""
    task = TASKS[cell[0]]
    means = {name: float(np.mean([row[name] for row in statistics])) for name in statistics[0]}
    value = float(task.metrics(means)[task.primary_metric])
    name = add_run(results, {cell: value}, examples=len(statistics), **identity)
    about = {key: identity.get(key) for key in ("step",)} | {"seed": identity.get("seed", 42)}
    rows = [
        {
            "run": name,
            "model": identity.get("model", "m"),
            "condition": identity.get("condition", "base"),
            **about,
            "task": cell[0],
            "language": cell[1],
            "split": "test",
            "method": "generate",
            "example_id": f"{cell[0]}/{cell[1]}/test/{first + index}",
            "prompt_hash": "0",
            "demonstrations": 0,
            "question": "q",
            "output": "o",
            "parsed": None,
            "gold": "1",
            "score": float(row.get("correct", 0.0)),
            "statistics": dict(row),
        }
        for index, row in enumerate(statistics)
    ]
    order = np.random.default_rng(len(name)).permutation(len(rows))  # files need not be in the same order
    write_rows(results, "predictions", [rows[index] for index in order], f"{name}@{cell[0]}.{cell[1]}")
    return name


def correct(values: Sequence[bool] | np.ndarray) -> list[dict[str, float]]:
    return [{"correct": float(value), "parse_failure": 0.0} for value in values]


@pytest.mark.numeric
@pytest.mark.parametrize("most", [1, 7, 2**23])
def test_means_of_whole_numbers_are_the_bits_of_double_precision(most: int) -> None:
    rng = np.random.default_rng(most)
    names = ["true_positives", "predicted", "gold", "parse_failure"]
    statistics = rng.integers(0, most, (3, 40, 4), endpoint=True).astype(float)
    statistics[..., 3] = 1
    counts = draw_counts(40, draws=60)
    got = bootstrap_metrics(TASKS["ner"], statistics, names, counts)
    means = {name: np.array(counts @ statistics[..., place].T) / 40 for place, name in enumerate(names)}
    expected = TASKS["ner"].metrics(means)
    for metric in ("f1", "parse_failure"):
        assert got[metric].tolist() == expected[metric].tolist()


def test_span_f1_is_resampled_over_sentences_as_a_plain_loop_does() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 4, 30)
    predicted = rng.integers(0, 4, 30)
    hits = np.minimum(gold, predicted) * rng.integers(0, 2, 30)
    names = ["true_positives", "predicted", "gold", "parse_failure"]
    statistics = np.stack([hits, predicted, gold, np.zeros(30)], axis=1).astype(float)
    counts = draw_counts(30, draws=50)
    got = bootstrap_metrics(TASKS["ner"], statistics[None], names, counts)["f1"][:, 0]
    for draw in range(50):
        chosen = [sentence for sentence in range(30) for _ in range(int(counts[draw, sentence]))]
        assert len(chosen) == 30
        tp = sum(int(hits[s]) for s in chosen)
        expected = 2 * tp / (sum(int(predicted[s]) for s in chosen) + sum(int(gold[s]) for s in chosen))
        assert got[draw] == pytest.approx(expected, rel=1e-12)


def test_draws_are_uniform_with_replacement() -> None:
    counts = draw_counts(200, draws=4000)
    assert np.all(counts.sum(axis=1) == 200)
    assert counts.mean(axis=0) == pytest.approx(np.ones(200), abs=0.08)
    assert float(counts.var()) == pytest.approx(1 - 1 / 200, rel=0.02)  # binomial(n, 1/n)


@pytest.mark.parametrize("examples", [100, 400])
def test_the_paired_interval_covers_the_true_difference_95_times_in_100(examples: int) -> None:
    """Two models on the same examples, their mistakes correlated; 600 experiments."""
    rng = np.random.default_rng(7)
    counts, experiments, covered = draw_counts(examples), 600, 0
    true_difference = 0.7 * (0.85 - 0.70) + 0.3 * (0.25 - 0.30)
    for _ in range(experiments):
        easy = rng.random(examples) < 0.7
        one = rng.random(examples) < np.where(easy, 0.85, 0.25)
        other = rng.random(examples) < np.where(easy, 0.70, 0.30)
        replicates = counts @ one / examples - counts @ other / examples
        found = interval(replicates)
        covered += found.low <= true_difference <= found.high
    # the standard deviation of the share is 0.9%
    assert 0.925 <= covered / experiments <= 0.975


@pytest.mark.parametrize("examples", [10, 30, 100])
@pytest.mark.parametrize(("won", "lost"), [(0.0, 0.0), (0.02, 0.0), (0.05, 0.01), (0.01, 0.01), (0.1, 0.1)])
def test_the_interval_of_nearly_equal_models_covers_the_true_difference(examples: int, won: float, lost: float) -> None:
    """Few examples on which two models differ, 600 experiments; resampling alone covers 19% of them at worst."""
    rng = np.random.default_rng(8)
    counts, experiments, covered = draw_counts(examples), 600, 0
    for _ in range(experiments):
        drawn = rng.random(examples)
        difference = np.where(drawn < won, 1.0, np.where(drawn < won + lost, -1.0, 0.0))
        found = interval(with_unseen_pairs(counts @ difference / examples, examples, ("nli", "en")))
        covered += found.low <= won - lost <= found.high
    # the standard deviation of the share is 0.9%; a discrete outcome is covered more often
    assert covered / experiments >= 0.925


def test_the_interval_of_a_mean_of_nearly_equal_cells_covers_too() -> None:
    rng = np.random.default_rng(9)
    examples, experiments, covered = 50, 400, 0
    counts = draw_counts(examples)
    orders = [np.random.default_rng(language).permutation(DRAWS) for language in range(4)]
    for _ in range(experiments):
        cells = []
        for language, order in enumerate(orders):
            drawn = rng.random(examples)
            difference = np.where(drawn < 0.03, 1.0, np.where(drawn < 0.04, -1.0, 0.0))
            replicates = (counts @ difference / examples)[order]
            cells.append(with_unseen_pairs(replicates, examples, ("nli", str(language))))
        found = interval(np.mean(cells, axis=0))
        covered += found.low <= 0.02 <= found.high
    assert covered / experiments >= 0.92


@pytest.mark.parametrize("examples", [3, 50, 500])
def test_equal_answers_differ_by_what_jeffreys_prior_leaves_open(examples: int) -> None:
    """The posterior of won minus lost is Dirichlet's with half a case each."""
    rng = np.random.default_rng(10)
    found = interval(with_unseen_pairs(np.zeros(DRAWS), examples, ("nli", "en")))
    posterior = rng.dirichlet([0.5, 0.5, examples], size=200_000)
    low, high = np.quantile(posterior[:, 0] - posterior[:, 1], [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx([low, high], rel=0.05)
    assert found.low == pytest.approx(-found.high)
    assert not found.excludes_zero


@pytest.mark.parametrize("task", ["nli", "ner"])
def test_equal_results_on_few_examples_are_no_certain_zero(task: str, tmp_path: Path, capsys: Any) -> None:
    spans = {"true_positives": 1.0, "predicted": 2.0, "gold": 1.0, "parse_failure": 0.0}
    statistics = correct([True, False, True]) if task == "nli" else [spans] * 3
    for condition in ("finetuned", "distilled"):
        add_predictions(tmp_path, (task, "en"), statistics, condition=condition)
    run(tmp_path, "tables")
    (row,) = [row for name, row in table_of(capsys.readouterr().out, "Overview: m").items() if name.startswith(task)]
    value, width, mark = row["distilled−finetuned"].split()
    assert (value, mark) == ("0.0", "≈0")
    assert float(width.removeprefix("±")) > 20


def test_an_interval_at_a_bound_is_shown_by_its_bounds(tmp_path: Path, capsys: Any) -> None:
    add_predictions(tmp_path, ("nli", "en"), correct([True] * 50))
    add_predictions(tmp_path, ("nli", "hi"), correct([False] * 50))
    add_predictions(tmp_path, ("nli", "de"), correct([True, False] * 25))
    run(tmp_path, "tables", "--cells")
    row = table_of(capsys.readouterr().out, "base: nli (accuracy, %)")["m"]
    low, high = scipy.stats.beta.ppf([0.025, 0.975], 0.5, 50.5)
    assert row["en"].split() == ["100.0", f"[{100 - float(row['hi'].split()[2][:-1]):.1f},", "100.0]"]
    assert row["hi"].split()[:2] == ["0.0", f"[{100 * low:.1f},"]
    assert float(row["hi"].split()[2].removesuffix("]")) == pytest.approx(100 * high, abs=0.15)
    assert row["de"].startswith("50.0 ±")


@pytest.mark.parametrize(
    ("value", "low", "high", "score", "difference"),
    [
        (0.5, 0.45, 0.55, "x ±5.0", "x ±5.0"),
        (0.03, 0.0, 0.09, "x [0.0, 9.0]", "x [0.0, +9.0] ≈0"),
        (0.98, 0.94, 1.02, "x [94.0, 102.0]", "x [+94.0, +102.0]"),
        (0.0, -0.05, 0.05, "x [-5.0, 5.0]", "x ±5.0 ≈0"),
        (-0.2, -0.25, -0.15, "x [-25.0, -15.0]", "x ±5.0"),
        (0.0, 0.02, 0.104, "x [0.0, 10.4]", "x [+2.0, +10.4]"),
        (1.0, 0.9, 0.99, "x [90.0, 100.0]", "x [+90.0, +99.0]"),
    ],
)
def test_lopsided_intervals_are_bounds(value: float, low: float, high: float, score: str, difference: str) -> None:
    assert with_interval("x", value, Interval(low, high)) == score
    assert difference_with_interval("x", value, Interval(low, high)) == difference
    assert difference_with_interval("x", value, None) == "x ±?"
    assert with_interval("—", None, None) == difference_with_interval("—", None, None) == "—"


def test_pairing_makes_the_interval_of_similar_models_narrow(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shared = rng.random(300) < 0.5
    changed = shared ^ (rng.random(300) < 0.05)
    cell = ("nli", "en")
    add_predictions(tmp_path, cell, correct(shared), condition="finetuned")
    add_predictions(tmp_path, cell, correct(changed), condition="distilled")
    replicates = load_replicates(Catalogue([tmp_path]))
    keys = [("m", condition, "s", "", "", *cell) for condition in ("distilled", "finetuned")]
    paired = replicates.difference([(keys[0], keys[1])], "accuracy")
    single = replicates.cell(keys[0], "accuracy")
    assert paired is not None
    assert single is not None
    difference = changed.astype(float) - shared
    assert paired.half_width == pytest.approx(1.96 * difference.std() / np.sqrt(300), rel=0.1)
    assert single.half_width == pytest.approx(1.96 * changed.std() / np.sqrt(300), rel=0.1)
    assert paired.half_width < 0.5 * single.half_width


def test_cells_are_independent_of_one_another(tmp_path: Path) -> None:
    """The interval of a mean over two cells shrinks by √2, though both are drawn by the same counts."""
    right = correct(np.random.default_rng(2).random(300) < 0.5)
    for language in ("en", "hi"):
        add_predictions(tmp_path, ("nli", language), right)
    replicates = load_replicates(Catalogue([tmp_path]))
    keys = [("m", "base", "s", "", "", "nli", language) for language in ("en", "hi")]
    one, both = replicates.cell(keys[0], "accuracy"), replicates.average(keys, "accuracy")
    assert one is not None
    assert both is not None
    assert both.half_width == pytest.approx(one.half_width / np.sqrt(2), rel=0.1)
    a, b = (replicates.by_cell[key, "accuracy"] for key in keys)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(DRAWS)


def test_seeds_are_averaged_within_each_draw(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    outcomes = [rng.random(200) < 0.6 for _ in range(3)]
    for seed, outcome in enumerate(outcomes):
        add_predictions(tmp_path, ("nli", "en"), correct(outcome), condition="distilled", seed=seed)
    found = load_replicates(Catalogue([tmp_path])).cell(("m", "distilled", "s", "", "", "nli", "en"), "accuracy")
    assert found is not None
    expected = 1.96 * np.mean(outcomes, axis=0).std() / np.sqrt(200)
    assert found.half_width == pytest.approx(expected, rel=0.1)


def test_different_examples_are_never_paired(tmp_path: Path) -> None:
    right = correct([True] * 20 + [False] * 20)
    add_predictions(tmp_path, ("nli", "en"), right, condition="finetuned")
    add_predictions(tmp_path, ("nli", "en"), right, condition="distilled", first=1)
    replicates = load_replicates(Catalogue([tmp_path]))
    keys = [("m", condition, "s", "", "", "nli", "en") for condition in ("distilled", "finetuned")]
    assert replicates.difference([(keys[0], keys[1])], "accuracy") is None


def test_tables_mark_what_is_not_resolved(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(4)
    base = rng.random(200) < 0.5
    add_predictions(tmp_path, ("nli", "en"), correct(base), condition="finetuned")
    add_predictions(tmp_path, ("nli", "en"), correct(base ^ (rng.random(200) < 0.1)), condition="distilled")
    add_predictions(tmp_path, ("nli", "en"), correct(base & (rng.random(200) < 0.2)), condition="control")
    run(tmp_path, "tables", "--cells")
    text = capsys.readouterr().out
    row = table_of(text, "Overview: m")["nli (accuracy)"]
    assert row["distilled−finetuned"].endswith(" ≈0")
    assert "≈0" not in row["control−finetuned"]
    assert row["control−finetuned"].startswith("-")
    assert " ±" in row["finetuned"]
    assert " ±" in table_of(text, "finetuned: nli (accuracy, %)")["m"]["en"]
    assert " ±" in table_of(text, "Summary per condition: task_mean")["m"]["control"]


def test_published_gaps_carry_no_interval(tmp_path: Path) -> None:
    for condition, value in (("finetuned", 0.5), ("distilled", 0.6)):
        add_run(tmp_path, {("nli", "en"): value}, condition=condition)
    results = Results.load(Catalogue([tmp_path]))
    (gap,) = results.task_gaps
    assert results.gap(gap) == "+10.0 ±?"


@pytest.mark.parametrize("right", [True, False])
def test_a_cell_without_a_miss_or_a_hit_is_not_certain(right: bool, tmp_path: Path) -> None:
    """Jeffreys' interval of 50 out of 50; the bootstrap alone would say ±0."""
    add_predictions(tmp_path, ("nli", "en"), correct([right] * 50))
    add_predictions(tmp_path, ("nli", "hi"), correct([right] * 50))
    replicates = load_replicates(Catalogue([tmp_path]))
    cells = [("m", "base", "s", "", "", "nli", language) for language in ("en", "hi")]
    one, both = replicates.cell(cells[0], "accuracy"), replicates.average(cells, "accuracy")
    assert one is not None
    assert both is not None
    rare = scipy.stats.beta.ppf([0.025, 0.975], 0.5, 50.5)
    expected = 1 - rare[::-1] if right else rare
    assert [one.low, one.high] == pytest.approx(expected, abs=2e-3)
    assert 0 < both.half_width < one.half_width


def test_checkpoints_have_intervals_of_their_own(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(5)
    early, late = rng.random(200) < 0.5, rng.random(200) < 0.9
    for step, outcome in ((100, early), (200, late)):
        add_predictions(tmp_path, ("nli", "en"), correct(outcome), condition="distilled", step=step)
    found = load_replicates(Catalogue([tmp_path]))
    cell = ("m", "distilled", "s", "", "", "nli", "en")
    for step, outcome in ((100, early), (200, late)):
        interval_of_step = found.at_step([cell], step)
        assert interval_of_step is not None
        assert interval_of_step.half_width == pytest.approx(1.96 * outcome.std() / np.sqrt(200), rel=0.1)
    assert found.cell(cell, "accuracy") == found.at_step([cell], 200), "the last step is the cell's"
    run(tmp_path, "tables", "--cells")
    row = table_of(capsys.readouterr().out, "Checkpoints: nli (accuracy)")["m distilled"]
    assert all(" ±" in text for text in row.values())


def test_transfer_gap_and_sweep_have_intervals(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(6)
    base = {language: rng.random(200) < 0.6 for language in ("en", "hi")}
    for language, outcome in base.items():
        add_predictions(tmp_path, ("nli", language), correct(outcome), condition="finetuned")
        for value, better in ((0.05, 0.02), (0.5, 0.5)):
            changed = outcome | (rng.random(200) < better)
            about = {"variant": f"λ={value:g}", "lambda_distill": value}
            add_predictions(tmp_path, ("nli", language), correct(changed), condition="distilled", **about)
    run(tmp_path, "tables", "--cells")
    text = capsys.readouterr().out
    gap = table_of(text, "Transfer gap")["m finetuned"]["gap"]
    width = 1.96 * np.sqrt(sum(outcome.var() / 200 for outcome in base.values()))
    assert float(gap.split("±")[1].split()[0]) == pytest.approx(100 * width, abs=0.6)
    sweep = table_of(text, "λ sweep: m")
    assert "≈0" not in sweep["distilled λ=0.5"]["nli −finetuned"]
    assert " ±" in sweep["distilled λ=0.5"]["nli −finetuned"]
    assert " ±" in sweep["distilled λ=0.05"]["nli"]
