"""Fixtures for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Builds byte-level tokenizers; arguments as of `tiny.byte_tokenizer`."""
    return tiny.byte_tokenizer
