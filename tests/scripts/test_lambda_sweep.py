"""The λ sweep: which students, trained and evaluated once, in the tables of everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitbank.__main__ import main
from logitbank.configs import load_config, shipped_configs
from logitbank.errors import StoreError
from logitbank.scripts.lambda_sweep import Sweep, run_sweep, students
from logitbank.scripts.stages import Stages
from logitbank.storage import TeacherStore
from logitbank.storage.results.catalogue import Catalogue


@pytest.fixture(scope="module")
def small(settings: list[str]) -> list[str]:
    """Students of two steps."""
    return [*settings, "data.max_train_per_task=6", "training.max_steps=2", "evaluation.max_samples=4"]


def test_every_combination_is_one_student_and_lambda_zero_one_per_seed() -> None:
    sweep = Sweep(Path("o"), [], views=["fewshot", "zeroshot", "shuffled_answers"], lambdas=[0, 0.1], seeds=[1, 2])
    found = students(sweep)
    assert [student.name for student in found] == [
        "finetuned-seed1",
        "finetuned-seed2",
        "distilled-fixed-lambda0.1-seed1",
        "distilled-fixed-lambda0.1-seed2",
        "control-fixed-lambda0.1-seed1",
        "control-fixed-lambda0.1-seed2",
        "shuffled_answers-fixed-lambda0.1-seed1",
        "shuffled_answers-fixed-lambda0.1-seed2",
    ]
    assert [student.view for student in found[::2]] == [None, "fewshot", "zeroshot", "shuffled_answers"]


def test_a_strategy_with_lambdas_of_its_own_is_one_student_a_seed() -> None:
    sweep = Sweep(Path("o"), [], lambdas=[0.1, 0.2], strategies=["per_task*entropy", "entropy"])
    found = {student.name: student.overrides for student in students(sweep)}
    assert found == {
        "distilled-per_task+entropy-seed42": ["distillation.strategy=per_task*entropy"],
        "distilled-entropy-lambda0.1-seed42": ["distillation.lambda_distill=0.1", "distillation.strategy=entropy"],
        "distilled-entropy-lambda0.2-seed42": ["distillation.lambda_distill=0.2", "distillation.strategy=entropy"],
    }


def test_a_sweep_is_in_the_tables_of_everything_else_and_is_done_once(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    arguments = ["study", "lambda-sweep", "--output", str(output), "--config", "demo"]
    arguments += ["--lambda", "0", "0.1", "--strategy", "fixed", "entropy", "--seed", "0", "1", *small]
    main(arguments)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.strip().splitlines()[-5:]] == [
        "where",
        "took",
        "averages",
        "resolved",
        "report",
    ]
    assert "finetuned " in printed
    assert "(2 variants)" in printed
    assert TeacherStore.open(str(output / "store")).views == ("fewshot",)
    names = {path.parent.parent.name for path in output.glob("*/final/model.safetensors")}
    grid = {f"distilled-{strategy}-lambda0.1-seed{seed}" for strategy in ("fixed", "entropy") for seed in (0, 1)}
    assert names == grid | {"finetuned-seed0", "finetuned-seed1"}
    catalogue = Catalogue([output / "results"])
    averages = catalogue.rows("SELECT condition, strategy, lambda_distill, seeds FROM averages ORDER BY ALL")
    assert [tuple(row.values()) for row in averages] == [
        ("distilled", "entropy", 0.1, 2),
        ("distilled", "fixed", 0.1, 2),
        ("finetuned", None, None, 2),
    ]
    sweep = catalogue.rows("SELECT task, lambda_distill, difference_to_finetuned FROM lambda_sweep ORDER BY ALL")
    assert [(row["task"], row["lambda_distill"]) for row in sweep] == [("nli", 0.1), ("pos", 0.1)]
    assert all(row["difference_to_finetuned"] is not None for row in sweep)
    gaps = catalogue.rows("SELECT DISTINCT strategy, minuend, subtrahend FROM task_gaps ORDER BY ALL")
    assert [tuple(row.values()) for row in gaps] == [
        ("entropy", "distilled", "finetuned"),
        ("fixed", "distilled", "finetuned"),
    ]
    stamps = {path: path.stat().st_mtime_ns for kind in ("*.safetensors", "*.parquet") for path in output.rglob(kind)}
    grid_of = {"lambdas": [0, 0.1], "strategies": ["fixed", "entropy"], "seeds": [0, 1]}
    run_sweep(Sweep(output, ["demo"], small, **grid_of))  # type: ignore[arg-type]
    after = {path: path.stat().st_mtime_ns for kind in ("*.safetensors", "*.parquet") for path in output.rglob(kind)}
    assert after == stamps


def test_an_interrupted_sweep_goes_on_with_the_student_it_was_stopped_in(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(tmp_path, ["demo"], [*small, "tasks=[nli]", "languages=[en]"], lambdas=[0, 0.1], seeds=[1])
    finished: list[str] = []
    evaluate = Stages.evaluate

    def stopped(self: Stages, condition: str, student: Path | None = None, steps: tuple[int, ...] = ()) -> None:
        if finished:
            raise KeyboardInterrupt
        evaluate(self, condition, student, steps)
        finished.append(condition)

    monkeypatch.setattr(Stages, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(stamps) == 2  # the second student is trained, and not evaluated
    monkeypatch.undo()
    results = run_sweep(sweep)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == stamps
    assert [row["condition"] for row in Catalogue([results]).rows("SELECT condition FROM averages ORDER BY ALL")] == [
        "distilled",
        "finetuned",
    ]


def test_a_store_that_is_given_has_to_have_the_views(small: list[str], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    Stages("m", ["demo"], [*small, "tasks=[nli]"], store, tmp_path / "results").build(["zeroshot"])
    sweep = Sweep(tmp_path / "out", ["demo"], small, store=store, views=["zeroshot", "fewshot"])
    with pytest.raises(StoreError, match="fewshot"):
        run_sweep(sweep)
    assert not (tmp_path / "out").exists()


def test_the_studys_experiments_are_shipped_as_configurations() -> None:
    assert {"sweep-ner", "sweep-pos", "warmup-then-sft"} <= set(shipped_configs())
    assert load_config(["llama-3.2-3b", "sweep-pos"]).tasks == ["pos"]
    warmup = load_config(["llama-3.2-3b", "warmup-then-sft"]).distillation
    assert (warmup.schedule, warmup.schedule_steps, warmup.lambda_distill) == ("warmup_then_sft", 100, 0.05)
