"""`import logitbank`: few names, each from its room when it is first used."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import logitbank
from logitbank import configs, errors, storage
from logitbank.storage.results.catalogue import Catalogue


def test_public_names_are_those_of_their_rooms() -> None:
    for room in (configs, errors, storage):
        for name in set(room.__dict__) & set(logitbank.__all__):
            assert getattr(logitbank, name) is getattr(room, name)
    assert logitbank.Catalogue is Catalogue
    assert all(hasattr(logitbank, name) for name in logitbank.__all__)
    assert set(logitbank.__all__) <= set(dir(logitbank))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = logitbank.nonsense


def test_the_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("logitbank") == logitbank.__version__


def test_importing_it_imports_no_other_package() -> None:
    program = "import sys; before = set(sys.modules); import logitbank; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # `typing` and `importlib` of the standard library may come with it; nothing that is installed does.
    foreign = {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)
    assert foreign <= {"logitbank"}


def test_opening_stores_warns_of_no_codec() -> None:
    """In an interpreter of its own: pytest has filters of its own too."""
    program = "from logitbank.storage.groups import coder; coder('pcodec')"
    done = subprocess.run([sys.executable, "-W", "default", "-c", program], capture_output=True, text=True, check=True)
    assert "Numcodecs" not in done.stderr
