"""Labels that nothing explains: teachers learn them by heart, and out of fold know no more than chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from logitbank.configs import load_config
from logitbank.models.classifier import open_classifier
from logitbank.models.huggingface import load_tokenizer
from logitbank.models.pair_scoring import score_pairs
from logitbank.storage import LabelStore, verify_labels
from logitbank.storage.results import Catalogue
from logitbank.student_train.train_command import main as train_student
from logitbank.tasks.preference import PairPacker
from logitbank.teacher_cache.build_command import main as build_teacher_cache
from tests import tiny
from tests.tasks.comparisons import row, write_csv

PROMPTS, ROWS_EACH, FOLDS = 40, 2, 2
NINETY_NINE = 2.576  # standard deviations on either side


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All rows of a prompt share its random label: a teacher that has seen one of them knows the others."""
    directory, generator = tmp_path_factory.mktemp("random"), np.random.default_rng(0)

    def word() -> str:
        return "".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz"), 5))

    labels = generator.permutation(np.resize(["a", "b", "tie"], PROMPTS))
    rows = [
        row(prompt, word(), word(), label, id=f"r{number}-{copy}")
        for number, (prompt, label) in enumerate(zip([word() for _ in labels], labels.tolist(), strict=True))
        for copy in range(ROWS_EACH)
    ]
    held = [row(word(), word(), word(), label, id=f"v{number}") for number, label in enumerate(labels[:9].tolist())]
    tokenizer = tiny.chat_tokenizer()
    base = tiny.save_model(directory / "base", tokenizer, rows=280, initializer_range=0.15, max_position_embeddings=512)
    return [
        "tasks=[preference]",
        f"model.name={base}",
        f"preference.train={write_csv(directory / 'train.csv', rows)}",
        f"preference.validation={write_csv(directory / 'validation.csv', held)}",
        f"preference.folds={FOLDS}",
        "data.max_student_tokens=128",
        "training.precision=fp32",
        "training.use_lora=false",
        "training.max_steps=80",
        "training.warmup_steps=5",
        "training.global_batch_size=32",
        "training.micro_batch_size=32",
        "training.learning_rate=0.003",
        "training.logging_steps=40",
    ]


@pytest.mark.numeric
def test_teachers_know_their_own_rows_and_not_those_they_score(options: list[str], tmp_path: Path) -> None:
    """In fold at least 0.9 are right; out of fold a third, within a 99% interval over prompts."""
    url, config = str(tmp_path / "store"), load_config([], options)
    build_teacher_cache(["--store", url, "--view", "none", *options])
    packer = PairPacker(load_tokenizer(config.model), max_tokens=config.data.max_student_tokens or 128)
    for fold in range(FOLDS):
        output = tmp_path / f"T{fold}"
        about = ["--view", "none", "--held-out-fold", str(fold), "--output", str(output)]
        train_student(["--store", url, *about, *options])
        teacher = ["--view", "memory", "--fold", str(fold), "--checkpoint", str(output / "final")]
        build_teacher_cache(["--store", url, *teacher, *options])
        train = LabelStore.open(url).train
        learned = np.flatnonzero(train.fold != fold)
        classifier = open_classifier(config, device="cpu", checkpoint=output / "final")
        logits = score_pairs(classifier, [packer.pack(train.pair(int(i))) for i in learned], batch_tokens=4096)
        assert (logits.argmax(axis=1) == train.target[learned].argmax(axis=1)).mean() >= 0.9
    assert verify_labels(url) == []
    (found,) = Catalogue([], [url]).rows("SELECT avg(correct) AS accuracy, count(*) AS rows FROM oof")
    assert found["rows"] == PROMPTS * ROWS_EACH
    deviation = (1 / 3 * 2 / 3 / PROMPTS) ** 0.5  # both rows of a prompt may be right or wrong together
    assert abs(found["accuracy"] - 1 / 3) <= NINETY_NINE * deviation
