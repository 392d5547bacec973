"""A study of preferences: its commands as typed, on a cluster, and run from files to a submission."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from logitbank.__main__ import GROUP, main
from logitbank.scripts.demo import run_preferences
from logitbank.scripts.preference_plan import Plan
from logitbank.scripts.preference_world import PreferenceWorld, comparisons
from logitbank.storage import LabelStore
from logitbank.storage.results import Catalogue

STUDY = ["study", "preference", "--output", "runs/p"]
ROWS = ["tasks=[preference]", "model.name=student", "preference.train=t.csv", "preference.external=[e.csv]"]
SMALL = PreferenceWorld(train=60, validation=60, test=20, external=40)
QUICK = ["preference.folds=2", "training.max_steps=2", "training.warmup_steps=0"]


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """The commands that a dry run prints."""
    main([*STUDY, *arguments, *ROWS, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_dry_run_prints_commands_that_their_parsers_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All but `evaluate-model` of a `--teacher` file; each command is one that the console scripts know."""
    file = tmp_path / "big.yaml"
    file.write_text("model: {name: org/big}\nlora: {load_in_4bit: true}\n")
    asked = ("--teacher", "small=org/small", "--teacher", f"big={file}", "--post-pretrain", "--quantize", "gptq")
    commands = dry_run(capsys, *asked, "training.eval_steps=10")
    for name, *arguments in commands:
        GROUP.make_tree().parse_args([name, *_without_overrides(arguments)])
    by_name = {name: [command for command in commands if command[0] == name] for name in {c[0] for c in commands}}
    counts = {name: len(found) for name, found in by_name.items()}
    assert counts == {
        "build-teacher-cache": 1 + 2 * 5,
        "train-student": 2 + 2 * 5 + 2 * 5,
        "export-model": 2 + 1 + 1,
        "inspect-cache": 1,
        "evaluate-model": 5 + 5 + 5 + 2,
        "query-results": 3,
    }
    scored = {
        (option(c, "--view"), option(c, "--fold"), option(c, "--checkpoint"))
        for c in by_name["build-teacher-cache"][1:]
    }
    assert scored == {
        (name, str(fold), f"runs/p/teachers/{name}/fold-{fold}/best") for name in ("small", "big") for fold in range(5)
    }
    averaged = next(command for command in by_name["export-model"] if "--average" in command)
    assert averaged[2:7] == [f"runs/p/distilled/fold-{fold}/best" for fold in range(5)]
    distilled = [c for c in by_name["train-student"] if option(c, "--output").startswith("runs/p/distilled")]
    assert all(c.count("--view") == 2 and "model.name=student" in c for c in distilled)


@pytest.mark.parametrize(("asked", "stores"), [([], 0), (["--calibrate-on", "folds"], 5 + 5 + 1)])
def test_temperatures_are_of_validation_or_of_folds(
    capsys: pytest.CaptureFixture[str], asked: list[str], stores: int
) -> None:
    commands = [c for c in dry_run(capsys, "--teacher", "a=m", *asked) if "--calibrate" in c]
    assert len(commands) == 5 + 5 + 1
    assert [option(c, "--store") for c in commands if "--store" in c] == ["runs/p/store"] * stores


def test_a_teacher_s_own_file_and_model_win_over_the_study_s(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "big.yaml"
    file.write_text("model: {name: org/big}\ntraining: {max_steps: 7}\n")
    commands = dry_run(capsys, "--teacher", f"big={file}", "--teacher", "small=org/small", "training.max_steps=3")
    big = next(c for c in commands if "runs/p/teachers/big/fold-0" in c)
    small = next(c for c in commands if "runs/p/teachers/small/fold-0" in c)
    assert not [word for word in big if word.startswith(("model.name=", "training.max_steps="))]
    assert option(big, "--config") == str(file)
    assert [word for word in small if word.startswith(("model.name=", "training.max_steps="))] == [
        "training.max_steps=3",
        "model.name=org/small",
    ]
    post = dry_run(capsys, "--teacher", f"big={file}", "--post-pretrain")
    assert "model.name=runs/p/teachers/big/model" in next(c for c in post if "runs/p/teachers/big/fold-0" in c)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--teacher: expected NAME=MODEL, got none"),
        (["--teacher", "org/model"], "--teacher: expected NAME=MODEL, where NAME is lower-case letters"),
        (["--teacher", "none=m"], "--teacher: expected NAME=MODEL, where NAME is lower-case letters"),
        (["--teacher", "a=m", "--teacher", "a=n"], "--teacher: expected each name once, got a twice"),
        (["--teacher", "a=m", "tasks=[nli]"], "tasks: expected [preference], got [nli]"),
        (["--teacher", "a=m", "--post-pretrain", "preference.external=[]"], "preference.external: expected a file"),
        (["--teacher", "a=nowhere.yaml"], "--config: no file nowhere.yaml"),
    ],
)
def test_a_wrong_study_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "preference", "--output", str(tmp_path / "p"), *ROWS, *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_a_cluster_gets_arrays_over_folds_that_wait_for_one_another(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--teacher", "a=m", "--teacher", "b=n", "--slurm", "--teacher-jobs", "3", "--partition", "gpu")
    jobs = [command[1:] for command in dry_run(capsys, *asked)]
    arrays = [next((word for word in job if word.startswith("--array=")), None) for job in jobs]
    assert arrays == [None, "--array=0-9", "--array=0-2", None, "--array=0-9", None, "--array=0-10", None]
    after = [next((word for word in job if word.startswith("--dependency=")), None) for job in jobs]
    assert after == [None, *(f"--dependency=afterok:job{number}" for number in range(1, 8))]
    lines = {len(set(lines_of(jobs[2])))}
    assert lines == {1}, "each worker does its share of every fold"
    assert lines_of(jobs[2])[0].count(" && ") == 2 * 5 - 1


def lines_of(job: list[str]) -> list[str]:
    """The lines of commands that a job's tasks choose from."""
    return job[next(index for index, word in enumerate(job) if word.endswith(".sbatch")) + 1 :]


def test_a_small_world_is_as_it_says() -> None:
    """A linear reading of the words predicts right labels; three tenths of the training labels are wrong."""
    world = PreferenceWorld()
    noisy, clean = comparisons(world, "train"), comparisons(PreferenceWorld(label_noise=0.0), "train")
    wrong = sum(one["winner"] != other["winner"] for one, other in zip(noisy, clean, strict=True)) / len(noisy)
    assert abs(wrong - 0.3) < 0.08  # three standard deviations of 300 draws
    assert {row["prompt"] for row in noisy}.isdisjoint(row["prompt"] for row in comparisons(world, "test"))
    assert comparisons(world, "test") == comparisons(world, "test")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The study of a tiny world, finished."""
    return run_preferences(tmp_path_factory.mktemp("study"), QUICK, world=SMALL)


@pytest.fixture(scope="module")
def studied(plan: Plan) -> Path:
    """Where it lies."""
    return plan.output


def test_a_study_ends_in_a_submission_and_tables(studied: Path) -> None:
    with (studied / "submission.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"test-{number}" for number in range(SMALL.test)]
    assert all(
        abs(sum(float(row[f"winner_{name}"]) for name in ("model_a", "model_b", "tie")) - 1) < 1e-9 for row in rows
    )
    about = json.loads((studied / "submission.csv.json").read_text())
    assert sorted(run["held_out_fold"] for run in about["runs"]) == [0, 1]
    conditions = Catalogue([studied / "results"]).rows("SELECT DISTINCT condition FROM predictions ORDER BY 1")
    assert [row["condition"] for row in conditions] == ["distilled", "finetuned", "merged"]
    assert (studied / "report.html").exists()


def test_teachers_read_the_external_comparisons_and_students_do_not(studied: Path) -> None:
    from logitbank.preference import SeenPrompts

    store = LabelStore.open(str(studied / "store"))
    external = set(store.external.prompt_key.tolist())
    teacher = SeenPrompts.read(studied / "teachers/informed/fold-0/best")
    student = SeenPrompts.read(studied / "finetuned/fold-0/best")
    assert teacher is not None
    assert student is not None
    assert external <= set(teacher.trained.tolist())
    assert external.isdisjoint(student.trained.tolist())


def test_a_study_that_is_done_does_nothing_again(studied: Path) -> None:
    def stamps() -> dict[Path, int]:
        kept = [path for path in studied.rglob("*") if path.is_file() and ".lock" not in path.parts]
        again = re.compile(r"report|submission|_cache|duckdb|plots")
        return {path: path.stat().st_mtime_ns for path in kept if not again.search(str(path.relative_to(studied)))}

    before = stamps()
    run_preferences(studied, QUICK, world=SMALL)
    assert stamps() == before


def test_folds_calibrate_what_the_study_exported(plan: Plan, tmp_path: Path) -> None:
    """The record of a real export leads to the students that score the folds they left out."""
    merged = shutil.copytree(plan.merged, tmp_path / "merged")
    moved = {plan.merged: str(merged), plan.results: str(tmp_path / "results")}
    on_folds = dataclasses.replace(plan, calibrate_on="folds")
    found = [command for stage in on_folds.stages() for [command, *_] in stage.tasks if "merged" in command]
    (command,) = ([moved.get(word, word) for word in each] for each in found)
    main(command)
    calibration = json.loads((merged / "calibration.json").read_text())
    assert calibration["fitted_on"]["split"] == "held_out"
    assert calibration["fitted_on"]["folds"] == [0, 1]
    assert calibration["calibration"]["rows"] + calibration["holdout"]["rows"] == len(LabelStore.open(plan.store).train)


def _without_overrides(arguments: list[str]) -> list[str]:
    """`key=value` may stand behind the values of any option, which argparse's own groups of commands cannot read."""
    return [word for word in arguments if not re.match(r"[a-z_.0-9]+=", word)]
