"""Log loss, accuracy, Brier score and calibration error, worked out by hand and one example at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from logitbank.tasks.scoring.classes import BINS, SMALLEST, bins_of, class_metrics, class_statistics

pytestmark = pytest.mark.numeric


def _means(probabilities: list[list[float]], targets: list[list[float]]) -> dict[str, float]:
    numbers = class_statistics(np.array(probabilities), np.array(targets))
    return {name: float(values.mean()) for name, values in numbers.items()}


def test_by_hand() -> None:
    found = class_metrics(_means([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], [[1, 0, 0], [0, 0.5, 0.5]]))
    assert found["log_loss"] == pytest.approx((-math.log(0.7) - 0.5 * math.log(0.3) - 0.5 * math.log(0.6)) / 2)
    assert found["accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert found["brier"] == pytest.approx((0.3**2 + 0.2**2 + 0.1**2 + 0.1**2 + 0.2**2 + 0.1**2) / 2)
    assert found["ece"] == pytest.approx((abs(0.7 - 1) + abs(0.6 - 0.5)) / 2), "they are in two bins"


def test_gaps_of_one_bin_cancel_and_those_of_two_do_not() -> None:
    together = class_metrics(_means([[0.55, 0.25, 0.2], [0.57, 0.23, 0.2]], [[1, 0, 0], [0, 1, 0]]))
    assert together["ece"] == pytest.approx(abs(0.56 - 0.5)), "both confidences are above 8/15 and below 9/15"
    apart = class_metrics(_means([[0.55, 0.25, 0.2], [0.65, 0.15, 0.2]], [[1, 0, 0], [0, 1, 0]]))
    assert apart["ece"] == pytest.approx((0.45 + 0.65) / 2)


def test_the_calibration_error_is_that_of_a_loop_over_bins() -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet([0.5, 0.5, 0.5], size=400)
    targets = generator.dirichlet([0.3, 0.3, 0.3], size=400)
    expected = 0.0
    for number in range(BINS):
        members = [
            (p.max(), t[p.argmax()])
            for p, t in zip(probabilities, targets, strict=True)
            if number / BINS < p.max() <= (number + 1) / BINS
        ]
        if members:
            confidence, accuracy = np.mean(members, axis=0)
            expected += len(members) / 400 * abs(confidence - accuracy)
    found = class_metrics(_means(probabilities.tolist(), targets.tolist()))
    assert found["ece"] == pytest.approx(expected, abs=1e-12)


def test_edges_of_bins() -> None:
    assert bins_of(np.array([1.0, 1 / 3, 0.4, 0.4 + 1e-9])).tolist() == [14, 4, 5, 6]


def test_a_class_that_was_excluded_costs_as_much_as_the_leaderboards_say() -> None:
    found = class_metrics(_means([[1.0, 0.0, 0.0]], [[0, 1, 0]]))
    assert found["log_loss"] == pytest.approx(-math.log(SMALLEST))
    assert class_metrics(_means([[1.0, 0.0, 0.0]], [[1, 0, 0]]))["log_loss"] == pytest.approx(0, abs=1e-14)


def test_metrics_of_arrays_of_means_are_those_of_each() -> None:
    generator = np.random.default_rng(5)
    draws = [
        _means(generator.dirichlet([1, 1, 1], size=9).tolist(), generator.dirichlet([1, 1, 1], size=9).tolist())
        for _ in range(3)
    ]
    together = class_metrics({name: np.array([draw[name] for draw in draws]) for name in draws[0]})
    for place, draw in enumerate(draws):
        assert {name: values[place] for name, values in together.items()} == pytest.approx(class_metrics(draw))
