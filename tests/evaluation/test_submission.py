"""`query-results submission`: against numpy, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.configs import load_config
from logitbank.evaluation.checkpoints import open_checkpoint
from logitbank.evaluation.classify import Classification, classify_all
from logitbank.evaluation.query_command import main as query_results
from logitbank.preference import PackedPair, SeenPrompts, prompt_keys
from logitbank.storage import LabelStore
from logitbank.storage.results import Catalogue, read_rows
from tests.evaluation import comparisons
from tests.evaluation.class_rows import add_class_run, labels, softmax
from tests.evaluation.comparisons import Formula
from tests.evaluation.test_query import table_of
from tests.storage import label_stores

FOLDS = 3


def submit(results: Path, *options: str, output: Path | None = None) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    """Ids, probabilities, and what stands beside them."""
    output = output or results / "sub.csv"
    query_results(["--results", str(results), "submission", *options, "--output", str(output)])
    with output.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    beside = json.loads(output.with_name(f"{output.name}.json").read_text())
    return [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=np.float64), beside


def refusal(capsys: pytest.CaptureFixture[str], results: Path, *options: str) -> str:
    """The one line of an error that leaves no file."""
    output = results.parent / "refused" / "sub.csv"
    before = sorted(results.rglob("*.parquet"))
    with pytest.raises(SystemExit) as ended:
        query_results(["--results", str(results), "submission", *options, "--output", str(output)])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert sorted(results.rglob("*.parquet")) == before
    assert not output.parent.exists()
    return line


def students(results: Path, *, labelled: bool = True, held_out: int = FOLDS, **about: Any) -> list[np.ndarray]:
    """Predictions of one student for each fold on 40 test rows, and on the fold that it left out."""
    rng = np.random.default_rng(3)
    ids = [f"row/{number}, x" for number in rng.permutation(40)]
    targets = labels(rng, 40)
    found = []
    for fold in range(FOLDS):
        # softmax in float32, as models leave it
        found.append(softmax(rng.normal(size=(40, 3)) + targets).astype(np.float32).astype(np.float64))
        add_class_run(results, found[-1], targets if labelled else None, ids=ids, fold=fold, **about)
        if fold < held_out:
            own = labels(rng, 20 + fold)
            add_class_run(results, softmax((1 + fold) * own + rng.normal(size=own.shape)), own, split="held_out",
                          ids=[f"{fold}-{i}" for i in range(len(own))], fold=fold, **about)  # fmt: skip
    return found


def log_losses(results: Path) -> list[float]:
    """Of the held-out evaluations, by fold."""
    rows = Catalogue([results]).rows(
        "SELECT value FROM metrics JOIN runs USING (run) WHERE metric = 'log_loss' AND split = 'held_out' "
        "ORDER BY held_out_fold"
    )
    return [row["value"] for row in rows]


@pytest.mark.numeric
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("ensemble", ["equal", "cv"])
def test_an_ensemble_is_the_weighted_mean_in_input_order(tmp_path: Path, ensemble: str, labelled: bool) -> None:
    found = np.stack(students(tmp_path, labelled=labelled))
    found /= found.sum(axis=2, keepdims=True)
    weights = np.ones(FOLDS) if ensemble == "equal" else 1 / np.array(log_losses(tmp_path))
    weights /= weights.sum()
    ids, got, beside = submit(tmp_path, "--ensemble", ensemble)
    assert ids == [f"row/{number}, x" for number in np.random.default_rng(3).permutation(40)]
    assert got == pytest.approx(np.einsum("r,rnc->nc", weights, found), abs=1e-9)
    assert np.abs(got.sum(axis=1) - 1).max() <= 1e-9
    assert [run["weight"] for run in beside["runs"]] == pytest.approx(weights.tolist(), abs=1e-12)
    assert [run["held_out_fold"] for run in beside["runs"]] == [0, 1, 2]
    if ensemble == "cv":
        assert len(set(np.round(weights, 3))) == FOLDS, "the students differ"
        assert [run["held_out_log_loss"] for run in beside["runs"]] == log_losses(tmp_path)
    assert bool(beside["metrics"]) == labelled


def test_a_single_run_is_itself_and_says_how_good_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = students(tmp_path)
    _, got, beside = submit(tmp_path, "--run", "distilled-m-1-1-100-test-s-1")
    assert got == pytest.approx(found[1], abs=1e-6)
    (row,) = Catalogue([tmp_path]).rows(
        "SELECT value FROM metrics WHERE run = 'distilled-m-1-1-100-test-s-1' AND metric = 'log_loss'"
    )
    assert beside["metrics"]["log_loss"] == pytest.approx(row["value"], abs=1e-6)
    assert f"log_loss {row['value']:.4f}" in capsys.readouterr().out


def test_rows_of_another_order_are_matched_by_id(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, two = softmax(rng.normal(size=(9, 3))), softmax(rng.normal(size=(9, 3)))
    order = rng.permutation(9)
    add_class_run(tmp_path, one, None, fold=0)
    add_class_run(tmp_path, two[order], None, ids=[str(i) for i in order], fold=1)
    ids, got, _ = submit(tmp_path)
    assert ids == [str(i) for i in range(9)]
    assert got == pytest.approx((one + two) / 2, abs=1e-12)


def test_the_best_checkpoint_counts_else_the_last_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    draws = [softmax(rng.normal(size=(5, 3))) for _ in range(4)]
    add_class_run(tmp_path, draws[0], None, fold=0, step=40, checkpoint="out/0/best")
    add_class_run(tmp_path, draws[1], None, fold=0, step=100)
    add_class_run(tmp_path, draws[2], None, fold=1, step=50)
    add_class_run(tmp_path, draws[3], None, fold=1, step=90)
    _, got, beside = submit(tmp_path)
    assert got == pytest.approx((draws[0] + draws[3]) / 2, abs=1e-12)
    assert [run["step"] for run in beside["runs"]] == [40, 90]


def test_which_runs_is_never_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected predictions of class probabilities on the test split, got none" in refusal(capsys, tmp_path)
    students(tmp_path)
    students(tmp_path, condition="finetuned")
    line = refusal(capsys, tmp_path)
    assert "expected runs of one condition and setup, got 2" in line
    assert "m distilled (setup s-test): 3 runs" in line
    assert "m finetuned (setup s-test): 3 runs" in line
    assert len(submit(tmp_path, "--condition", "finetuned")[2]["runs"]) == 3
    assert len(submit(tmp_path, "--condition", "finetuned", "--condition", "distilled")[2]["runs"]) == 6
    assert "--condition: expected one of distilled, finetuned, got base" in refusal(
        capsys, tmp_path, "--condition", "base"
    )
    assert "--run: expected one of" in refusal(capsys, tmp_path, "--run", "other")
    name = "distilled-m-1-1-100-test-s-1"
    assert "expected each run once" in refusal(capsys, tmp_path, "--run", name, "--run", name)
    assert "not allowed with" in refusal(capsys, tmp_path, "--run", name, "--condition", "distilled")


def test_two_evaluations_of_one_student_are_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = softmax(np.random.default_rng(0).normal(size=(5, 3)))
    add_class_run(tmp_path, one, None, fold=0, run="a")
    add_class_run(tmp_path, one, None, fold=0, run="a.2", day=2)
    line = refusal(capsys, tmp_path)
    assert "expected one evaluation of each student, got a and a.2 of the same one" in line
    assert len(submit(tmp_path, "--run", "a.2")[0]) == 5


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"ids": ["0", "1", "2", "3"], "rows": 4}, "distilled-m-1-0-100-test-s-1 has 1 ids that b lacks, such as '4'"),
        ({"ids": ["0", "1", "2", "3", "x"]}, "1 ids that b lacks, such as '4'"),
        ({"ids": ["0", "1", "2", "3", "3"]}, "predictions of b: expected each id once, got '3' 2 times"),
        ({"question": "Another question, {}?"}, "'0' has other texts or another label in b than in"),
    ],
)
def test_runs_over_other_comparisons_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], said: str
) -> None:
    one = softmax(np.random.default_rng(0).normal(size=(5, 3)))
    add_class_run(tmp_path, one, None, fold=0)
    add_class_run(tmp_path, one[: other.pop("rows", 5)], None, fold=1, run="b", **other)
    assert said in refusal(capsys, tmp_path)


def test_what_is_no_probability_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = np.array([[0.2, 0.3, 0.5], [0.5, 0.6, 0.1], [np.nan, 0.5, 0.5]])
    add_class_run(tmp_path, wrong, None)
    assert "expected probabilities that sum to 1 for '1', got 0.5, 0.6, 0.1" in refusal(capsys, tmp_path)


def test_cross_validated_weights_need_the_held_out_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students(tmp_path, held_out=2)
    line = refusal(capsys, tmp_path, "--ensemble", "cv")
    assert "expected the log loss of distilled-m-1-2-100-test-s-1 on fold 2, which it left out, got none" in line
    assert (
        "evaluate-model --config FILE --store URL --condition distilled --checkpoint out/distilled/fold-2/final" in line
    )
    assert line.endswith("evaluation.split=held_out\n")


def test_a_student_of_all_rows_has_no_fold_to_weigh_it_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_class_run(tmp_path, softmax(np.random.default_rng(0).normal(size=(5, 3))), None)
    assert "expected runs of students that left out a fold" in refusal(capsys, tmp_path, "--ensemble", "cv")


def test_the_held_out_evaluation_is_of_the_same_weights_and_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students(tmp_path, held_out=0)
    rng = np.random.default_rng(1)
    own = labels(rng, 12)
    swapped = {"config": json.dumps({"evaluation": {"tta_tokens": [], "swap_average": True, "load_in_8bit": False}})}
    for fold in range(FOLDS):
        add_class_run(tmp_path, softmax(own), own, split="held_out", fold=fold, run=f"swapped-{fold}", about=swapped)
        add_class_run(tmp_path, softmax(own), own, split="held_out", fold=fold, run=f"early-{fold}", step=50)
    assert "on fold 0, which it left out, got none" in refusal(capsys, tmp_path, "--ensemble", "cv")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_class_run(tmp_path / "results", softmax(np.random.default_rng(0).normal(size=(5, 3))), None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub.csv").mkdir()
    with pytest.raises(SystemExit) as ended:
        submit(tmp_path / "results", output=tmp_path / "out" / "sub.csv")
    assert ended.value.code == 2
    assert "--output: cannot write" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sub.csv"]


def test_a_sample_of_the_test_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"config": json.dumps({"evaluation": {"max_samples": 5}})}
    add_class_run(tmp_path, softmax(np.random.default_rng(0).normal(size=(5, 3))), None, about=about)
    submit(tmp_path)
    assert "warning: 5 rows, as many as evaluation.max_samples allows" in capsys.readouterr().out


def test_a_recorded_ensemble_is_a_condition_of_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    students(tmp_path)
    students(tmp_path, condition="finetuned")
    options = ("--condition", "distilled", "--ensemble", "cv", "--record", "ensemble")
    for _ in range(2):  # the second time changes nothing
        _, got, beside = submit(tmp_path, *options)
    assert len(list((tmp_path / "runs").glob("ensemble-*"))) == 1
    capsys.readouterr()
    query_results(["--results", str(tmp_path), "tables"])
    row = table_of(capsys.readouterr().out, "Class probabilities: preference (test)")["ensemble"]
    assert row["log loss (nats)"].split()[0] == f"{beside['metrics']['log_loss']:.4f}"
    assert row["ECE (%)"].split()[0] == f"{100 * beside['metrics']['ece']:.1f}"
    assert "±" in row["log loss −finetuned"]
    again = submit(tmp_path, "--condition", "ensemble")[1]
    assert again == pytest.approx(got, abs=1e-12)
    assert "--record: expected a name" in refusal(capsys, tmp_path, *options[:4], "--record", "distilled")


def test_an_ensemble_without_labels_is_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_class_run(tmp_path, softmax(np.random.default_rng(0).normal(size=(5, 3))), None)
    assert "--record: expected test comparisons with labels" in refusal(capsys, tmp_path, "--record", "ensemble")


class Scaled(Formula):
    """A student that is more or less sure of what the formula says."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def score(self, packed: Sequence[PackedPair], progress: Callable[[int], object]) -> Any:
        return self.factor * super().score(packed, progress)


def test_from_evaluations_to_a_file(tiny_model: Path, tmp_path: Path) -> None:
    """Two students of different folds, evaluated on test comparisons without labels and each on its own fold."""
    test = [{k: v for k, v in row.items() if k != "winner"} for row in comparisons.rows(10, seed=1)]
    files = comparisons.write_csv(tmp_path / "test.csv", test)
    common = [f"model.name={tiny_model}", "tasks=[preference]", f"preference.test={files}"]
    url, results = str(tmp_path / "store"), tmp_path / "results"
    label_stores.build(url)
    fingerprint = LabelStore.open(url).info.fingerprint
    for fold in (0, 1):
        learned = [pair for pair, of in zip(label_stores.TRAIN, label_stores.FOLD, strict=True) if of != fold]
        directory = comparisons.classifier_checkpoint(
            tmp_path / f"fold-{fold}" / "final", run=f"student-{fold}", held_out_fold=fold, view="llama",
            store_fingerprint=fingerprint, seen=SeenPrompts.of(prompt_keys(learned)), weights=f"{fold}".encode(),
        )  # fmt: skip
        student, scorer = open_checkpoint(directory), Scaled(0.2 + fold)
        for split, store in (("test", None), ("held_out", url)):
            config = load_config([], [*common, f"evaluation.split={split}"])
            classify_all([Classification(config, "distilled", student, results, store=store)], opener=scorer)
    ids, got, beside = submit(results, "--ensemble", "cv")
    assert ids == [row["id"] for row in test]
    assert [run["held_out_fold"] for run in beside["runs"]] == [0, 1]
    losses = log_losses(results)
    assert losses[0] != losses[1]
    weights = (1 / np.array(losses)) / (1 / np.array(losses)).sum()
    assert [run["weight"] for run in beside["runs"]] == pytest.approx(weights.tolist())
    rows = [read_rows(results, "predictions", f"{run['run']}@preference.und") or [] for run in beside["runs"]]
    own = np.array([[comparisons.numbers(row, "p") for row in each] for each in rows])
    assert got == pytest.approx(np.einsum("r,rnc->nc", weights, own), abs=1e-9)
