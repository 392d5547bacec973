"""build-teacher-cache and inspect-cache as a user runs them, and on wrong input."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from logitbank.configs import load_config
from logitbank.evaluation.questions import draw_questions
from logitbank.storage import TeacherStore
from logitbank.storage.objects import open_objects
from logitbank.student_train import train_command
from logitbank.teacher_cache import build_command
from logitbank.teacher_cache.estimate import bytes_per_token
from logitbank.teacher_cache.inspection import command as inspect_command
from tests import processes


@pytest.fixture(scope="module")
def arguments(make_model: Callable[..., Path], mirror: Path) -> list[str]:
    """Configuration of a small run over two tasks."""
    return [
        f"model.name={make_model()}",
        f"data.mirror={mirror}",
        "tasks=[nli,pos]",
        "languages=[en,hi]",
        "data.max_train_per_task=12",
        "data.max_validation_per_task=4",
        "teacher.top_k=70",
        "store.shard_tokens=512",
        "store.chunk_tokens=128",
    ]


@pytest.fixture(scope="module")
def store(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "store"
    build_command.main(["--store", str(path), "--view", "zeroshot", *arguments])
    return path


def test_building_again_changes_nothing_and_a_view_can_be_added(store: Path, arguments: list[str]) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    build_command.main(["--store", str(store), "--view", "zeroshot", *arguments])
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    build_command.main(["--store", str(store), "--view", "shuffled_answers", *arguments])
    after = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert all(after[path] == data for path, data in before.items())
    assert any("shuffled_answers" in str(path) for path in after)


def test_processes_of_accelerate_launch_write_what_one_process_writes(
    store: Path, arguments: list[str], tmp_path: Path
) -> None:
    """As the launcher starts them, which tests of sharded students run whole."""
    command = ["build-teacher-cache", "--store", str(tmp_path / "launched"), "--view", "zeroshot", *arguments]
    done = processes.run_ranks(2, *command)
    assert [run.returncode for run in done] == [0, 0], done[0].stderr
    assert "zeroshot complete" in done[0].stdout + done[1].stdout  # says the last one
    for i, run in enumerate(done):
        assert f"worker {i} of 2 (RANK and WORLD_SIZE)" in run.stdout + run.stderr
    launched, of_one = _objects(tmp_path / "launched"), _objects(store)  # to which other tests add views
    assert {name: of_one.get(name) for name in launched} == launched


def _objects(store: Path) -> dict[str, bytes]:
    """All of a store; not the files that workers lock."""
    files = [path for path in store.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def test_a_bucket_holds_what_a_directory_holds(
    store: Path, arguments: list[str], bucket: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = bucket()
    build_command.main(["--store", url, "--view", "zeroshot", *arguments])
    assert "zeroshot complete" in capsys.readouterr().out
    inspect_command.main(["--store", url, "--verify"])
    assert "sound" in capsys.readouterr().out
    remote, here = open_objects(url), open_objects(str(store))  # the latter may have got another view
    assert [*remote.sizes("teachers/zeroshot")] == [*here.sizes("teachers/zeroshot")]
    assert all(remote.get(key) == here.get(key) for key in remote.sizes())
    inspect_command.main(["--store", url, "--format", "json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["views"]["zeroshot"]["complete"]
    assert facts["bytes"] == sum(here.sizes()[key] for key in remote.sizes())


@pytest.mark.parametrize("signal", ["sampled", "hybrid"])
def test_draws_are_the_same_whoever_makes_them(
    signal: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build that is resumed and one by two workers end with the bytes of one that ran through."""
    options = [*arguments, f"teacher.signal={signal}", "teacher.top_k=5", "teacher.draws=9", "languages=[en]"]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build_command.main(["--store", str(whole), "--view", "zeroshot", *options])
    for worker in (0, 1):
        build_command.main(["--store", str(parts), "--view", "zeroshot", "--worker", f"{worker}/2", *options])
    expected = _objects(whole)
    assert _objects(parts) == expected
    (whole / "manifest/zeroshot/0.json").unlink()
    for file in (whole / "teachers/zeroshot/sample_counts/c/0").iterdir():
        file.write_bytes(b"half")
    build_command.main(["--store", str(whole), "--view", "zeroshot", *options])
    assert _objects(whole) == expected
    inspect_command.main(["--store", str(whole), "--verify"])
    assert "sound" in capsys.readouterr().out
    inspect_command.main(["--store", str(whole)])
    assert f"and 9 draws, {signal}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        build_command.main(["--store", str(whole), *options, "teacher.draws=10"])
    assert "created with draws = 9, but this run requests 10" in capsys.readouterr().err


def test_inspection_counts_and_verifies(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_command.main(["--store", str(store), "--format", "json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["examples"] == 24
    assert facts["views"]["zeroshot"]["complete"]
    assert {row["task"] for row in facts["rows"]} == {"nli", "pos"}
    per_view = [row["answer_tokens"] for row in facts["rows"] if row["view"] == "zeroshot"]
    assert sum(per_view) == facts["answer_tokens"]
    for row in facts["rows"]:
        assert 0 <= row["teacher_accuracy"] <= 1
        assert row["teacher_ce"] > 0
        assert 0 < row["top_k_mass_mean"] <= 1
    inspect_command.main(["--store", str(store), "--verify"])
    assert "sound" in capsys.readouterr().out


def test_one_example_is_shown_token_by_token(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_command.main(["--store", str(store), "--format", "json"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        inspect_command.main(["--store", str(store), "--example", "nli/en/nowhere/1"])
    message = capsys.readouterr().err
    assert "nli/en/nowhere/1" in message
    example = str(TeacherStore.open(str(store)).examples.example_id[0])
    assert example in message  # ids that there are
    inspect_command.main(["--store", str(store), "--example", example, "--format", "json"])
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert tokens[-1]["token"] == "<|im_end|>"
    assert all(len(view["top"]) == 5 for token in tokens for view in token["views"].values())


def test_a_damaged_store_is_reported_with_exit_code_2(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    victim = next(path for path in sorted((copy / "teachers").rglob("c/*")) if path.is_file())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(bytes(data))
    with pytest.raises(SystemExit) as caught:
        inspect_command.main(["--store", str(copy), "--verify"])
    assert caught.value.code == 2
    assert victim.relative_to(copy).as_posix() in capsys.readouterr().out


def test_dry_run_writes_nothing(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_command.main(["--store", str(tmp_path / "s"), "--dry-run", *arguments])
    output = capsys.readouterr().out
    assert "24 examples" in output
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--view", "oneshot"], "--view: expected one of fewshot, zeroshot, shuffled_answers, context, got 'oneshot'"),
        (["--view", "context"], "--view: expected one of fewshot, zeroshot, shuffled_answers for nli, got 'context'"),
        (["model.name=./nowhere"], "model.name: no directory ./nowhere"),
        (["teacher.model=./nowhere"], "teacher.model: no directory ./nowhere"),
        (["--store", "nosuch://x"], "--store nosuch://x: "),
        (["--store", "/dev/null/s"], "--store /dev/null/s: /dev/null is not writable"),
        (["data.mirror=/nowhere"], "/nowhere"),
        (["teacher.top_k=200000"], "teacher.top_k: expected at most"),
        (["teacher.topk=2"], "did you mean teacher.top_k?"),
        (["--worker", "3/2"], "--worker: expected I/N"),
        (["tasks=[pa]", "languages=[hi]"], "hi"),
        (["data.max_student_tokens=8"], "data.max_student_tokens"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        build_command.main(["--store", str(tmp_path / "s"), *arguments, *changes])
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]
    assert not (tmp_path / "s").exists()


def test_examples_of_a_language_that_was_not_asked_for_have_their_place(arguments: list[str], tmp_path: Path) -> None:
    """`data.train_languages=english`: what a student of Hindi learns from is English."""
    url = str(tmp_path / "s")
    build_command.main(["--store", url, "--view", "zeroshot", *arguments, "tasks=[nli]", "languages=[hi]"])
    store = TeacherStore.open(url)
    assert store.info.languages == ("hi", "en")
    assert {store.info.languages[i] for i in store.examples.language} == {"en"}
    assert {store.info.languages[i] for i in store.validation.language} == {"hi"}


def test_a_store_of_the_test_split_holds_what_an_evaluation_asks(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [*arguments, "evaluation.max_samples=5", "evaluation.sample_seed=3", "data.max_train_per_task=2"]
    url = str(tmp_path / "s")
    build_command.main(["--store", url, "--view", "zeroshot", "--split", "test", *few])
    store = TeacherStore.open(url)
    config = load_config([], few)
    asked = [
        question.example.example_id
        for task in config.tasks
        for language in config.languages
        for question in draw_questions(config, "base", task, language)
    ]
    assert len(asked) == 4 * 5
    assert sorted(store.examples.example_id[i] for i in range(len(store.examples))) == sorted(asked)
    assert len(store.validation) == 0
    assert store.info.split == "test"
    inspect_command.main(["--store", url])
    assert "answer tokens, test split" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        build_command.main(["--store", url, "--view", "zeroshot", *few])
    assert "--store" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_command.main(["--store", url, "--view", "zeroshot", "--output", str(tmp_path / "student"), *few])
    assert f"--store: expected a store of the training split, but {url} holds the test split" in capsys.readouterr().err


def test_going_on_with_other_settings_names_the_field_and_both_values(
    store: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for change, field in (
        ("seed=7", "identity.seed = 42, but this run requests 7"),
        ("teacher.top_k=60", "top_k = 70, but this run requests 60"),
    ):
        with pytest.raises(SystemExit):
            build_command.main(["--store", str(store), "--view", "zeroshot", *arguments, change])
        assert field in capsys.readouterr().err


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    run = processes.run("inspect-cache", "--store", str(tmp_path / "none"))
    assert run.returncode == 2
    assert run.stderr.startswith("error: --store")
    assert len(run.stderr.splitlines()) == 1


def test_a_teacher_of_8_bits_says_nearly_what_the_whole_one_says(
    store: Path, arguments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    build_command.main(["--store", str(path), "--view", "zeroshot", *arguments, "teacher.load_in_8bit=true"])
    whole, quantised = (TeacherStore.open(str(url)) for url in (store, path))
    assert quantised.info.teacher["quantization"] == "int8"
    expected, found = (s.read_shard("zeroshot", 0).logsumexp for s in (whole, quantised))
    assert 0 < abs(expected - found).mean() < 0.1 * expected.std()


def test_a_device_map_spreads_one_teacher_and_changes_no_number(
    store: Path, arguments: list[str], tmp_path: Path
) -> None:
    build_command.main(["--store", str(tmp_path / "s"), "--view", "zeroshot", *arguments, "teacher.device_map=auto"])
    expected, found = (sorted((path / "teachers").rglob("c/*")) for path in (store, tmp_path / "s"))
    assert [path.read_bytes() for path in found if path.is_file()] == [
        path.read_bytes() for path in expected if path.is_file() and "zeroshot" in path.parts
    ]


def test_a_teacher_with_a_longer_lm_head_teaches_a_student_with_a_shorter_one(
    make_model: Callable[..., Path], arguments: list[str], tmp_path: Path
) -> None:
    teacher = make_model(padding_rows=40)
    built = [*arguments, f"teacher.model={teacher}", "data.max_train_per_task=4"]
    build_command.main(["--store", str(tmp_path / "s"), "--view", "zeroshot", *built])
    store = TeacherStore.open(str(tmp_path / "s"))
    assert store.info.vocab_size == store.info.tokenizer_size + 40
    train_command.main(
        [
            *("--store", str(tmp_path / "s"), "--view", "zeroshot", "--output", str(tmp_path / "student")),
            *built,
            "training.max_steps=2",
            "training.warmup_steps=0",
            "training.global_batch_size=4",
            "training.num_workers=0",
            "training.use_lora=false",
        ]
    )
    saved = json.loads((tmp_path / "student/final/config.json").read_text())
    assert saved["vocab_size"] == store.info.tokenizer_size + 8  # the student's own, as it was


def test_the_expected_size_is_what_was_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    rows = re.findall(r"^\| (compact|exact|float16) \| (\d+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert {int(top_k) for _, top_k, _ in rows} >= {16, 64, 256}
    for encoding, top_k, measured in rows:
        assert bytes_per_token(encoding, int(top_k)) == pytest.approx(float(measured), rel=0.06)
