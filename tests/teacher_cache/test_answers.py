"""Stores of answers that a model wrote: the very tokens that it sampled, behind the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import DataLoader

from logitbank import DistillationCollator, TeacherDataset, losses
from logitbank.configs import load_config
from logitbank.evaluation.sampling import sample_answers
from logitbank.storage import TeacherStore
from logitbank.teacher_cache import build_command
from tests.tasks.dialogues import turns
from tests.teacher_cache.fakes import contents


@pytest.fixture(scope="module")
def settings(make_model: Callable[..., Path], mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Questions and conversations of one to three exchanges, on a random model whose bytes rarely spell UTF-8."""
    folder = tmp_path_factory.mktemp("dialogues")
    said = [f"part {step} of a street" for step in range(6)]
    for split, names in (("train", "abcdef"), ("validation", "uv")):
        rows = [{"id": name, "messages": turns(name, *said[1 : 2 + 2 * (i % 3)])} for i, name in enumerate(names)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = [f"chat.{split}={folder}/{split}.jsonl" for split in ("train", "validation")]
    sizes = ["teacher.top_k=20", "store.encoding=exact", "store.shard_tokens=64", "store.chunk_tokens=64"]
    return [
        *(f"model.name={make_model()}", f"data.mirror={mirror}", "tasks=[chat,nli]", "languages=[en]"),
        *(*files, *sizes, "data.max_train_per_task=6", "data.max_validation_per_task=2"),
        *("sampling.n=2", "sampling.max_new_tokens=5", "model.dtype=float32", "fewshot.num_demonstrations={nli: 2}"),
    ]


@pytest.fixture(scope="module")
def answers(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_answers(settings, output=tmp_path_factory.mktemp("answers") / "a.jsonl")


@pytest.fixture(scope="module")
def store(settings: list[str], answers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "store"
    build(path, answers, settings)
    return path


def build(path: Path, answers: Path, settings: list[str], views: tuple[str, ...] = ("zeroshot", "fewshot")) -> None:
    asked = [word for view in views for word in ("--view", view)]
    build_command.main(["--store", str(path), "--answers", str(answers), *asked, *settings])


def rows_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    return {row["id"]: row["answers"] for row in map(json.loads, path.read_text().splitlines())}


def test_a_store_holds_the_very_tokens_that_were_sampled(store: Path, answers: Path, settings: list[str]) -> None:
    """Behind the prompt that they were sampled behind, one example each; as text they would be other tokens."""
    opened, tokenizer = TeacherStore.open(str(store)), transformers.AutoTokenizer.from_pretrained(model_of(settings))
    found = {opened.examples.example_id[i]: opened.examples.sequence(i) for i in range(len(opened.examples))}
    expected = {
        f"{name}~{number}": answer
        for name, given in rows_of(answers).items()
        for number, answer in enumerate(given, start=1)
    }
    assert set(found) == set(expected)
    assert len(expected) == 2 * (6 + 2 * (1 + 2 + 3))
    assert {name for name in expected if name.startswith("chat/und/train/c")} == {
        f"chat/und/train/c#{turn}~{number}" for turn in (1, 2, 3) for number in (1, 2)
    }
    other = 0
    for name, answer in expected.items():
        sequence, ids = found[name], answer["token_ids"]
        assert sequence.answer_ids.tolist() == ids
        assert len(sequence.spans) == 1
        ended = [
            *tokenizer.encode(answer["text"], add_special_tokens=False),
            *ids[len(ids) - (ids[-1] == end(tokenizer)) :],
        ]
        other += ended != ids
        cut = answer["finish_reason"] == "length"
        assert (ids[-1] == end(tokenizer)) == (not cut), "an answer that was cut gets no end of turn"
        assert tokenizer.decode(sequence.prompt_ids).endswith("<|im_start|>assistant\n")
    assert other > len(expected) / 2
    text = tokenizer.decode(found["chat/und/train/c#2~1"].prompt_ids)
    assert "part 1 of a street<|im_end|>" in text, "turns before a sampled one are those of the conversation"
    assert "part 3" not in text


def test_held_out_examples_keep_their_own_answers(store: Path, settings: list[str], tmp_path: Path) -> None:
    build_command.main(["--store", str(tmp_path / "given"), "--view", "zeroshot", *settings])
    sampled, given = (TeacherStore.open(str(path)).validation for path in (store, tmp_path / "given"))
    assert len(sampled) == len(given) > 0
    assert all(sampled.sequence(i) == given.sequence(i) for i in range(len(given)))


@pytest.mark.numeric
def test_the_divergence_on_sampled_answers_is_that_of_the_live_teacher(
    settings: list[str], answers: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Forward KL from the store against both models in float64, one sequence at a time."""
    teacher_path, student_path = make_model(seed=7), model_of(settings)
    own = [*settings, f"teacher.model={teacher_path}", "teacher.dtype=float32", "teacher.top_k=256"]
    build(tmp_path / "s", answers, own, views=("zeroshot",))
    store = TeacherStore.open(str(tmp_path / "s"))
    data = TeacherDataset(store, view="zeroshot")
    teacher, student = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        for path in (teacher_path, student_path)
    )
    compared = 0
    for batch in DataLoader(data, batch_size=4, collate_fn=DistillationCollator(pad_id=0)):
        with torch.inference_mode():
            logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        found = losses.forward_kl(logits.float(), batch.teacher, reduction="none").double().tolist()
        expected = []
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            places = torch.nonzero(labels != -100)[:, 0] - 1
            length = int(places.max()) + 2
            with torch.inference_mode():
                p, q = (model(ids[None, :length]).logits[0, places].softmax(-1) for model in (teacher, student))
            top = p[:, : store.info.tokenizer_size].argsort(-1, descending=True)[:, :256]  # and all others as one
            p, q = (torch.cat([it.gather(1, top), 1 - it.gather(1, top).sum(1, keepdim=True)], 1) for it in (p, q))
            expected += (p * (p.log() - q.log())).sum(-1).tolist()
        np.testing.assert_allclose(found, expected, atol=2e-4)
        compared += len(found)
    assert compared == store.info.answer_tokens


def test_the_same_file_gives_the_same_bytes_whatever_the_order_of_its_lines(
    store: Path, answers: Path, settings: list[str], tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(reversed(answers.read_text().splitlines())))
    (tmp_path / "mixed.jsonl.json").write_bytes(Path(f"{answers}.json").read_bytes())
    build(tmp_path / "again", mixed, settings)
    assert contents(tmp_path / "again") == contents(store)


def test_a_store_keeps_who_wrote_its_answers(store: Path, answers: Path, settings: list[str], tmp_path: Path) -> None:
    record = json.loads(Path(f"{answers}.json").read_text())
    told = TeacherStore.open(str(store)).info.answers
    assert told is not None
    assert dict(told) == {name: value for name, value in record.items() if name != "versions"}
    unsigned = tmp_path / "unsigned.jsonl"
    unsigned.write_bytes(answers.read_bytes())
    build(tmp_path / "s", unsigned, settings, views=("zeroshot",))
    assert TeacherStore.open(str(tmp_path / "s")).info.answers == {"model": None}


def test_another_file_is_not_taken_for_the_one_that_a_store_was_begun_with(
    store: Path, answers: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = sample_answers([*settings, "sampling.seed=1"], output=tmp_path / "b.jsonl")
    before = contents(store)
    says = refusal(store, other, settings, capsys)
    assert "identity.answers.sampling.seed = 42, but this run requests 1" in says
    assert contents(store) == before


def test_texts_alone_are_tokenised_and_ended(settings: list[str], answers: Path, tmp_path: Path) -> None:
    """A file that somebody else wrote: text, no ids, fewer answers."""
    names, path = list(rows_of(answers)), tmp_path / "mine.jsonl"
    given: dict[str, list[Any]] = {name: ["sure"] for name in names}
    given[names[0]] = []
    given[names[1]] = [{"text": "half", "finish_reason": "length"}, "whole"]
    given[names[2]] = ["far too long " * 999]
    path.write_text("\n".join(json.dumps({"id": name, "answers": texts}) for name, texts in given.items()))
    build(tmp_path / "s", path, settings, views=("zeroshot",))
    opened, tokenizer = (
        TeacherStore.open(str(tmp_path / "s")),
        transformers.AutoTokenizer.from_pretrained(model_of(settings)),
    )
    found = {
        opened.examples.example_id[i]: tokenizer.decode(opened.examples.sequence(i).answer_ids)
        for i in range(len(opened.examples))
    }
    assert names[0] not in found
    assert names[2] not in found
    assert found[f"{names[1]}~1"] == "half"
    assert found[f"{names[1]}~2"] == "whole<|im_end|>"
    assert {found[name] for name in names[3:]} == {"sure<|im_end|>"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.pop(), 'has no line for {last}; add one, with "answers": [] to leave the example out'),
        (
            lambda rows: rows.append({"id": "nli/en/train/x", "answers": []}),
            "id 'nli/en/train/x' is not an example of this",
        ),
        (lambda rows: rows.append(rows[0]), "is in line 1 already; give one line all answers to a prompt"),
        (lambda rows: rows[-1].update(answers=[""]), "answers to {last}: expected text, got an empty one"),
        (lambda rows: rows[-1].update(answers="yes"), "answers: expected a list, got '\"yes\"'"),
        (lambda rows: rows[-1].update(answers=[7]), "answers[0]: expected text, or an object with \"text\", got '7'"),
        (
            lambda rows: rows[-1].update(answers=[{"text": "a", "token_ids": ["x"]}]),
            "token_ids: expected whole numbers",
        ),
        (lambda rows: rows[-1].update(answers=[{"text": "a", "token_ids": []}]), "token_ids: expected at least one"),
        (lambda rows: rows[-1].update(answers=[answer([9999])]), "token_ids: expected ids below"),
        (
            lambda rows: rows[-1].update(answers=[answer([64])]),
            "finish_reason: stop expects an end of turn in token_ids",
        ),
        (
            lambda rows: rows[-1].update(answers=[answer([64], finish_reason="length")]),
            "expected ids that spell 'x', got",
        ),
        (lambda rows: rows[-1].update(answers=[answer([64], finish_reason="eos")]), "expected stop or length, got"),
        (lambda rows: rows[-1].update(answers=[{"text": "\ud800"}]), "expected valid UTF-8 text"),
        (lambda rows: rows.clear(), "has no lines; expected an id and answers on each"),
        (lambda rows: rows.insert(0, "nonsense"), "line 1: expected an object with"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    change: Callable[[list[Any]], object],
    says: str,
    answers: Path,
    settings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    last = rows[-1]["id"]
    change(rows)
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert says.replace("{last}", last) in refusal(tmp_path / "s", path, settings, capsys)
    assert not (tmp_path / "s" / "zarr.json").exists()


def test_a_file_that_is_none(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says = refusal(tmp_path / "s", tmp_path / "absent.jsonl", settings, capsys)
    assert "absent.jsonl cannot be read: No such file or directory" in says
    (tmp_path / "torn.jsonl").write_text('{"id": "nli')
    assert "line 1: expected JSON, got" in refusal(tmp_path / "s", tmp_path / "torn.jsonl", settings, capsys)
    says = refusal(tmp_path / "s", tmp_path / "torn.jsonl", [*settings, "--split", "validation"], capsys)
    assert "expected --split train, got validation" in says


def answer(ids: list[int], **told: str) -> dict[str, Any]:
    return {"text": "x", "token_ids": ids, **told}


def refusal(store: Path, answers: Path, settings: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        build(store, answers, settings, views=("zeroshot",))
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def model_of(settings: list[str]) -> str:
    return load_config([], settings).model.name


def end(tokenizer: Any) -> int:
    return int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
