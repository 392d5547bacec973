"""Temperatures of folds that students left out: who scores which rows, what fits, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.configs import Config
from logitbank.configs.schema import ModelConfig
from logitbank.errors import ConfigError
from logitbank.evaluation.calibration import CALIBRATION, Calibration
from logitbank.evaluation.checkpoints import Checkpoint
from logitbank.models.weights import weights_hash
from logitbank.preference import PackedPair, Pair, SeenPrompts, prompt_keys
from logitbank.storage import LabelStore
from logitbank.storage.results.catalogue import Catalogue
from logitbank.tasks.preference import PARTS, PairPacker, part_of
from tests.evaluation.comparisons import Formula, classifier_checkpoint, evaluated, logits_of, never, probabilities
from tests.storage import label_stores

Make = Callable[..., Config]
FOLDS = range(label_stores.FOLDS)
TEST = 24  # rows of the test file


@pytest.fixture(scope="module")
def train(tokenizer: Any) -> list[Pair]:
    """The rows of a store; two of three are won by what the formula takes for the better answer."""
    packer = PairPacker(tokenizer, max_tokens=400)
    found = list(label_stores.TRAIN)
    for row in (row for row in range(len(found)) if row % 3):
        best = int(np.argmax(logits_of(packer.pack(found[row]))))
        found[row] = dataclasses.replace(found[row], target=tuple(np.eye(3)[best].tolist()))
    return found


@pytest.fixture(scope="module")
def store(train: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A label store without teachers, folds of 14 rows and 7 prompts."""
    return built(tmp_path_factory.mktemp("labels") / "store", train)


@pytest.fixture
def students(store: str, tmp_path: Path) -> list[Path]:
    """One for each fold, which it left out."""
    return [student_of(store, tmp_path / f"fold-{fold}", fold) for fold in FOLDS]


def built(place: Path, train: Sequence[Pair]) -> str:
    with label_stores.builder(str(place), train=train):
        pass
    return str(place)


def student_of(store: str, path: Path, fold: int | None, **about: Any) -> Path:
    other = [pair for pair, of in zip(label_stores.TRAIN, label_stores.FOLD, strict=True) if of != fold]
    known = {"seen": SeenPrompts.of(prompt_keys(other)), "store_fingerprint": LabelStore.open(store).info.fingerprint}
    return classifier_checkpoint(path, weights=path.name.encode(), held_out_fold=fold, **{**known, **about})


def exported(path: Path, sources: Sequence[Path], seen: SeenPrompts | None = None) -> Path:
    """What looks like the export of some checkpoints, which saw what they saw."""
    everything = SeenPrompts.of(prompt_keys(label_stores.TRAIN)) if seen is None else seen
    classifier_checkpoint(path, weights=path.name.encode(), record=False, seen=everything)
    checkpoints = [{"path": str(each), "weights": weights_hash(ModelConfig(name=str(each)))} for each in sources]
    (path / "export.json").write_text(json.dumps({"checkpoints": checkpoints}))
    return path


class Students:
    """Each checkpoint sharpens the formula's logits by its own factor, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}

    def __call__(self, config: Config, checkpoint: Checkpoint | None) -> Callable[..., Any]:
        assert checkpoint is not None
        name = checkpoint.path.name

        def score(packed: Sequence[PackedPair], progress: Callable[[int], object]) -> Any:
            self.asked[name] = self.asked.get(name, 0) + len(packed)
            return np.array([logits_of(each) for each in packed], dtype=np.float32) * sharpness(name)

        return score


def sharpness(name: str) -> float:
    return 1.0 + int(name[-1]) if name[-1].isdigit() else 0.1


def fold_of(train: Sequence[Pair], fold: int) -> list[Pair]:
    return [pair for pair, of in zip(train, label_stores.FOLD, strict=True) if of == fold]


def halves(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """What fits, and what is left untouched."""
    parts = part_of(prompt_keys(pairs), 0.0)
    return [[pair for pair, of in zip(pairs, parts, strict=True) if PARTS[of] == part] for part in PARTS[1:]]


def calibration_of(directory: Path) -> Calibration:
    found = Calibration.read(directory)
    assert found is not None
    return found


def best_of_a_grid(p_NC: Any, pairs: Sequence[Pair]) -> float:
    """The log of the temperature that fits best, in float64 and one at a time."""
    log_p, targets = torch.from_numpy(p_NC).log(), torch.tensor([pair.target for pair in pairs]).double()
    grid = np.linspace(-3, 3, 6001)
    losses = [float(-(targets * (log_p / math.exp(at)).log_softmax(-1)).sum(-1).mean()) for at in grid]
    return float(grid[int(np.argmin(losses))])


@pytest.mark.numeric
def test_a_student_is_calibrated_on_half_of_the_fold_that_it_left_out(
    comparing: Make, train: list[Pair], store: str, students: list[Path], tokenizer: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    formula = Formula()
    evaluated(comparing(), students[1], tmp_path / "r", formula, calibrate=True, store=store)
    fits, untouched = halves(fold_of(train, 1))
    assert {pair.prompt_key for pair in fits}.isdisjoint(pair.prompt_key for pair in untouched)
    assert formula.asked == [len(fits) + len(untouched), TEST]
    assert len(formula.opened) == 1, "one model for the fold and the test rows"
    found = calibration_of(students[1])
    assert (found.calibration.rows, found.holdout.rows) == (len(fits), len(untouched))
    assert (found.fitted_on.split, found.fitted_on.folds, found.fitted_on.scored_by) == ("held_out", (1,), ())
    assert found.fitted_on.store == LabelStore.open(store).info.fingerprint
    best = best_of_a_grid(probabilities(fits, tokenizer, 400), fits)
    assert math.log(found.temperature) == pytest.approx(best, abs=1.1e-3), "a step of the grid and float32 logits"
    others = best_of_a_grid(probabilities(train, tokenizer, 400), train)
    assert abs(best - others) > 0.02, "or rows of other folds would not show"
    assert f"T={found.temperature:.4g} of fold 1; {len(fits)} fitted rows: " in capsys.readouterr().out


@pytest.mark.numeric
def test_an_average_is_calibrated_by_the_students_that_left_each_fold_out(
    comparing: Make, train: list[Pair], store: str, students: list[Path], tokenizer: Any, tmp_path: Path
) -> None:
    average, models = exported(tmp_path / "average", students), Students()
    evaluated(comparing(), average, tmp_path / "r", models, condition="merged", calibrate=True, store=store)
    assert models.asked == {**{f"fold-{fold}": label_stores.ROWS for fold in FOLDS}, "average": TEST}
    found = calibration_of(average)
    assert found.fitted_on.folds == tuple(FOLDS)
    assert len(set(found.fitted_on.scored_by)) == len(students)
    assert found.holds_for.weights not in found.fitted_on.scored_by
    fits = [halves(fold_of(train, fold))[0] for fold in FOLDS]
    p_NC = np.concatenate(
        [sharpened(probabilities(own, tokenizer, 400), 1 + fold) for fold, own in zip(FOLDS, fits, strict=True)]
    )
    pairs = [pair for own in fits for pair in own]
    assert found.calibration.rows == len(pairs)
    assert math.log(found.temperature) == pytest.approx(best_of_a_grid(p_NC, pairs), abs=1.1e-3)
    assert not [path for path in students if (path / CALIBRATION).exists()], "theirs are their own"
    copy = exported(tmp_path / "quantised", [average])
    evaluated(comparing(), copy, tmp_path / "r", Students(), condition="quantised", calibrate=True, store=store)
    assert calibration_of(copy).temperature == found.temperature, "an export of an export has the same students"


def sharpened(p_NC: Any, by: float) -> Any:
    return torch.from_numpy(by * np.log(p_NC)).softmax(-1).numpy()


def test_students_that_left_out_the_same_fold_score_it_together(
    comparing: Make, train: list[Pair], store: str, students: list[Path], tokenizer: Any, tmp_path: Path
) -> None:
    again = student_of(store, tmp_path / "seed-7", 1)
    average, models = exported(tmp_path / "average", [*students, again]), Students()
    evaluated(comparing(), average, tmp_path / "r", models, condition="merged", calibrate=True, store=store)
    p_NC = [sharpened(probabilities(halves(fold_of(train, fold))[0], tokenizer, 400), 1 + fold) for fold in FOLDS]
    pairs = [pair for fold in FOLDS for pair in halves(fold_of(train, fold))[0]]
    p_NC[1] = (p_NC[1] + sharpened(probabilities(halves(fold_of(train, 1))[0], tokenizer, 400), 8)) / 2
    found = calibration_of(average)
    assert found.calibration.rows == len(pairs), "each row once"
    assert math.log(found.temperature) == pytest.approx(best_of_a_grid(np.concatenate(p_NC), pairs), abs=1.1e-3)


def test_an_export_of_one_student_scores_its_fold_itself(
    comparing: Make, store: str, students: list[Path], tmp_path: Path
) -> None:
    copy = exported(tmp_path / "quantised", [students[2]], SeenPrompts.read(students[2]))
    models = Students()
    evaluated(comparing(), copy, tmp_path / "r", models, condition="quantised", calibrate=True, store=store)
    assert models.asked == {"quantised": label_stores.ROWS + TEST}
    assert calibration_of(copy).fitted_on.folds == (2,)


def test_the_other_half_decides_nothing(
    comparing: Make, train: list[Pair], store: str, students: list[Path], tmp_path: Path
) -> None:
    evaluated(comparing(), students[0], tmp_path / "r", Formula(), calibrate=True, store=store)
    before = calibration_of(students[0])
    untouched = {pair.example_id for pair in halves(fold_of(train, 0))[1]}
    turned = [
        dataclasses.replace(pair, target=(0.0, 0.0, 1.0)) if pair.example_id in untouched else pair for pair in train
    ]
    other = built(tmp_path / "other", turned)
    student_of(other, students[0], 0)
    evaluated(comparing(), students[0], tmp_path / "r", Formula(), calibrate=True, store=other)
    after = calibration_of(students[0])
    assert (after.temperature, after.calibration) == (before.temperature, before.calibration)
    assert after.holdout != before.holdout


def test_folds_and_validation_are_two_calibrations(
    comparing: Make, store: str, students: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = students[0]
    on_validation = evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True)
    assert calibration_of(student).fitted_on.split == "validation"
    on_folds = evaluated(comparing(), student, tmp_path / "r", Formula(), calibrate=True, store=store)
    assert calibration_of(student).fitted_on.split == "held_out"
    assert on_validation[0]["run"] != on_folds[0]["run"]
    setups = Catalogue([tmp_path / "r"]).rows("SELECT DISTINCT setup FROM runs")
    assert len(setups) == 2, "no gap is formed between them"
    assert evaluated(comparing(), student, tmp_path / "r", never, calibrate=True, store=store) == on_folds
    printed = capsys.readouterr().out
    assert "already fitted on the same rows, weights and settings" in printed
    assert "fitted on rows of" not in printed
    held_out = comparing("evaluation.split=held_out")
    evaluated(held_out, student, tmp_path / "r", Formula(), calibrate=True, store=store)
    assert "warning: the temperature was fitted on rows of held_out" in capsys.readouterr().out


def test_a_calibration_of_an_earlier_version_is_of_validation(
    comparing: Make, students: list[Path], tmp_path: Path
) -> None:
    found = evaluated(comparing(), students[0], tmp_path / "r", Formula(), calibrate=True)
    content = json.loads((students[0] / CALIBRATION).read_text())
    del content["fitted_on"]
    (students[0] / CALIBRATION).write_text(json.dumps(content))
    assert evaluated(comparing(), students[0], tmp_path / "r", never) == found


Change = Callable[[list[Path], str], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda paths, _: shutil.rmtree(paths[1]), "fold-1, from which .*average was exported .* there is no model"),
        (
            lambda paths, _: (paths[1] / "adapter_model.safetensors").write_bytes(b"since"),
            "fold-1 has changed since .*average was exported from it; export it again",
        ),
        (lambda paths, store: student_of(store, paths[1], None), "expected a --checkpoint of train-student --held-out"),
        (
            lambda paths, store: student_of(store, paths[1], 1, store_fingerprint="f" * 40),
            "--store: expected the store ffffffffffff, from which .*fold-1 was trained",
        ),
        (
            lambda paths, _: SeenPrompts.of(prompt_keys(label_stores.TRAIN)).write(paths[1]),
            "--calibrate: .*fold-1, but it was trained on the prompts of 14 of the 14 rows of fold 1",
        ),
        (lambda paths, _: (paths[1] / "seen_prompts.npz").unlink(), "fold-1 has no seen_prompts.npz"),
        (
            lambda paths, _: (paths[0].parent / "average" / "export.json").write_text("[]"),
            "export.json: cannot be read .*; export it again",
        ),
        (
            lambda paths, _: (paths[0].parent / "average" / "export.json").unlink(),
            "expected a --checkpoint of train-student --held-out-fold, or an export of one, got .*average; leave out",
        ),
    ],
)
def test_averages_whose_students_cannot_score_are_refused(
    comparing: Make, store: str, students: list[Path], tmp_path: Path, change: Change, said: str
) -> None:
    average = exported(tmp_path / "average", students)
    change(students, store)
    with pytest.raises(ConfigError, match=said) as raised:
        evaluated(comparing(), average, tmp_path / "r", never, condition="merged", calibrate=True, store=store)
    assert "\n" not in str(raised.value)
    assert not (average / CALIBRATION).exists()
    assert not (tmp_path / "r").exists()


def test_a_fold_of_one_prompt_has_no_two_halves(comparing: Make, tmp_path: Path) -> None:
    one = [dataclasses.replace(pair, prompt=(f"{row // label_stores.ROWS}",) * len(pair.prompt))
           for row, pair in enumerate(label_stores.TRAIN)]  # fmt: skip
    store = built(tmp_path / "store", one)
    student = student_of(store, tmp_path / "fold-0", 0)
    with pytest.raises(ConfigError, match="expected prompts for both halves of the rows of held_out, got 14 rows in"):
        evaluated(comparing(), student, tmp_path / "r", never, calibrate=True, store=store)
