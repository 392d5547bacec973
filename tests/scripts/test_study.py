"""Whole studies, from an empty directory to five lines, on a tiny model in this process."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from logitbank.__main__ import main
from logitbank.command import Terminated
from logitbank.errors import LogitbankError
from logitbank.experiment import CONDITIONS, STUDENTS, STUDY_CONDITIONS
from logitbank.processes import run_process
from logitbank.scripts import demo
from logitbank.scripts.demo_world import Pretraining, World
from logitbank.scripts.ending import duration
from logitbank.scripts.stages import Stages
from logitbank.storage import TeacherStore
from logitbank.storage.results.catalogue import Catalogue
from tests import processes

SMALL = ["--train", "6", "--steps", "2", "--samples", "3"]
ENDING = ["where", "took", "averages", "resolved", "report"]


def cells(results: Path) -> set[tuple[str, str, str]]:
    rows = Catalogue([results]).rows("SELECT condition, task, language FROM cells WHERE is_primary")
    return {(row["condition"], row["task"], row["language"]) for row in rows}


def stamps(folder: Path) -> dict[Path, int]:
    """When each object, checkpoint and row file was written."""
    kinds = ("*.safetensors", "*.parquet", "manifest/**/*.json")
    return {path: path.stat().st_mtime_ns for kind in kinds for path in folder.rglob(kind) if path.is_file()}


def last_lines(printed: str) -> list[str]:
    return [line.split()[0] for line in printed.strip().splitlines()[-5:]]


@pytest.fixture(scope="module")
def study(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a study that has been run."""
    output = tmp_path_factory.mktemp("xtreme") / "study"
    arguments = ["study", "xtreme", "--output", str(output), "--config", "demo", *SMALL, *settings]
    main([*arguments, "training.use_lora=true"])
    return [*arguments, "training.use_lora=true"]


def test_xtreme_fills_five_conditions_and_ends_in_five_lines(
    study: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(study[3])
    before = stamps(output)
    main(study)  # nothing is left to do
    assert stamps(output) == before
    printed = capsys.readouterr().out
    assert last_lines(printed) == ENDING
    assert all(f"{condition} " in printed.splitlines()[-3] for condition in STUDY_CONDITIONS)
    assert (output / "report.md").exists()
    assert str(output / "report.html") in printed.splitlines()[-1]
    places = [(task, language) for task in ("nli", "pos") for language in ("en", "es")]
    assert cells(output / "results") == {(condition, *place) for condition in STUDY_CONDITIONS for place in places}
    for condition in STUDENTS:
        assert (output / "demo" / condition / "final/adapter_config.json").exists()
    store = TeacherStore.open(str(output / "demo/store"))
    assert sorted(store.views) == ["fewshot", "zeroshot"]
    assert len(store.examples) == 12


def test_a_study_that_is_interrupted_goes_on_with_what_is_missing(
    study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    class Stopped(Stages):
        def train(self, view: str | None, output: Path, overrides: object = ()) -> None:
            if len(done) == 1:
                raise KeyboardInterrupt
            super().train(view, output)
            done.append(output.name)

    again = [*study[:3], str(tmp_path / "study"), *study[4:], "tasks=[nli]", "languages=[en]"]
    monkeypatch.setattr("logitbank.scripts.xtreme.Stages", Stopped)
    with pytest.raises(SystemExit) as ended:
        main(again)
    monkeypatch.undo()
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith("Interrupted; run the same command to resume\n")
    before = stamps(tmp_path)
    assert any(done[0] in str(path) for path in before)
    main(again)
    assert {path: stamp for path, stamp in stamps(tmp_path).items() if path in before} == before
    assert {condition for condition, _, _ in cells(tmp_path / "study/results")} == set(STUDY_CONDITIONS)


def test_gsm8k_evaluates_every_student_at_its_checkpoints(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    own = [setting for setting in settings if not setting.startswith(("tasks=", "languages="))]
    size = ["--train", "6", "--steps", "3", "--samples", "2"]
    shown = ["fewshot.num_demonstrations={gsm8k: 2}", "evaluation.max_new_tokens={gsm8k: 4}", "training.save_steps=2"]
    main(["study", "gsm8k", "--output", str(output), "--config", "demo", *size, *own, *shown])
    assert last_lines(capsys.readouterr().out) == ENDING
    rows = Catalogue([output / "results"]).rows("SELECT DISTINCT condition, step FROM scores ORDER BY ALL")
    steps: dict[str, list[int | None]] = {name: [] for name in CONDITIONS}
    for row in rows:
        steps[row["condition"]].append(row["step"])
    assert steps == {name: [2, 3] if condition.trained else [None] for name, condition in CONDITIONS.items()}
    assert sorted(TeacherStore.open(str(output / "store")).views) == ["fewshot", "shuffled_answers", "zeroshot"]


def test_the_demo_ends_in_its_table(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["tasks=[nli,pos]", "data.max_validation_per_task=2", "training.max_steps=2", "evaluation.max_samples=3"]
    plan = Pretraining(layers=1, width=32, steps=1, batch=1)
    demo.run(tmp_path, small, world=World(train_rows=24, eval_rows=12), plan=plan)
    printed = capsys.readouterr().out
    table = printed[printed.index("Overview") :]
    for name in ("nli (accuracy)", "pos (accuracy)", "task_mean", "distilled", "control"):
        assert name in table
    starts = [line.split()[0] for line in table.splitlines() if line]
    assert starts[-8:-3] == ENDING  # and three commands to try next
    assert len(table.splitlines()) < 60


def test_stages_of_several_processes_are_one_launch_each(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is launched is read by the launcher's own parser, and run by as many processes; the teacher's, dry."""
    small = ["training.max_steps=2", "data.max_train_per_task=6"]
    stages = Stages("m", ["demo"], [*settings, *small], str(tmp_path / "store"), tmp_path / "results")
    stages.build(["fewshot"])
    launched = dataclasses.replace(stages, processes=2)
    started: list[list[str]] = []
    monkeypatch.setattr("logitbank.scripts.stages.run_process", started.append)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none"))
    launched.train("fewshot", tmp_path / "student", ["training.micro_batch_size=2"])
    launched.build(["fewshot", "zeroshot"])
    train, build = map(ranks_and_arguments, started)
    assert (train[0], build[0]) == (2, 2)
    done = processes.run_ranks(*train)
    assert [run.returncode for run in done] == [0, 0], done[0].stderr
    rows = Catalogue([tmp_path / "results"]).rows("SELECT condition FROM runs")
    assert [row["condition"] for row in rows] == ["distilled"]
    assert build[1:3] == ("build-teacher-cache", "--store")
    monkeypatch.chdir(tmp_path)
    main([*build[1:], "--dry-run"])


def ranks_and_arguments(command: Sequence[str]) -> tuple[Any, ...]:
    """How many processes a launcher is asked to start, and the command of ours that each is."""
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    parsed = launch_command_parser().parse_args(command[3:])
    assert parsed.module
    assert parsed.training_script == "logitbank"
    assert parsed.multi_gpu  # else the launcher starts a single process where there is no GPU
    return parsed.num_processes, *parsed.training_script_args


def test_a_stage_that_fails_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(LogitbankError, match="a stage failed with exit code 3"):
        run_process(["sh", "-c", "exit 3"])


def test_a_study_that_is_terminated_waits_for_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"cd {tmp_path}; trap 'touch saved; exit 0' TERM; touch ready; while true; do sleep 0.01; done"
    wait = subprocess.Popen.wait
    asked = []

    def interrupted(process: object, *arguments: object) -> int:
        if not asked:
            asked.append(process)
            while not (tmp_path / "ready").exists():
                pass
            raise Terminated
        return int(wait(process, *arguments))

    monkeypatch.setattr("subprocess.Popen.wait", interrupted)
    with pytest.raises(Terminated):
        run_process(["bash", "-c", script])
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.4, "41 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (59.6, "1 min 0 s")]
)
def test_durations_are_to_read(seconds: float, text: str) -> None:
    assert duration(seconds) == text
