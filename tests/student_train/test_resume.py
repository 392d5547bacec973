"""Interrupted runs are resumed by the same command, from the right checkpoint, to the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from logitbank.configs import Config, ConfigError, Decides, config_keys, keys_deciding
from logitbank.errors import TrainingError
from logitbank.student_train import checkpoints
from logitbank.student_train.records import Run, describe_run, refuse_another_run
from logitbank.student_train.step import StepDone, Stepper
from logitbank.student_train.train import train
from logitbank.student_train.train_command import main
from tests import processes

MAX_STEPS = 24
STEPS = [f"training.max_steps={MAX_STEPS}", "training.save_steps=3", "training.logging_steps=2"]
KINDS = {
    "lora": ["training.use_lora=true", "lora.dropout=0.1", "distillation.strategy=loss_ratio"],
    "full": ["distillation.strategy=meta", "distillation.meta_batch_size=4"],
}


def weights(final: Path) -> dict[str, torch.Tensor]:
    (file,) = final.glob("*.safetensors")
    return load_file(file)


def logged(results: Path) -> dict[tuple[int, str, str], float]:
    clock = ("tokens_per_second", "data_wait", "peak_memory")
    files = sorted((results / "training_log").glob("*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    keys = [(row["step"], row["task"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys), "a step is logged twice"
    return {key: row["value"] for key, row in zip(keys, rows, strict=True) if key[2] not in clock}


def all_but_the_last(take_step: Callable[..., StepDone]) -> Callable[..., StepDone]:
    """Steps of a run that waits to be killed before its last, however late that comes."""

    def taken(stepper: Stepper, step: int, *arguments: Any, **options: Any) -> StepDone:
        while step == MAX_STEPS - 1:
            signal.pause()
        return take_step(stepper, step, *arguments, **options)

    return taken


def train_and_kill(run: Run, checkpoint: str, seconds: float) -> None:
    """Train in a process of its own and kill it some steps after a checkpoint appeared."""
    child = os.fork()
    if child == 0:
        try:
            Stepper.take_step = all_but_the_last(Stepper.take_step)  # type: ignore[method-assign]
            train(run)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 300
    while not (run.output / checkpoint).exists():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("kind", "checkpoint", "seconds"), [("lora", "checkpoint-6", 0.09), ("full", "checkpoint-9", 0.0)]
)
def test_a_killed_run_ends_with_the_same_bits(
    small_store: SimpleNamespace,
    configure: Callable[..., Config],
    tmp_path: Path,
    kind: str,
    checkpoint: str,
    seconds: float,
) -> None:
    config = configure(*STEPS, *KINDS[kind])
    whole = Run(config, small_store.url, "fewshot", tmp_path / "whole", tmp_path / "whole" / "results")
    train(whole)
    output = tmp_path / "killed"
    killed = Run(config, small_store.url, "fewshot", output, output / "results")
    train_and_kill(killed, checkpoint, seconds)
    assert not (output / "final").exists()
    expected, got = weights(whole.output / "final"), weights(train(killed))
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    assert logged(output / "results") == logged(tmp_path / "whole" / "results")
    assert not list(output.glob(".*.partial"))
    assert len(list((output / "results" / "runs").glob("*.parquet"))) == 1


def test_a_truncated_checkpoint_is_skipped_with_a_warning(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = configure(*STEPS, "training.max_steps=10")
    whole = train(Run(config, small_store.url, None, tmp_path / "whole", tmp_path / "results-whole"))
    run = Run(config, small_store.url, None, tmp_path / "run", tmp_path / "results")
    train(run)
    for damaged, name in (
        (run.output / "checkpoint-9", "model.safetensors"),
        (run.output / "checkpoint-6", "files.json"),
    ):
        file = damaged / name
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)
    for path in (run.output / "final").rglob("*"):
        path.unlink()
    (run.output / "final").rmdir()
    resumed = train(Run(config, small_store.url, None, run.output, run.results))
    assert "checkpoint-9 is damaged (model.safetensors has" in caplog.text
    assert "checkpoint-6 is damaged (no readable files.json)" in caplog.text
    assert "steps 4 to 10" in caplog.text
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())
    assert logged(run.results) == logged(tmp_path / "results-whole")


def test_only_the_newest_checkpoints_are_kept(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(*STEPS, "training.max_steps=12", "training.save_total_limit=2")
    train(Run(config, small_store.url, None, tmp_path / "run", tmp_path / "results"))
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-6", "checkpoint-9"]


@pytest.mark.parametrize(
    ("override", "view", "says"),
    [
        ("training.learning_rate=0.5", "fewshot", "training.learning_rate"),
        ("data.max_train_per_task=3", "fewshot", "data.max_train_per_task"),
        ("training.num_workers=0", "zeroshot", "--view"),
    ],
)
def test_another_run_is_not_resumed(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, override: str, view: str, says: str
) -> None:
    steps = ["training.max_steps=4", "training.save_steps=2"]
    run = Run(configure(*steps), small_store.url, "fewshot", tmp_path / "run", tmp_path / "results")
    train(run)
    (run.output / "final").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{says}.*was trained with"):
        train(Run(configure(*steps, override), small_store.url, view, run.output, run.results))


@pytest.mark.parametrize("comparisons", [False, True], ids=["tokens", "comparisons"])
@pytest.mark.parametrize("decided", [True, False], ids=["student", "nothing"])
def test_what_decides_the_student_is_refused_and_nothing_else(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, decided: bool, comparisons: bool
) -> None:
    """Every key of the schema, given another value: `--resume` asks what the schema says that it decides."""
    config = dataclasses.replace(configure(), tasks=["preference"]) if comparisons else configure()
    run = Run(config, small_store.url, "fewshot", tmp_path / "run", tmp_path / "results")
    record = describe_run(run, small_store.store, "template")
    checked = 0
    for key in config_keys():
        if (key in keys_deciding(Decides.STUDENT, comparisons=comparisons)) != decided:
            continue
        changed = json.loads(json.dumps(record.config))
        place = changed
        *groups, name = key.split(".")
        for group in groups:
            place = place[group]
        value = place[name]
        place[name] = {"nli": 0.123} if isinstance(value, dict) else ["other"] if isinstance(value, list) else "other"
        earlier = dataclasses.replace(record, config=changed)
        if decided:
            with pytest.raises(ConfigError, match=f"{key}.* was trained with"):
                refuse_another_run(earlier, run, run.output, record)
        else:
            refuse_another_run(earlier, run, run.output, record)
        checked += 1
    assert checked > 15


def test_a_key_that_an_older_record_lacks_had_its_default(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = Run(configure(), small_store.url, "fewshot", tmp_path / "run", tmp_path / "results")
    record = describe_run(run, small_store.store, "template")
    older = json.loads(json.dumps(record.config))
    del older["distillation"]["meta_every"]
    refuse_another_run(dataclasses.replace(record, config=older), run, run.output, record)
    changed = dataclasses.replace(run, config=configure("distillation.meta_every=3"))
    with pytest.raises(ConfigError, match=r"distillation.meta_every: .* was trained with 1, got 3"):
        refuse_another_run(dataclasses.replace(record, config=older), changed, run.output)


def test_another_store_of_the_same_examples_is_another_run(
    make_store: Callable[..., SimpleNamespace],
    small_store: SimpleNamespace,
    configure: Callable[..., Config],
    tmp_path: Path,
) -> None:
    config = configure("training.save_steps=2")
    run = Run(config, small_store.url, None, tmp_path / "run", tmp_path / "results")
    train(run)
    (run.output / "final").rename(tmp_path / "elsewhere")
    other = make_store(top_k=15)
    with pytest.raises(ConfigError, match=r"--store: .* was trained with store_fingerprint"):
        train(dataclasses.replace(run, store_url=other.url))


def test_what_is_only_written_beside_a_run_may_change_when_it_is_resumed(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = Run(configure("training.save_steps=2"), small_store.url, None, tmp_path / "run", tmp_path / "results")
    train(run)
    (run.output / "final").rename(tmp_path / "elsewhere")
    changes = ["training.save_steps=2", "training.tensorboard=true", "training.save_total_limit=1"]
    train(dataclasses.replace(run, config=configure(*changes, "training.micro_batch_size=2")))
    assert "steps 3 to 4" in caplog.text
    assert (run.output / "tensorboard").is_dir()


ENDS = {signal.SIGINT: (130, "Interrupted"), signal.SIGTERM: (143, "Terminated")}


def command(small_store: SimpleNamespace, tiny_model: Path, output: Path, *more: str) -> list[str]:
    options = ["train-student", "--store", small_store.url, "--view", "fewshot", "--output", str(output)]
    settings = ["tasks=[nli,pos]", "training.precision=fp32", "training.use_lora=true", "lora.dropout=0.1"]
    settings += ["training.max_steps=300", "training.global_batch_size=8", "training.micro_batch_size=2"]
    settings += ["training.warmup_steps=1", "training.logging_steps=7", *more]
    return [*options, f"model.name={tiny_model}", *settings]


def saved_step(output: Path) -> int:
    """The one checkpoint's step."""
    (checkpoint,) = checkpoints.list_checkpoints(output)
    return checkpoints.checkpoint_step(checkpoint)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_signal_saves_a_checkpoint_and_the_same_command_resumes(
    small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    """Without a single scheduled checkpoint; reading in threads, and in the training loop itself."""
    output = tmp_path / "run"
    arguments = command(small_store, tiny_model, output, f"training.num_workers={workers}")
    running = processes.start(*arguments)
    await_line(running, "step 7/300")
    running.send(number)
    ended = running.wait(300)
    code, said = ENDS[number]
    assert ended.returncode == code
    step = saved_step(output)
    lines = ended.stderr.splitlines()
    assert f"{number.name}: saving a checkpoint after this step" in lines
    assert lines[-1] == (f"{said} after step {step}; its checkpoint is saved, run the same command to resume from it")
    assert "Traceback" not in ended.stderr
    resumed = processes.run(*[argument.replace("max_steps=300", f"max_steps={step + 3}") for argument in arguments])
    assert resumed.returncode == 2
    assert "training.max_steps" in resumed.stderr  # another run than the one that was interrupted
    again = processes.start(*arguments)
    await_line(again, f"steps {step + 1} to 300")
    await_line(again, f"step {step + 7 - step % 7}/300")
    again.send(signal.SIGTERM)
    assert again.wait(300).returncode == 143


def test_interrupted_twice_at_any_step_a_run_ends_with_the_same_bits(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*KINDS["lora"], "training.max_steps=9", "training.logging_steps=4", "training.save_steps=3")
    whole = Run(config, small_store.url, "fewshot", tmp_path / "whole", tmp_path / "whole" / "results")
    train(whole)
    run = dataclasses.replace(whole, output=tmp_path / "run", results=tmp_path / "run" / "results")
    take_step = Stepper.take_step

    def interrupted(stepper: Stepper, step: int, *arguments: Any, **options: Any) -> StepDone:
        if step == stop_in:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(stepper, step, *arguments, **options)

    monkeypatch.setattr(Stepper, "take_step", interrupted)
    for before, kept in ((1, 2), (5, 6)):  # between scheduled checkpoints, and at one
        stop_in = before
        with pytest.raises(KeyboardInterrupt, match=f"after step {kept}; its checkpoint is saved"):
            train(run)
        assert (run.output / f"checkpoint-{kept}").is_dir()
    stop_in = 8  # nothing is left to resume after the last step
    expected, got = weights(whole.output / "final"), weights(train(run))
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    assert logged(run.results) == logged(whole.results)


def test_all_ranks_stop_at_the_same_step(small_store: SimpleNamespace, tiny_model: Path, tmp_path: Path) -> None:
    """One of two gets the signal."""
    output = tmp_path / "run"
    ranks = processes.start_ranks(2, *command(small_store, tiny_model, output, "training.num_workers=0"))
    await_line(ranks[0], "step 7/300")
    ranks[1].send(signal.SIGTERM)
    ended = [rank.wait(300) for rank in ranks]
    assert [rank.returncode for rank in ended] == [143, 143]
    assert f"Terminated after step {saved_step(output)}; its checkpoint is saved" in ended[0].stderr
    assert "checkpoint" not in ended[1].stderr  # once


def await_line(running: processes.Running, text: str) -> None:
    deadline = time.monotonic() + 300
    while text not in running.complained():
        assert running.alive, running.complained()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_disk_is_one_line_and_the_same_command_resumes(
    small_store: SimpleNamespace,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Files may not grow beyond a size, as a quota has it: the adapter fits, then the optimizer's state does not."""
    output = tmp_path / "run"
    _, *arguments = command(small_store, tiny_model, output, "training.num_workers=0", "training.save_steps=2")
    arguments = [argument.replace("max_steps=300", "max_steps=5") for argument in arguments]
    save = checkpoints.save_checkpoint

    def with_quota(accelerator: Any, student: Any, optimizer: Any, tokenizer: Any, target: Path, *more: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if target.name == "checkpoint-4":
            resource.setrlimit(resource.RLIMIT_FSIZE, (quota, limits[1]))
        try:
            save(accelerator, student, optimizer, tokenizer, target, *more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(checkpoints, "save_checkpoint", with_quota)
    for bytes_each in (10_000, 50_000):
        quota = bytes_each
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert line.startswith(f"error: --output: cannot write {output / 'checkpoint-4'}: ")
        assert line.endswith("make room and run the same command to resume")
        assert [path.name for path in checkpoints.list_checkpoints(output)] == ["checkpoint-2"]
        assert not list(output.glob(".*"))
    monkeypatch.undo()
    main(arguments)
    assert (output / "final" / "adapter_model.safetensors").exists()


def test_a_loss_that_is_no_longer_finite_ends_the_run(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure("training.learning_rate=1e30", "training.max_steps=6")
    with pytest.raises(TrainingError, match=r"training.learning_rate: the loss at step"):
        train(Run(config, small_store.url, None, tmp_path / "run", tmp_path / "results"))


def test_tensorboard_files_hold_the_log(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure("training.tensorboard=true")
    train(Run(config, small_store.url, "fewshot", tmp_path / "run", tmp_path / "results"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = {(e.step, tag): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    for (step, task, metric), value in logged(tmp_path / "results").items():
        assert scalars[step, f"{task}/{metric}"] == pytest.approx(value, rel=1e-5)


def test_the_crossover_is_the_first_step_below_the_teacher(
    small_store: SimpleNamespace, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure("training.max_steps=40", "training.learning_rate=0.02", "training.save_steps=7")
    train(Run(config, small_store.url, "fewshot", tmp_path / "run", tmp_path / "results"))
    values = logged(tmp_path / "results")
    for task in ("nli", "pos"):
        below = [s for s in range(1, 41) if values[s, task, "student_ce"] < values[s, task, "teacher_ce"]]
        crossed = [
            (step, value) for (step, t, metric), value in values.items() if (t, metric) == (task, "crossover_step")
        ]
        assert crossed == [(below[0], float(below[0]))]
