"""Teachers whose lm_head or tokenizer is not the student's: what they say of the ids that both mean alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from logitbank.configs import Config, load_config
from logitbank.errors import ConfigError
from logitbank.storage import TeacherStore
from logitbank.student_train import train_command
from logitbank.student_train.batch import Batch, MicroBatches
from logitbank.student_train.losses.answer_logits import read_logits
from logitbank.student_train.losses.base import make_loss
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.split import BatchPlan
from logitbank.teacher_cache.build import build_store
from tests import tiny
from tests.teacher_cache.conftest import CHATML

BYTES = 256 + 4  # one for each byte, `<s>`, `</s>` and two that begin and end a turn
TOP_K = 20
TOLERANCE = 2e-5  # of a divergence of 21 outcomes in float32, whose logits come in batches of other shapes

Model = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """`model(padding=8, control=(), seed=0)`: a random model of the byte tokenizer."""

    def make(
        padding: int = 8, control: tuple[str, ...] = (), seed: int = 0, template: str = CHATML, **tokenizer: Any
    ) -> Path:
        own = tiny.byte_tokenizer(template, control=control, **tokenizer)
        path = tmp_path_factory.mktemp("model")
        return tiny.save_model(
            path, own, rows=len(own) + padding, max_position_embeddings=4096, initializer_range=0.5, seed=seed
        )

    return make


def config(mirror: Path, student: Path, teacher: Path, *overrides: str) -> Config:
    settings = [f"model.name={student}", f"teacher.model={teacher}", f"data.mirror={mirror}", f"teacher.top_k={TOP_K}"]
    data = ["tasks=[nli]", "languages=[en]", "data.max_train_per_task=6", "data.max_validation_per_task=2"]
    loss = ["distillation.loss=forward_kl", "store.encoding=exact"]
    return load_config([], [*settings, *data, *loss, *overrides])


def batch_of(store: TeacherStore) -> Batch:
    order = ExampleOrder({"nli": np.arange(len(store.examples))}, np.zeros(len(store.examples), dtype=int), seed=0)
    plan = BatchPlan(global_batch_size=6, micro_batch_size=6, world_size=1, rank=0)
    return MicroBatches(lambda: store, order, plan, view="zeroshot", top_k=None)[0, 0]


def answer_logits(model: Path, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        logits = network(input_ids=batch.input_ids_BL, use_cache=False).logits
    return logits.flatten(0, 1)[batch.answer_index_T]


def live_divergence(student_TV: torch.Tensor, teacher_TV: torch.Tensor, foreign: list[int], size: int) -> torch.Tensor:
    """KL(teacher ‖ student), in float64, of the teacher's K likeliest common tokens and of any other one."""
    common = teacher_TV.double().clone()
    common[:, size:] = common[:, foreign] = -torch.inf
    ids = common.topk(TOP_K, dim=-1).indices
    p = teacher_TV.double().softmax(-1).gather(1, ids)
    q = student_TV.double().softmax(-1).gather(1, ids)
    p, q = (torch.cat([x, 1 - x.sum(dim=1, keepdim=True)], dim=1) for x in (p, q))
    return (p * (p.log() - q.log())).sum(dim=1)


@pytest.mark.parametrize(
    ("student", "teacher", "foreign"),
    [
        ({}, {"padding": 40}, []),
        ({"padding": 40}, {"padding": 0}, []),
        ({}, {"control": ("<tool>", "<think>")}, []),
        ({"control": ("<tool>", "<think>")}, {}, [BYTES, BYTES + 1]),
        ({"control": ("<tool>", "<a>")}, {"control": ("<tool>", "<b>")}, [BYTES + 1]),
        ({"control": ("<tool>",)}, {"padding": 0}, []),  # the teacher has no row for the student's token
    ],
    ids=["more rows", "fewer rows", "more tokens", "fewer tokens", "other tokens", "fewer tokens and rows"],
)
def test_a_student_learns_what_a_live_teacher_says(
    model: Model,
    mirror: Path,
    tmp_path: Path,
    student: dict[str, Any],
    teacher: dict[str, Any],
    foreign: list[int],
) -> None:
    """From the store as from full logits; and a token that one of them lacks counts only in the tail."""
    ours, theirs = model(**student, seed=1), model(**teacher)
    settings = config(mirror, ours, theirs)
    build_store(settings, str(tmp_path / "store"), ("zeroshot",))
    store = TeacherStore.open(str(tmp_path / "store"))
    rows_of = {path: json.loads((path / "config.json").read_text())["vocab_size"] for path in (ours, theirs)}
    assert store.info.vocab_size == rows_of[theirs]
    batch = batch_of(store)
    teacher_TV, student_TV = answer_logits(theirs, batch), answer_logits(ours, batch)
    assert (student_TV.shape[1], teacher_TV.shape[1]) == (rows_of[ours], rows_of[theirs])
    size = min(store.info.tokenizer_size, rows_of[theirs])
    if foreign:  # the teacher would rank them: they are no better than other tokens of a random model
        assert np.isin(teacher_TV.topk(TOP_K).indices.numpy(), foreign).any()
    assert not np.isin(batch.top_ids_TK.numpy(), foreign).any()
    assert int(batch.top_ids_TK.max()) < size
    assert batch.teacher is not None
    torch.testing.assert_close(
        batch.teacher.logsumexp_T.double(), teacher_TV.double().logsumexp(-1), atol=TOLERANCE, rtol=0
    )
    read = read_logits(student_TV, batch.gold_T, batch.top_ids_TK.long(), with_rest=True)
    found = make_loss(settings.distillation, store.info.vocab_size)(read, batch.teacher)
    expected = live_divergence(student_TV, teacher_TV, foreign, size)
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE, rtol=TOLERANCE)
    runs = [[foreign[0], foreign[-1]]] if foreign else None
    assert store.info.identity["identity"].get("excluded") == runs


def train(settings: list[str], store: Path, output: Path, view: str = "zeroshot") -> None:
    steps = ["training.max_steps=1", "training.warmup_steps=0", "training.global_batch_size=4"]
    cheap = ["training.num_workers=0", "training.use_lora=false", "tasks=[nli]"]
    train_command.main(["--store", str(store), "--view", view, "--output", str(output), *steps, *cheap, *settings])


@pytest.mark.parametrize(("student", "teacher"), [(8, 40), (40, 0)])
def test_training_leaves_the_student_its_own_rows(
    model: Model, mirror: Path, tmp_path: Path, student: int, teacher: int
) -> None:
    ours = model(padding=student)
    build_store(config(mirror, ours, model(padding=teacher)), str(tmp_path / "store"), ("zeroshot",))
    train([f"model.name={ours}"], tmp_path / "store", tmp_path / "run")
    saved = json.loads((tmp_path / "run/final/config.json").read_text())
    assert saved["vocab_size"] == BYTES + student


def test_a_teacher_without_the_student_s_end_of_turn_teaches_the_rest(
    model: Model, mirror: Path, tmp_path: Path
) -> None:
    """Its row would be beyond the teacher's last."""
    ours = model(control=("<stop>",), template=CHATML.replace("<|im_end|>", "<stop>"))
    theirs = model(padding=0)
    build_store(config(mirror, ours, theirs), str(tmp_path / "store"), ("zeroshot",))
    store = TeacherStore.open(str(tmp_path / "store"))
    assert store.info.untaught == (BYTES,)
    assert store.info.vocab_size == BYTES
    batch = batch_of(store)
    assert batch.teacher is not None
    assert batch.teacher.taught_T is not None
    assert torch.equal(batch.teacher.taught_T == 0, batch.gold_T == BYTES)
    train([f"model.name={ours}"], tmp_path / "store", tmp_path / "run")


def test_a_teacher_that_means_other_tokens_is_refused_with_the_first_of_them(
    model: Model, mirror: Path, tmp_path: Path
) -> None:
    ours, theirs = model(), model(turn=("<|im_end|>", "<|im_start|>"))
    with pytest.raises(ConfigError) as refused:
        build_store(config(mirror, ours, theirs), str(tmp_path / "store"), ("zeroshot",))
    assert (
        f"id 258 is '<|im_start|>' for {ours} and '<|im_end|>' for {theirs}, whose '<|im_start|>' is id 259"
    ) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_a_teacher_of_another_tokenizer_is_refused_as_such(mirror: Path, model: Model, tmp_path: Path) -> None:
    words = tiny.word_tokenizer(300)
    words.chat_template = CHATML
    other = tiny.save_model(tmp_path / "words", words, rows=300)
    says = r"teacher.model: expected the tokens of \S+, got another tokenizer's: \d+ ids are other tokens \(id 0 is '!'"
    with pytest.raises(ConfigError, match=says):
        build_store(config(mirror, model(), other), str(tmp_path / "store"), ["zeroshot"])


def test_a_store_for_one_tokenizer_serves_students_of_another_that_means_the_same(
    model: Model, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One with more tokens; one that lacks a token which the store does not hold; not one that lacks a ranked one."""
    built_for = model(control=("<tool>",))
    store = tmp_path / "store"
    build_store(config(mirror, built_for, built_for, "teacher.top_k=200"), str(store), ("zeroshot",))
    ranked = TeacherStore.open(str(store)).read_shard("zeroshot", 0).token_ids
    assert (ranked == BYTES).any()  # `<tool>`
    train([f"model.name={model(control=('<tool>', '<more>'))}"], store, tmp_path / "more")
    assert (tmp_path / "more/final/model.safetensors").exists()
    fewer = model()
    with pytest.raises(SystemExit):
        train([f"model.name={fewer}"], store, tmp_path / "fewer")
    line = f"model.name: id {BYTES} is '<tool>' for {built_for} and no token for {fewer}, and the store at {store}"
    assert line in capsys.readouterr().err
    train([f"model.name={fewer}"], store, tmp_path / "none", view="none")  # no answer holds that token
    other_turns = model(turn=("<|im_end|>", "<|im_start|>"), control=("<tool>",))
    with pytest.raises(SystemExit):
        train([f"model.name={other_turns}"], store, tmp_path / "turns", view="none")
    assert f"id 258 is '<|im_start|>' for {built_for} and '<|im_end|>' for {other_turns}" in capsys.readouterr().err


def test_ids_are_compared_with_the_tokenizer_that_built_the_store_or_not_at_all(
    model: Model, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built_for, student = model(), model(control=("<more>",))
    store = tmp_path / "store"
    build_store(config(mirror, built_for, built_for), str(store), ("zeroshot",))
    tiny.byte_tokenizer(CHATML, control=("<new>",)).save_pretrained(built_for)
    with pytest.raises(SystemExit):
        train([f"model.name={student}"], store, tmp_path / "run")
    assert f"{built_for} has a different one now, so they cannot be compared" in capsys.readouterr().err
    built_for.rename(tmp_path / "moved")
    with pytest.raises(SystemExit):
        train([f"model.name={student}"], store, tmp_path / "run")
    assert "cannot be opened to compare them" in capsys.readouterr().err
