"""Conversations are scored by the likelihood of their gold answers, beside a teacher's where a store has it."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from logitbank.evaluation import evaluate_command, query_command
from logitbank.evaluation.engines.huggingface import HfEngine
from logitbank.evaluation.report.example_browser import browsed_examples
from logitbank.evaluation.report.intervals import draw_counts, interval, load_replicates
from logitbank.storage.results import Catalogue
from logitbank.teacher_cache import build_command
from tests import tiny
from tests.evaluation.conftest import checkpoint

ROWS, TOKENS = 264, len(tiny.chat_tokenizer())
TOP_K = 8
# The model meets a mark behind the last answer's header that earlier answers lose: each turn is a sequence of its own.
FORGETFUL = (
    "{% for m in messages %}<start>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}*{% endif %}{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n*{% endif %}"
)


def _talk(*texts: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


CONVERSATIONS = [
    {"id": "one", "messages": _talk("Hi?", "Hello!")},
    {"id": "two", "messages": [{"role": "system", "content": "Short."}, *_talk("a", "b", "c", "a longer answer")]},
    {"id": "three", "messages": _talk("1", "2", "3", "4", "5", "6 <b>&amp;")},
    {"id": "four", "messages": _talk("What is it?", "It is what it is.")},
]


def write(path: Path, conversations: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in conversations), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher that says something else, and the student with a forgetful template."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        tiny.save_model(root / name, tiny.chat_tokenizer(), rows=ROWS, seed=seed, initializer_range=0.3)
    forgetful = tiny.chat_tokenizer()
    forgetful.chat_template = FORGETFUL
    tiny.save_model(root / "forgetful", forgetful, rows=ROWS, initializer_range=0.3)
    return root


@pytest.fixture
def settings(models: Path, tmp_path: Path) -> list[str]:
    test = write(tmp_path / "test.jsonl", CONVERSATIONS)
    train = write(tmp_path / "train.jsonl", CONVERSATIONS[:2])
    return [
        f"model.name={models / 'student'}",
        "model.dtype=float32",
        "tasks=[chat]",
        f"chat.train={train}",
        f"chat.test={test}",
        "evaluation.max_new_tokens={chat: 4}",
    ]


@pytest.fixture
def evaluated(settings: list[str], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """`evaluated("base", "key=value", …)`: run the command; the rows of `metrics` that tables count."""

    def run(condition: str, *arguments: str) -> list[dict[str, Any]]:
        evaluate_command.main(["--condition", condition, "--results", str(tmp_path / "r"), *settings, *arguments])
        return rows(tmp_path, "SELECT * FROM scores WHERE task = 'chat' ORDER BY metric")

    return run


def rows(tmp_path: Path, sql: str) -> list[dict[str, Any]]:
    return Catalogue([tmp_path / "r"]).rows(sql)


def teacher_store(settings: Sequence[str], models: Path, place: Path, *arguments: str) -> str:
    """A store of the test split, its numbers kept exactly."""
    asked = ["--store", str(place), "--view", "zeroshot", *settings, f"teacher.model={models / 'teacher'}"]
    asked += [f"teacher.top_k={TOP_K}", "store.encoding=exact", "store.shard_tokens=256", "store.chunk_tokens=256"]
    build_command.main([*asked, *(arguments or ("--split", "test"))])
    return str(place)


def answers_of(path: Path, messages: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, V) float64 log-probabilities of a model at the answers of a conversation, and (T,) the answers' ids.

    Found in the rendered text, by what stands between an assistant's header and the end of its turn.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    ids: list[int] = []
    places: list[int] = []
    for number, message in enumerate(messages):
        whole = tokenizer.apply_chat_template(messages[: number + 1], return_dict=False)
        header = len(tokenizer(f"<start>{message['role']}\n", add_special_tokens=False)["input_ids"])
        if message["role"] == "assistant":
            places += range(len(ids) + header, len(whole))
        ids = list(whole)
    with torch.inference_mode():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    at = torch.tensor(places)
    return log_p[at - 1], torch.tensor(ids)[at]


def by_hand(models: Path, name: str = "student") -> dict[str, float]:
    """The metrics of a model on the conversations, token by token."""
    loss, correct, tokens = 0.0, 0, 0
    for conversation in CONVERSATIONS:
        log_p, gold = answers_of(models / name, conversation["messages"])  # type: ignore[arg-type]
        loss -= float(log_p.gather(1, gold[:, None]).sum())
        correct += int((log_p.argmax(-1) == gold).sum())
        tokens += len(gold)
    return {
        "cross_entropy": loss / tokens,
        "perplexity": math.exp(loss / tokens),
        "token_accuracy": correct / tokens,
    }


def divergence_by_hand(models: Path, name: str) -> dict[str, float]:
    """KL over the teacher's K likeliest tokens and all others as one, and agreement, over all answer tokens."""
    kl, agreement, tokens = 0.0, 0, 0
    for conversation in CONVERSATIONS:
        theirs, _ = answers_of(models / "teacher", conversation["messages"])  # type: ignore[arg-type]
        ours, _ = answers_of(models / name, conversation["messages"])  # type: ignore[arg-type]
        real = theirs[:, :TOKENS]  # padding never enters the top K
        ids = real.topk(TOP_K).indices
        p, q = (
            torch.cat([own.gather(1, ids), own.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)], dim=1)
            for own in (theirs, ours)
        )
        kl += float((p.exp() * (p - q)).sum())
        agreement += int((real.argmax(-1) == ours.argmax(-1)).sum())
        tokens += len(theirs)
    return {"kl": kl / tokens, "agreement": agreement / tokens}


def test_metrics_are_those_of_a_plain_loop(models: Path, evaluated: Any, tmp_path: Path, capsys: Any) -> None:
    found = {row["metric"]: row for row in evaluated("base")}
    for name, value in by_hand(models).items():
        assert found[name]["value"] == pytest.approx(value, rel=1e-4), name
    assert set(found) == {*by_hand(models), "parse_failure"}
    assert {row["method"] for row in found.values()} == {"teacher_forced"}
    assert [name for name, row in found.items() if row["is_primary"]] == ["token_accuracy"]
    assert found["cross_entropy"]["examples"] == 4
    line = next(line for line in capsys.readouterr().out.splitlines() if "base chat/und" in line)
    assert f"cross_entropy {found['cross_entropy']['value']:.4f}" in line
    (shown,) = [row for row in rows(tmp_path, "SELECT * FROM predictions") if row["example_id"].endswith("two")]
    messages = CONVERSATIONS[1]["messages"]
    assert json.loads(shown["question"]) == {"messages": messages[:-1], "tools": []}
    assert json.loads(shown["gold"]) == messages[-1]
    assert shown["prompt"].endswith("<start>user\nc<end><start>assistant\n")
    statistics = dict(shown["statistics"])
    assert statistics["tokens"] == len("b") + len("a longer answer") + 2, "each with its end of turn"
    assert shown["score"] == statistics["correct_tokens"] / statistics["tokens"]


def test_the_last_answer_is_generated_and_kept(models: Path, evaluated: Any, tmp_path: Path) -> None:
    evaluated("base")
    model = transformers.AutoModelForCausalLM.from_pretrained(models / "student", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "student")
    engine = HfEngine(model.eval(), tokenizer, batch_tokens=100)
    for row, conversation in zip(
        rows(tmp_path, "SELECT * FROM predictions ORDER BY example_id"),
        sorted(CONVERSATIONS, key=lambda each: str(each["id"])),
        strict=True,
    ):
        messages: Any = conversation["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        ids = list(prompt)
        for _ in range(4):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in engine.stop_ids:
                break
        assert row["output"] == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        assert row["cut_short"] == (ids[-1] not in engine.stop_ids)


def test_nothing_is_generated_where_likelihoods_are_asked_for(models: Path, evaluated: Any, tmp_path: Path) -> None:
    found = {row["metric"]: row["value"] for row in evaluated("base", "evaluation.method=likelihood")}
    assert found == pytest.approx(by_hand(models), rel=1e-4)
    assert rows(tmp_path, "SELECT DISTINCT output, cut_short, parsed FROM predictions") == [
        {"output": "", "cut_short": None, "parsed": None}
    ]
    assert len(rows(tmp_path, "SELECT * FROM averages")) == 1


def test_the_longest_gold_answer_limits_what_is_generated(settings: list[str], tmp_path: Path) -> None:
    own = [item for item in settings if not item.startswith("evaluation.max_new_tokens")]
    evaluate_command.main(["--condition", "base", "--results", str(tmp_path / "r"), *own])
    longest = len("It is what it is.") + 1
    lengths = [len(row["output"]) for row in rows(tmp_path, "SELECT output FROM predictions WHERE cut_short")]
    assert lengths
    assert max(lengths) <= longest


def test_a_store_adds_divergence_and_agreement(
    models: Path, settings: list[str], evaluated: Any, tmp_path: Path, capsys: Any
) -> None:
    plain = {row["metric"]: row["value"] for row in evaluated("base")}
    store = teacher_store(settings, models, tmp_path / "store")
    found = {row["metric"]: row for row in evaluated("base", "--store", store)}
    expected = divergence_by_hand(models, "student")
    # the store keeps float32 logits; the student's are computed in float32: each token is off by some 1e-5
    assert found["kl"]["value"] == pytest.approx(expected["kl"], abs=1e-4)
    assert found["agreement"]["value"] == expected["agreement"]
    assert {name: found[name]["value"] for name in plain} == plain
    fingerprint = found["kl"]["against"].split()[-1]
    assert found["kl"]["against"] == found["agreement"]["against"] == f"teacher zeroshot K={TOP_K} {fingerprint}"
    assert found["cross_entropy"]["against"] is None
    assert rows(tmp_path, "SELECT count(DISTINCT setup) AS n FROM cells") == [{"n": 1}], "one series, the newest run"
    capsys.readouterr()
    evaluated("base", "--store", store)
    evaluated("base")
    assert capsys.readouterr().out.count("1 of 1 cells are already finished") == 2
    assert rows(tmp_path, "SELECT count(*) AS n FROM runs") == [{"n": 2}]


def test_a_conversation_of_several_sequences_is_one_row(
    models: Path, settings: list[str], evaluated: Any, tmp_path: Path
) -> None:
    """The template shows an answer otherwise once others follow: each turn is scored as the model meets it."""
    forgetful = [f"model.name={models / 'forgetful'}", f"teacher.model={models / 'forgetful'}"]
    store = teacher_store([*settings, *forgetful], models, tmp_path / "store", "--split", "test", *forgetful)
    found = {row["metric"]: row["value"] for row in evaluated("base", "--store", store, *forgetful)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "forgetful")
    model = transformers.AutoModelForCausalLM.from_pretrained(models / "forgetful", dtype=torch.float64)
    loss, tokens = 0.0, 0
    for conversation in CONVERSATIONS:
        messages: Any = conversation["messages"]
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = tokenizer.apply_chat_template(messages[:number], add_generation_prompt=True, return_dict=False)
            answer = tokenizer(message["content"] + "<end>", add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                log_p = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            loss -= float(log_p[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum())
            tokens += len(answer)
    assert found["cross_entropy"] == pytest.approx(loss / tokens, rel=1e-4)
    assert found["kl"] == pytest.approx(0, abs=1e-4), "its own teacher"
    assert found["agreement"] == 1
    predictions = rows(tmp_path, "SELECT example_id, statistics['tokens'] AS tokens FROM predictions ORDER BY ALL")
    assert [row["example_id"] for row in predictions] == [f"chat/und/test/{n}" for n in ("four", "one", "three", "two")]
    assert sum(row["tokens"] for row in predictions) == tokens


def test_demonstrations_stand_before_the_scored_answers(models: Path, evaluated: Any, tmp_path: Path) -> None:
    found = {row["metric"]: row for row in evaluated("fewshot", "fewshot.num_demonstrations={chat: 1}")}
    assert found["cross_entropy"]["value"] != pytest.approx(by_hand(models)["cross_entropy"], rel=1e-3)
    assert found["cross_entropy"]["demonstrations"] == 1
    for row in rows(tmp_path, "SELECT prompt, example_id FROM predictions"):
        turns = {"one": 1, "two": 2, "three": 3, "four": 1}[row["example_id"].rpartition("/")[2]]
        assert row["prompt"].count("<start>user") > turns


def test_what_a_conversation_says_and_which_turns_count_is_part_of_an_evaluation(
    evaluated: Any, settings: list[str], tmp_path: Path, capsys: Any
) -> None:
    def said(*arguments: str) -> str:
        evaluated("base", *arguments)
        return str(capsys.readouterr().out)

    said()
    assert "already finished" in said()
    other = tmp_path / "elsewhere.jsonl.gz"
    other.write_bytes(gzip.compress((tmp_path / "test.jsonl").read_bytes()))
    assert "already finished" in said(f"chat.test={other}"), "the same content from another file"
    last = said("chat.turns=last")
    assert "the examples of chat/und have changed" in last
    changed = [{**CONVERSATIONS[0], "messages": _talk("Hi?", "Hello.")}, *CONVERSATIONS[1:]]
    write(tmp_path / "test.jsonl", changed)
    assert "the examples of chat/und have changed" in said("chat.turns=last")
    assert "already finished" in said("chat.turns=last")


def test_an_interrupted_cell_needs_no_second_scoring(
    evaluated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluated("base")
    for file in (tmp_path / "r/metrics").iterdir():
        file.unlink()
    monkeypatch.setattr(HfEngine, "score", lambda *_, **__: pytest.fail("was scored before"))
    assert evaluated("base") == before


STORE_ERRORS: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
    "training split": (("--split", "train"), (), "expected a store of the evaluated split test, got one of"),
    "another file": (
        ("--split", "test"),
        ("chat.test={tmp}/other.jsonl",),
        "has no example chat/und/test/five, which this run evaluates",
    ),
    "another answer": (
        ("--split", "test"),
        ("chat.test={tmp}/changed.jsonl",),
        "example chat/und/test/one has different tokens than this run evaluates",
    ),
    "other turns": (("--split", "test"), ("chat.turns=last",), "has different tokens than this run evaluates"),
    "no conversations": (("--split", "test"), ("tasks=[nli]",), "--store: compares the answers of conversations"),
    "vllm": (("--split", "test"), ("evaluation.engine=vllm",), "set evaluation.engine=hf, or leave --store out"),
    "no such view": (("--split", "test"), ("--view", "fewshot"), "has no such view (it has: zeroshot)"),
    "views": (("--split", "test", "--view", "context", "chat.context={tmp}/rules.txt"), (), ": context, zeroshot"),
}


@pytest.mark.parametrize("case", STORE_ERRORS)
def test_a_store_that_does_not_fit_is_one_line(
    case: str, models: Path, settings: list[str], tmp_path: Path, capsys: Any
) -> None:
    built, asked, message = STORE_ERRORS[case]
    write(tmp_path / "other.jsonl", [*CONVERSATIONS, {"id": "five", "messages": _talk("x", "y")}])
    write(tmp_path / "changed.jsonl", [{"id": "one", "messages": _talk("Hi?", "Ho!")}])
    (tmp_path / "rules.txt").write_text("Be brief.")
    store = teacher_store(settings, models, tmp_path / "store", *(item.format(tmp=tmp_path) for item in built))
    arguments = [*settings, "--condition", "base", "--results", str(tmp_path / "r"), "--store", store]
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        evaluate_command.main([*arguments, *(item.format(tmp=tmp_path) for item in asked)])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert message in error
    assert not (tmp_path / "r").exists(), "a run of which there is nothing"


def test_conversations_and_labels_are_evaluated_together_and_averaged_apart(
    settings: list[str], models: Path, mirror: Path, tmp_path: Path, capsys: Any
) -> None:
    both = [*settings, "tasks=[chat,nli]", "languages=[en]", f"data.mirror={mirror}", "data.sources={nli: xnli}"]
    both += ["evaluation.max_samples=4", "--results", str(tmp_path / "r"), "--condition", "base"]
    evaluate_command.main(both)
    store = teacher_store(settings, models, tmp_path / "store")
    capsys.readouterr()
    evaluate_command.main([*both, "--store", store])
    assert "1 of 2 cells are already finished" in capsys.readouterr().out, "labels know no teacher"
    averages = rows(tmp_path, "SELECT method, task_mean, cells, expected_cells, tasks FROM averages ORDER BY method")
    by_task = {row["task"]: row["value"] for row in rows(tmp_path, "SELECT * FROM cells WHERE is_primary")}
    assert [tuple(row.values()) for row in averages] == [
        ("generate", by_task["nli"], 1, 1, 1),
        ("teacher_forced", by_task["chat"], 1, 1, 1),
    ]
    query_command.main(["--results", str(tmp_path / "r"), "tables", "--cells"])
    printed = capsys.readouterr().out
    assert f"| task_mean             | {100 * by_task['nli']:.1f}" in printed
    assert "Means over tasks are of scores of answers; chat, scored by likelihood, is in none." in printed
    assert "### base: chat (cross_entropy, nats per answer token)" in printed


def test_tables_say_which_student_is_nearer(settings: list[str], models: Path, tmp_path: Path, capsys: Any) -> None:
    """A student that is its teacher against one that is not; every gap with its unit, its sign and its interval."""
    store = teacher_store(settings, models, tmp_path / "store")
    shared = {"model": str(models / "student"), "teacher": "org/big", "store_fingerprint": "s"}
    for name, condition, view in (("teacher", "distilled", "zeroshot"), ("student", "finetuned", None)):
        own = tmp_path / condition
        own.mkdir()
        for file in (models / name).iterdir():
            (own / file.name).write_bytes(file.read_bytes())
        checkpoint(own, **shared, view=view, run=condition)
        (own / "adapter_config.json").unlink()
        (own / "adapter_model.safetensors").unlink()
        asked = ["--checkpoint", str(own), "--store", store, "--results", str(tmp_path / "r"), *settings]
        evaluate_command.main([*asked, "evaluation.method=likelihood"])
    student, teacher = by_hand(models, "student"), by_hand(models, "teacher")
    student |= divergence_by_hand(models, "student")
    capsys.readouterr()
    query_command.main(["--results", str(tmp_path / "r"), "tables"])
    printed = capsys.readouterr().out
    table = printed.split("## Likelihood of gold answers: student, chat")[1].split("##")[0]
    found = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table.splitlines()
        if "|" in line
    }
    assert found["metric"] == ["finetuned", "distilled", "distilled−finetuned"]
    entropy = found["cross_entropy (nats per answer token, lower is better)"]
    assert entropy[0].startswith(f"{student['cross_entropy']:.4f} ")
    assert entropy[1].startswith(f"{teacher['cross_entropy']:.4f} ")
    assert entropy[2].startswith(f"{teacher['cross_entropy'] - student['cross_entropy']:+.4f} ")
    kl = found["kl (nats per answer token, lower is better)"]
    assert kl[0].startswith(f"{student['kl']:.4f} ")
    assert kl[1].startswith("0.0000")
    assert kl[2].startswith(f"{-student['kl']:+.4f} ")
    assert "≈0" not in kl[2]
    agreement = found["agreement (%, higher is better)"]
    assert agreement[1].startswith("100.0")
    assert agreement[2].startswith(f"{100 * (1 - student['agreement']):+.1f} ")
    assert "chat: distilled is nearer than finetuned in its distance to teacher zeroshot" in printed


def test_examples_are_browsed_as_conversations(evaluated: Any, tmp_path: Path) -> None:
    evaluated("base")
    found = {each["example_id"].rpartition("/")[2]: each for each in browsed_examples(Catalogue([tmp_path / "r"]))}
    messages = CONVERSATIONS[2]["messages"]
    assert found["three"]["conversation"] == {"messages": messages[:-1], "tools": [], "answer": messages[-1]}
    (answer,) = found["three"]["answers"]
    (row,) = rows(tmp_path, "SELECT * FROM predictions WHERE example_id = 'chat/und/test/three'")
    assert answer["output"] == row["output"]
    assert answer["written"]
    assert answer["scores"].startswith(f"token_accuracy {100 * row['score']:.1f}%, cross_entropy ")


def test_intervals_resample_conversations_in_pairs(
    settings: list[str], models: Path, evaluated: Any, tmp_path: Path
) -> None:
    """The interval of a gap is that of a ratio of sums, drawn by conversation, both sides with the same draws."""
    for name, condition in (("student", "base"), ("teacher", "mine")):
        arguments = [] if name == "student" else ["--new-condition", "--checkpoint", str(models / name)]
        evaluated(condition, "evaluation.method=likelihood", *arguments)
    catalogue = Catalogue([tmp_path / "r"])
    found = load_replicates(catalogue, ("cross_entropy",))
    cells = sorted({cell for cell, metric in found.by_cell if metric == "cross_entropy"}, key=lambda cell: cell[1])
    got = found.difference([(cells[0], cells[1])], "cross_entropy")
    assert got is not None
    sums = {}
    for condition in ("base", "mine"):
        own = catalogue.rows(
            f"SELECT statistics FROM predictions WHERE condition = '{condition}' ORDER BY hash(example_id)"
        )
        by_name = [dict(row["statistics"]) for row in own]
        sums[condition] = np.array([[row["negative_log_likelihood"], row["tokens"]] for row in by_name])
    draws = draw_counts(4)
    values = {name: (draws @ each)[:, 0] / (draws @ each)[:, 1] for name, each in sums.items()}
    expected = interval(values["base"] - values["mine"])
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
