"""The task `chat`: from files to examples, held out, told apart, counted and drawn."""

from __future__ import annotations

import json
import random
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from logitbank.configs import data_settings, load_config
from logitbank.tasks import TASKS, ChatSettings, DataSettings, Example, TaskError
from logitbank.tasks.data import cells, demonstration_pool, load_examples, training_examples

CELL = "und"


def talk(number: int, **row: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number}."}]
    return {"messages": turns, **row}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(chat: ChatSettings | None = None, seed: int = 0, **files: str) -> DataSettings:
    return DataSettings(seed=seed, files={"chat": files}, chat=chat or ChatSettings())


def load(split: str, data: DataSettings, **options: Any) -> list[Example]:
    return load_examples("chat", split, CELL, data, **options)


def answers(examples: Iterable[Example]) -> list[str]:
    return [example.answer for example in examples]


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitbank.tasks.conversations.reading._said", set())


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level("INFO", logger="logitbank")
    return lambda: [record.getMessage() for record in caplog.records]


def test_the_cell_is_there_whatever_languages_are_asked_for(tmp_path: Path) -> None:
    assert cells(["chat", "pa"], ["hi", "en"]) == ([("chat", CELL), ("pa", "en")], [("pa", "hi")])
    file = write(tmp_path / "x.jsonl", map(talk, range(30)))
    data = settings(train=file, validation=file, test=file)
    assert len(training_examples("chat", ["zh"], data, train_languages="in_language")) == 30
    with pytest.raises(TaskError, match="chat does not exist in en; its languages are und"):
        load_examples("chat", "test", "en", data)
    with pytest.raises(TaskError, match="expected one of en, hi, es, de, fr, zh, got"):
        load_examples("nli", "test", CELL, data)


def test_an_example_holds_its_conversation_and_is_named_by_id_or_content(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [talk(1, id="one"), talk(2, id=2), talk(3), talk(4, id=None), talk(5, id="")])
    found = load("test", settings(test=file))
    assert [example.example_id for example in found[:2]] == ["chat/und/test/one", "chat/und/test/2"]
    for example in found[2:]:
        assert example.example_id == f"chat/und/test/{example.fields['conversation'].digest}"
    assert (found[0].task, found[0].language, found[0].answer) == ("chat", CELL, "It is 1.")
    assert found[0].fields["conversation"].messages == tuple(talk(1)["messages"])


def test_the_configuration_names_the_files(tmp_path: Path) -> None:
    config = load_config(
        [], ["model.name=m", "tasks=[chat]", "chat.train=a", "chat.test=c", "chat.holdout=0.2", "seed=7"]
    )
    assert data_settings(config) == DataSettings(
        seed=7, files={"chat": {"train": "a", "test": "c"}}, chat=ChatSettings(holdout=0.2)
    )
    assert data_settings(config, seed=1).seed == 1
    for split, key in (("train", "train"), ("validation", "train"), ("test", "test")):
        with pytest.raises(TaskError, match=rf"^chat.{key}: expected a file or hub id, got none; add chat.{key}=FILE$"):
            load(split, settings())


def test_a_share_is_held_out_by_content_and_never_trained_on(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    rows = [talk(number) for number in range(2000)]
    file = write(tmp_path / "x.jsonl", rows)
    train, held_out = (answers(load(split, settings(train=file))) for split in ("train", "validation"))
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(row["messages"][-1]["content"] for row in rows)
    assert 70 <= len(held_out) <= 130  # 100 expected, a standard deviation of 9.7
    assert log()[1] == (
        f"chat.train: {file}: 2,000 conversations, {len(held_out)} of them held out for validation (chat.holdout=0.05)"
    )
    random.Random(0).shuffle(rows)
    other = write(tmp_path / "y.jsonl", [{**row, "id": f"row {i}"} for i, row in enumerate(rows[:1500])])
    chosen = set(answers(load("validation", settings(train=other, seed=3))))
    assert chosen == set(held_out) & {
        row["messages"][-1]["content"] for row in rows[:1500]
    }  # order, ids, seed: no matter
    wider = settings(ChatSettings(holdout=0.3), train=file)
    assert set(held_out) < set(answers(load("validation", wider)))
    own = settings(train=file, validation=write(tmp_path / "v.jsonl", [talk(-1)]))
    assert (len(load("train", own)), answers(load("validation", own))) == (2000, ["It is -1."])


def test_no_share_and_all_of_it(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", map(talk, range(20)))
    none = settings(ChatSettings(holdout=0), train=file)
    assert (len(load("train", none)), load("validation", none)) == (20, [])
    with pytest.raises(TaskError, match=r"chat.holdout=1 holds out all of its 20 conversations; lower it"):
        load("train", settings(ChatSettings(holdout=1), train=file))


def test_a_limit_is_a_random_subset_of_the_content(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    rows = [talk(number) for number in range(300)]
    data = settings(train=write(tmp_path / "x.jsonl", rows), validation="unused")
    many = load("train", data, limit=50, limited_by="data.max_train_per_task")
    assert log()[-1] == "chat/und/train: took 50 of 300 examples (data.max_train_per_task)"
    assert load("train", data, limit=7) == many[:7]
    assert load("train", settings(train=data.files["chat"]["train"], validation="unused", seed=1), limit=7) != many[:7]
    numbers = [int(answer[6:-1]) for answer in answers(many)]
    assert 100 < sum(numbers) / 50 < 200  # from all of the file, not from its beginning
    random.Random(1).shuffle(rows)
    shuffled = write(tmp_path / "y.jsonl", [{**row, "id": i} for i, row in enumerate(rows)])
    assert answers(load("train", settings(train=shuffled, validation="unused"), limit=50)) == answers(many)
    assert len(load("train", data, limit=300)) == len(load("train", data, limit=301)) == 300


def test_demonstrations_come_from_training(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", map(talk, range(200)))
    data = settings(train=file, test=file)
    trained = set(answers(load("train", data)))
    for stage in ("train", "eval"):
        assert set(answers(demonstration_pool("chat", CELL, data, stage=stage))) == trained


def test_duplicates_are_dropped_and_counted(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    rows = [talk(1, id="a"), talk(2), talk(1, id="b"), talk(2, note="new"), talk(1, id="a"), talk(3)]
    rows += [talk(3, context="c"), talk(3, context="c")]  # another context: another example
    found = load("test", settings(test=write(tmp_path / "x.jsonl", rows)))
    assert answers(found) == ["It is 1.", "It is 2.", "It is 3.", "It is 3."]
    assert len({example.example_id for example in found}) == 4
    assert log() == [
        f"{tmp_path}/x.jsonl: OpenAI messages",
        f"chat.test: {tmp_path}/x.jsonl: 4 conversations; skipped 4 duplicates",
    ]


def test_what_cannot_be_learnt_is_skipped_counted_and_said_once(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    image = [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "A cat."}]
    rows = [
        talk(1),
        {"messages": [*talk(2)["messages"], {"role": "user", "content": "And?"}]},
        {"messages": []},
        {"messages": talk(3)["messages"][:1]},
        {"messages": image},
    ]
    data = settings(test=write(tmp_path / "x.jsonl", rows))
    assert answers(load("test", data)) == answers(load("test", data)) == ["It is 1.", "It is 2."]
    assert log()[1:] == [
        f"chat.test: {tmp_path}/x.jsonl: 2 conversations; skipped 1 conversation with image parts, "
        "2 conversations without an assistant turn; 1 conversation cut after the last assistant turn"
    ]
    with pytest.raises(TaskError) as caught:
        load("test", settings(test=write(tmp_path / "y.jsonl", rows[2:])))
    assert str(caught.value) == (
        f"chat.test: {tmp_path}/y.jsonl has no usable conversation; skipped 1 conversation with image parts, "
        "2 conversations without an assistant turn"
    )


BROKEN: dict[str, tuple[list[dict[str, Any]], str]] = {
    "field": ([talk(1), {"messages": [{"role": "critic"}]}], r"line 2: messages\[0\].role: expected one of"),
    "column": ([talk(1), {"prompt": "a"}], r"line 2: expected a column 'messages' \(OpenAI messages\), got prompt"),
    "no format": ([{"text": "a"}], "line 1: expected a column messages, or conversations, or prompt and completion"),
    "one id, two contents": (
        [talk(1, id="a"), talk(2, id="b"), talk(3, id="a")],
        r"line 3: id: 'a' is also used by .*x.jsonl, line 1, a different conversation; give each its own",
    ),
    "id of two lines": ([talk(1, id="a\nb")], r"line 1: id: expected one line of text, got 'a\\nb'"),
    "id of half a character": ([talk(1, id="\ud83d")], r"line 1: id: expected one line of text, got '\\ud83d'"),
    "id": ([talk(1, id=[1])], r"line 1: id: expected text or a whole number, got \[1\]"),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_row_names_key_file_and_line(fault: str, tmp_path: Path) -> None:
    rows, says = BROKEN[fault]
    with pytest.raises(TaskError, match=rf"^chat.test: {tmp_path}/x.jsonl, {says}") as caught:
        load("test", settings(test=write(tmp_path / "x.jsonl", rows)))
    assert "\n" not in str(caught.value)


def test_files_of_one_glob_may_have_formats_of_their_own(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    write(tmp_path / "1.jsonl", [talk(1)])
    write(tmp_path / "2.jsonl", [{"prompt": "What is 2?", "completion": "It is 2."}])
    write(
        tmp_path / "3.jsonl",
        [{"conversations": [{"from": "human", "value": "3"}, {"from": "gpt", "value": "It is 3."}]}],
    )
    write(tmp_path / "4.jsonl", [{"prompt": "What is 1?", "completion": "It is 1."}])
    found = load("test", settings(test=f"{tmp_path}/*.jsonl"))
    assert answers(found) == ["It is 1.", "It is 2.", "It is 3."]
    assert [line.rpartition(": ")[2] for line in log()[:4]] == [
        "OpenAI messages", "prompt and completion", "ShareGPT conversations", "prompt and completion",
    ]  # fmt: skip


def test_a_full_temporary_directory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened = real(*arguments, **options)
        opened.execute("PRAGMA max_page_count=8")
        return opened

    real = sqlite3.connect
    monkeypatch.setattr("logitbank.tasks.conversations.reading.sqlite3.connect", connect)
    file = write(tmp_path / "x.jsonl", map(talk, range(1000)))
    with pytest.raises(
        TaskError, match=r"x.jsonl, line \d+: cannot write its hash to .*TMPDIR.*: database or disk is full"
    ):
        load("test", settings(test=file))


def test_a_hub_id_is_read_from_the_mirror_in_the_split_of_its_key(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "org" / "talks"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", map(talk, range(40)))
    write(folder / "validation.jsonl", [talk(-1)])
    write(folder / "test.jsonl", [talk(-2)])

    def read(split: str, **files: str) -> set[str]:
        return set(answers(load(split, DataSettings(mirror=str(tmp_path / "hub"), files={"chat": files}))))

    assert read("test", test="org/talks") == {"It is -2."}
    assert read("test", test="org/talks:default/validation") == {"It is -1."}
    assert read("validation", train="org/talks", validation="org/talks") == {"It is -1."}
    assert read("validation", train="org/talks") | read("train", train="org/talks") == {
        f"It is {n}." for n in range(40)
    }


def test_a_context_for_all_is_for_the_teacher_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [talk(1)])
    (tmp_path / "rubric.txt").write_text("\nBe kind.\n", encoding="utf-8")
    rubric = ChatSettings(context=str(tmp_path / "rubric.txt"))
    (plain,), (taught,) = (load("test", settings(chat, test=file)) for chat in (None, rubric))
    assert taught.example_id == plain.example_id
    conversation = taught.fields["conversation"]
    assert conversation.messages == plain.fields["conversation"].messages
    assert conversation.teacher_messages == ({"role": "system", "content": "Be kind."}, *conversation.messages)
    both = settings(rubric, test=write(tmp_path / "y.jsonl", [talk(1), talk(2, context="Be brief.")]))
    with pytest.raises(
        TaskError, match=r"line 2: expected no context and no teacher_messages because chat\.context names"
    ):
        load("test", both)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: .*No such file"),
        (b" \n", "is empty; expected the text"),
        (b"\xff", "expected UTF-8 text"),
    ],
)
def test_a_context_that_cannot_be_read_is_one_line(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "rubric.txt").write_bytes(content)
    data = settings(ChatSettings(context=f"{tmp_path}/rubric.txt"), test=write(tmp_path / "x.jsonl", [talk(1)]))
    with pytest.raises(TaskError, match=rf"^chat.context: {tmp_path}/rubric.txt:? {says}"):
        load("test", data)


def test_scores_of_answers() -> None:
    said = [TASKS["chat"].statistics(text, "It is 1.", "und") for text in ("It is 1.\n", " \n", "2")]
    assert said == [{"parse_failure": 0.0}, {"parse_failure": 1.0}, {"parse_failure": 0.0}]


def test_memory_of_a_limit_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        long = (
            {"messages": [talk(n)["messages"][0], {"role": "assistant", "content": f"{n} " * 100}]}
            for n in range(count)
        )
        data = settings(train=write(tmp_path / f"{count}.jsonl", long))
        tracemalloc.start()
        try:
            assert len(load("train", data, limit=20)) == 20
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(30)  # what is imported on first use
    assert peak(6000) < peak(1500) + 300_000  # of 2.5 MB more, and 900 kB of digests in a Python set


@pytest.mark.parametrize(
    ("split", "count", "distinct"), [("train", 1200, 1127), ("validation", 150, 146), ("test", 370, 360)]
)
def test_the_real_conversations(split: str, count: int, distinct: int, shared: Path) -> None:
    files = {name: str(shared / "chat" / f"{name}.jsonl") for name in ("train", "validation", "test")}
    found = load(split, settings(**files))
    rows = [json.loads(line) for line in Path(files[split]).read_text(encoding="utf-8").splitlines()]
    assert (len(rows), len(found)) == (count, distinct)
    by_id = {row["id"]: row for row in rows}
    for example in found:
        row, conversation = by_id[example.example_id.rpartition("/")[2]], example.fields["conversation"]
        assert list(conversation.messages) == row["messages"]
        assert list(conversation.tools) == row.get("tools", [])
