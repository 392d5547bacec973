"""Stores of conversations as a user builds them: every view, mixed with other tasks, resumed, shared among workers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.configs import load_config
from logitbank.storage import TeacherStore
from logitbank.teacher_cache import build_command
from logitbank.teacher_cache.build import estimate_store
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from logitbank.teacher_cache.inspection import command as inspect_command
from tests.plans import gather
from tests.tasks.dialogues import turns
from tests.teacher_cache.conftest import CHATML
from tests.teacher_cache.fakes import contents

VIEWS = ("zeroshot", "fewshot", "context")
CONTEXT = "You are a guide who knows every street."


def dialogue(number: int) -> dict[str, object]:
    """One to three exchanges, every second one behind a system prompt."""
    asked = [(f"Which street is {number} after {step}?", f"Street {number * step}.") for step in (0, 2, 4)]
    said = [text for pair in asked for text in pair]
    system = "Be brief." if number % 2 else None
    return {"id": f"street-{number}", "messages": turns(*said[: 2 * (1 + number % 3)], system=system)}


@pytest.fixture(scope="module")
def settings(make_model: Callable[..., Path], mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("dialogues")
    for split, numbers in (("train", range(12)), ("validation", range(20, 24)), ("test", range(30, 35))):
        lines = "\n".join(json.dumps(dialogue(number)) for number in numbers)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "context.txt").write_text(CONTEXT, encoding="utf-8")
    files = [f"chat.{split}={folder}/{split}.jsonl" for split in ("train", "validation", "test")]
    sizes = ["teacher.top_k=20", "store.encoding=exact", "store.shard_tokens=64", "store.chunk_tokens=64"]
    return [
        *(f"model.name={make_model()}", f"data.mirror={mirror}", "tasks=[chat]", "languages=[en]"),
        *(*files, f"chat.context={folder}/context.txt", *sizes),
    ]


@pytest.fixture(scope="module")
def store(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "store"
    build_command.main(["--store", str(path), *views(), *settings])
    return path


def views() -> list[str]:
    return [argument for view in VIEWS for argument in ("--view", view)]


def test_a_store_has_the_rows_of_every_span_under_every_view(store: Path, settings: list[str]) -> None:
    """What the engine says of each sequence by itself, whatever shard and batch it was in."""
    opened = TeacherStore.open(str(store))
    assert opened.info.shards > 2
    assert sorted(opened.examples.example_id[i] for i in range(len(opened.examples))) == sorted(
        f"chat/und/train/street-{number}" for number in range(12)
    )
    assert len(opened.validation) == 4
    prepared = gather(load_config([], settings), VIEWS)
    decode = prepared.encoder.tokenizer.decode
    engine = HFTeacher(
        prepared.teacher,
        dtype="float32",
        tokenizer_size=len(prepared.encoder.tokenizer),
        device=torch.device("cpu"),
    )
    several = 0
    for position, record in enumerate(prepared.examples):
        assert opened.examples.sequence(position) == record.sequence
        number = int(record.example_id.rpartition("-")[2])
        assert len(record.sequence.spans) == 1 + number % 3
        several += len(record.sequence.spans) > 1
        for view in VIEWS:
            read = prepared.views[view].sequences[position]
            assert read.answer_ids.tolist() == record.answer_ids.tolist()
            text = decode(read.prompt_ids)
            assert (CONTEXT in text) == (view == "context")
            assert text.count("<|im_start|>user") > 1 if view == "fewshot" else text.count("<|im_start|>user") == 1
            rows, alone = opened.read([position], view), engine.score([Sequenced(read)], 20)
            np.testing.assert_allclose(rows.logits, alone.logits, atol=1e-4)
            np.testing.assert_allclose(rows.logsumexp, alone.logsumexp, atol=1e-4)
            np.testing.assert_allclose(rows.gold_logit, alone.gold_logit, atol=1e-4)
    assert several == 8
    saw = {view: opened.view_attributes(view)["sequences"] for view in VIEWS}
    assert saw == {"zeroshot": "student", "fewshot": "context", "context": "context"}


def test_demonstrations_are_other_conversations_of_the_training_file(settings: list[str]) -> None:
    prepared = gather(load_config([], [*settings, "fewshot.num_demonstrations={chat: 3}"]), ("fewshot",))
    assert set(prepared.views["fewshot"].demonstrations) == {3}
    for record, read in zip(prepared.examples, prepared.views["fewshot"].sequences, strict=True):
        text, own = prepared.encoder.tokenizer.decode(read.prompt_ids), record.example_id.rpartition("-")[2]
        shown = {line.split()[3] for line in text.splitlines() if line.startswith("Which street is ")}
        assert len(shown - {own}) == 3
        assert shown <= {str(number) for number in range(12)}


def test_an_interrupted_build_and_one_by_workers_end_with_the_same_bytes(
    store: Path, settings: list[str], tmp_path: Path
) -> None:
    broken, shared = tmp_path / "broken", tmp_path / "shared"
    shutil.copytree(store, broken)
    for manifest in ("manifest/context/1.json", "manifest/zeroshot/0.json"):
        (broken / manifest).unlink()
    for file in (broken / "teachers/context/logits/c/1").iterdir():
        file.write_bytes(b"half")
    build_command.main(["--store", str(broken), *views(), *settings])
    for worker in (1, 0):
        build_command.main(["--store", str(shared), *views(), "--worker", f"{worker}/2", *settings])
    assert contents(broken) == contents(shared) == contents(store)


def test_a_dry_run_counts_what_the_teacher_reads(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["data.max_student_tokens=150", "data.max_teacher_tokens=400"]  # cuts the longest, drops demonstrations
    config = load_config([], [*settings, *limits])
    plan = gather(config, VIEWS)
    build_command.main(["--store", str(tmp_path / "s"), "--dry-run", *views(), *settings, *limits])
    printed = capsys.readouterr()
    assert not (tmp_path / "s").exists()
    (row,) = [line for line in printed.out.splitlines() if line.startswith("| chat")]
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    expected = estimate_store(config, VIEWS)
    read = {view: sum(len(sequence) - 1 for sequence in plan.views[view].sequences) for view in VIEWS}
    assert cells[:5] == ["chat", "und", str(expected.examples), f"{expected.answer_tokens:,}", "0"]
    assert cells[5:8] == [f"{read[view]:,}" for view in VIEWS]
    assert int(cells[8]) == sum(2 - shown for shown in plan.views["fewshot"].demonstrations) > 0
    assert all(len(record.sequence) <= 150 for record in plan.examples)
    assert sum(len(record.sequence.spans) for record in plan.examples) < 4 * (1 + 2 + 3)  # turns at the end are cut


def test_a_teacher_that_ends_turns_its_own_way_reads_a_sequence_for_each(
    make_model: Callable[..., Path], settings: list[str], tmp_path: Path
) -> None:
    url = str(tmp_path / "s")
    teacher = make_model(CHATML.replace("<|im_end|>", "</s>").replace("<|im_start|>", "# "))
    build_command.main(["--store", url, "--view", "zeroshot", *settings, f"teacher.model={teacher}"])
    opened = TeacherStore.open(url)
    names = [opened.examples.example_id[i] for i in range(len(opened.examples))]
    assert sorted(name for name in names if "street-5" in name) == [
        f"chat/und/train/street-5#{turn}" for turn in (1, 2, 3)
    ]
    assert len(names) == 4 * (1 + 2 + 3)
    (end,) = opened.info.untaught
    position = names.index("chat/und/train/street-5#2")
    sequence = opened.examples.sequence(position)
    assert sequence.ids[-1] == end
    prepared = gather(load_config([], [*settings, f"teacher.model={teacher}"]), ("zeroshot",))
    read = prepared.views["zeroshot"].sequences[position]
    assert read.answer_ids.tolist() == sequence.answer_ids.tolist()
    text = prepared.encoder.tokenizer.decode(read.prompt_ids)
    assert text.count("</s>") == 4  # system prompt, two questions and the answer between them
    assert "<|im_end|>" not in text
    assert opened.view_attributes("zeroshot")["sequences"] == "context"


def test_conversations_mix_with_other_tasks(settings: list[str], tmp_path: Path) -> None:
    url = str(tmp_path / "s")
    mixed = [*settings, "tasks=[chat,nli]", "data.max_train_per_task=6", "data.max_validation_per_task=2"]
    build_command.main(["--store", url, "--view", "zeroshot", "--view", "fewshot", *mixed])
    opened = TeacherStore.open(url)
    assert (opened.info.tasks, set(opened.info.languages)) == (("chat", "nli"), {"en", "und"})
    assert np.bincount(opened.examples.task).tolist() == [6, 6]
    assert {opened.info.languages[i] for i in opened.examples.language[opened.examples.task == 0]} == {"und"}
    assert not opened.missing_shards("fewshot")


@pytest.mark.parametrize(
    ("tasks", "view", "says"),
    [
        ("[chat]", "shuffled_answers", "--view: expected one of fewshot, zeroshot, context for chat, got"),
        ("[chat,nli]", "context", "--view: expected one of fewshot, zeroshot, shuffled_answers for nli, got 'context'"),
    ],
)
def test_a_view_that_a_task_does_not_have_is_one_line(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], tasks: str, view: str, says: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        build_command.main(["--store", str(tmp_path / "s"), "--view", view, *settings, f"tasks={tasks}"])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in line
    assert not (tmp_path / "s").exists()


def test_a_store_of_another_split_is_not_resumed(
    store: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(store)
    with pytest.raises(SystemExit) as stop:
        build_command.main(["--store", str(store), "--view", "zeroshot", "--split", "test", *settings])
    assert stop.value.code == 2
    assert "created with identity.split = train, but this run requests test" in capsys.readouterr().err
    assert contents(store) == before


def test_a_conversation_is_shown_answer_by_answer(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = TeacherStore.open(str(store))
    name = "chat/und/train/street-5"  # three answers behind a system prompt
    position = opened.examples.index_of(name)
    spans = opened.examples.sequence(position).spans
    inspect_command.main(["--store", str(store), "--example", name, "--format", "json"])
    shown = json.loads(capsys.readouterr().out)
    assert [(span["start"], span["length"]) for span in shown["spans"]] == [tuple(span) for span in spans]
    assert [token["span"] for token in shown["tokens"]] == np.repeat(range(3), [span.length for span in spans]).tolist()
    for view in VIEWS:
        rows, start = opened.read([position], view), 0
        for span, about in zip(spans, shown["spans"], strict=True):
            own = rows.take(np.arange(start, start + span.length))
            assert about["views"][view]["mean_entropy"] == pytest.approx(own.entropy.mean())
            assert about["views"][view]["teacher_ce"] == pytest.approx((own.logsumexp - own.gold_logit).mean())
            start += span.length
    inspect_command.main(["--store", str(store), "--example", name])
    text = capsys.readouterr().out
    parts = [text.index(part) for part in ("Be brief.", "5 after 0?", "answer 1 of 3", "5 after 2?", "answer 3 of 3")]
    assert parts == sorted(parts)
    (header,) = [line for line in text.splitlines() if line.startswith("| answer |")]
    assert [f"entropy {view}" in header for view in VIEWS] == [True] * 3
    entropies = [f"{shown['spans'][1]['views'][view]['mean_entropy']:.3f}" for view in sorted(VIEWS)]
    assert any(line.startswith("| 2 ") and all(value in line for value in entropies) for line in text.splitlines())


def test_no_sequence_is_longer_than_the_models_read(
    settings: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Path(settings[0].removeprefix("model.name="))
    whole = [len(record.sequence) for record in gather(load_config([], settings), ("zeroshot",)).examples]
    most = sorted(whole)[len(whole) // 2]
    shutil.copytree(model, tmp_path / "short")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": most}))
    short = load_config([], [*settings, f"model.name={tmp_path / 'short'}", "data.max_student_tokens=100000"])
    caplog.set_level("INFO")
    cut = gather(short, ("zeroshot",))
    assert max(whole) > most >= max(len(record.sequence) for record in cut.examples)
    assert f"data.max_student_tokens: {most}, all that the model reads; got 100,000" in caplog.text
    taught = load_config([], [*settings, f"teacher.model={tmp_path / 'short'}"])
    assert gather(taught, ("zeroshot",)).longest <= most
