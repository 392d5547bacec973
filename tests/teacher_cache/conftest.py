"""Tiny random models, and data for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from logitbank.scripts.demo_world import World, write_mirror
from tests import tiny
from tests.teacher_cache import foreign
from tests.teacher_cache.imports import Import, importer

PADDING_ROWS = 8


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_model(template=CHATML, padding_rows=8, control=(), seed=0)` saves a random model of bytes."""

    def make(
        template: str = CHATML, padding_rows: int = PADDING_ROWS, control: Sequence[str] = (), seed: int = 0
    ) -> Path:
        tokenizer = tiny.byte_tokenizer(template, control=control)
        return tiny.save_model(
            tmp_path_factory.mktemp("model"),
            tokenizer,
            rows=len(tokenizer) + padding_rows,
            seed=seed,
            architecture="llama",
            hidden_size=16,
            intermediate_size=24,
            head_dim=8,
            max_position_embeddings=4096,
            initializer_range=0.5,
        )

    return make


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of all tasks and languages, in the layout of the hub."""
    path = tmp_path_factory.mktemp("mirror")
    write_mirror(path, World(train_rows=24, eval_rows=12))
    return path


@pytest.fixture(scope="session")
def foreign_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model of students that learn from caches of other toolkits."""
    return foreign.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def take(foreign_base: Path, tmp_path: Path) -> Import:
    """Import files into a store below the test's directory, and open it."""
    return importer(foreign_base, tmp_path)
