"""Quantiles of gamma distributions against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import gammaincinv

from logitbank.evaluation.report.quantiles import gamma_quantiles


@pytest.mark.numeric
@pytest.mark.parametrize("shape", [0.5, 1.0, 1.5, 2.0, 7.0, 200.0, 10_000.0])
def test_quantiles_are_scipys(shape: float) -> None:
    """Γ(shape) is known to a few units of its last place, in its logarithm: a relative error of shape · 1e-15."""
    levels = np.concatenate([[1e-9, 1e-6, 1e-4], (np.arange(1000) + 0.5) / 1000])
    found = gamma_quantiles(shape, levels)
    np.testing.assert_allclose(found, gammaincinv(shape, levels), rtol=1e-12 * max(10, shape))
    assert np.all(np.diff(found) > 0)
