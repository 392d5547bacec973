"""A teacher of another name: prompted by its own chat template, answering with the student's tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from logitbank.configs import Config, ConfigError, load_config
from logitbank.storage import TeacherStore
from logitbank.student_train.batch import MicroBatches
from logitbank.student_train.losses.answer_logits import read_logits
from logitbank.student_train.losses.base import make_loss
from logitbank.student_train.losses.step_loss import step_loss
from logitbank.student_train.order import ExampleOrder
from logitbank.student_train.split import BatchPlan
from logitbank.teacher_cache.build import build_store, estimate_store
from tests.plans import gather
from tests.teacher_cache.conftest import CHATML

OWN_WORDS = CHATML.replace("<|im_start|>", "# ")  # the same end of turn
OWN_END = CHATML.replace("<|im_end|>", "</s>")
SPACE_FIRST = CHATML.replace("{{ message.content }}", " {{ message.content }}")


@pytest.fixture(scope="module")
def student(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def config(student: Path, mirror: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        settings = [f"model.name={student}", f"data.mirror={mirror}", "tasks=[nli,pos]", "languages=[en]"]
        limits = ["data.max_train_per_task=6", "data.max_validation_per_task=2", "data.max_student_tokens=800"]
        shots = ["fewshot.num_demonstrations={nli: 2, pos: 2}", "data.max_teacher_tokens=2500"]
        return load_config([], [*settings, *limits, *shots, "teacher.top_k=20", *overrides])

    return make


def prompts(config: Config, view: str) -> list[str]:
    prepared = gather(config, (view,))
    return [str(prepared.encoder.tokenizer.decode(it.prompt_ids)) for it in prepared.views[view].sequences]


def test_it_is_prompted_by_its_own_template(make_model: Callable[..., Path], config: Callable[..., Config]) -> None:
    teacher = make_model(OWN_WORDS)
    for view in ("fewshot", "zeroshot"):
        ours, theirs = prompts(config(), view), prompts(config(f"teacher.model={teacher}"), view)
        assert all(text.endswith("<|im_start|>assistant\n") for text in ours)
        assert theirs == [text.replace("<|im_start|>", "# ") for text in ours]
    with_teacher, alone = (gather(config(*extra), ("zeroshot",)) for extra in ([f"teacher.model={teacher}"], []))
    assert with_teacher.examples == alone.examples


def test_the_store_says_which_tokens_it_was_not_asked_for(
    make_model: Callable[..., Path],
    config: Callable[..., Config],
    student: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher = make_model(OWN_END)
    with caplog.at_level("INFO", logger="logitbank.teacher_cache.pairing"):
        build_store(config(f"teacher.model={teacher}"), str(tmp_path / "own"), ("zeroshot",))
    said = [record.getMessage() for record in caplog.records if "end of turn" in record.getMessage()]
    assert said == [
        f"teacher.model: {teacher} ends a turn with </s>, the student with <|im_end|>: "
        "the end of turn carries no teacher term"
    ]
    end_of_turn = AutoTokenizer.from_pretrained(student).convert_tokens_to_ids("<|im_end|>")
    store = TeacherStore.open(str(tmp_path / "own"))
    assert store.info.untaught == (end_of_turn,)
    assert all(store.examples.answer_ids(i)[-1] == end_of_turn for i in range(len(store.examples)))
    for name, template in (("words", OWN_WORDS), ("same", CHATML)):
        build_store(config(f"teacher.model={make_model(template)}"), str(tmp_path / name), ("zeroshot",))
        assert TeacherStore.open(str(tmp_path / name)).info.untaught == ()


def test_the_template_is_part_of_the_fingerprint_only_where_it_differs(
    make_model: Callable[..., Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    identities = {}
    for name, template in (("same", CHATML), ("words", OWN_WORDS)):
        build_store(config(f"teacher.model={make_model(template)}"), str(tmp_path / name), ("zeroshot",))
        identities[name] = TeacherStore.open(str(tmp_path / name)).info.identity["identity"]
    assert set(identities["same"]) == {"template", "seed"}
    assert identities["words"]["template"] == identities["same"]["template"]
    assert identities["words"]["teacher_template"] not in ("", identities["same"]["template"])


def test_answers_with_other_token_ids_are_refused(
    make_model: Callable[..., Path], config: Callable[..., Config]
) -> None:
    teacher = make_model(SPACE_FIRST)
    with pytest.raises(ConfigError, match=r"teacher.model: expected answers with the token ids .*a space before"):
        estimate_store(config(f"teacher.model={teacher}"))


def test_an_estimate_counts_what_a_build_reads(config: Callable[..., Config], tmp_path: Path) -> None:
    views = ("fewshot", "zeroshot")
    expected = estimate_store(config(), views)
    tally = build_store(config(), str(tmp_path / "store"), views)
    assert expected.tokens == tally.tokens
    assert expected.answer_tokens * len(views) == tally.answer_tokens
    store = TeacherStore.open(str(tmp_path / "store"))
    assert expected.examples == len(store.examples)
    by_task = {cell.task: cell.answer_tokens for cell in expected.cells}
    lengths = np.asarray(store.examples.answer_length)
    for number, task in enumerate(store.info.tasks):
        assert by_task[task] == lengths[np.asarray(store.examples.task) == number].sum()


def test_demonstrations_follow_the_seed(config: Callable[..., Config]) -> None:
    def shown(*overrides: str) -> dict[str, str]:
        prepared = gather(config("data.max_train_per_task=24", *overrides), ("fewshot",))
        texts = [str(prepared.encoder.tokenizer.decode(it.prompt_ids)) for it in prepared.views["fewshot"].sequences]
        return {record.example_id: text for record, text in zip(prepared.examples, texts, strict=True)}

    first, again, other = shown(), shown(), shown("seed=7")
    assert first == again
    common = set(first) & set(other)
    assert len(common) > 20
    different = sum(first[example] != other[example] for example in common)
    assert different > 0.8 * len(common)  # two of 23 or more, by chance the same for 1 in 500


def test_a_student_takes_no_teacher_term_from_an_end_of_turn_that_is_not_the_teacher_s(
    make_model: Callable[..., Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    for name, template, taught_end in (("other", OWN_END, False), ("same", OWN_WORDS, True)):
        url = str(tmp_path / name)
        build_store(config(f"teacher.model={make_model(template)}", "tasks=[nli]"), url, ("zeroshot",))
        store = TeacherStore.open(url)
        order = ExampleOrder({"nli": np.arange(len(store.examples))}, np.zeros(len(store.examples), dtype=int), seed=0)
        plan = BatchPlan(global_batch_size=4, micro_batch_size=4, world_size=1, rank=0)
        batch = MicroBatches(lambda store=store: store, order, plan, view="zeroshot", top_k=None)[0, 0]
        tokens = len(batch.gold_T)
        logits_TV = torch.randn(tokens, store.info.vocab_size, generator=torch.Generator().manual_seed(0))
        student = read_logits(logits_TV, batch.gold_T, batch.top_ids_TK.long())
        kd_term = make_loss(config().distillation, store.info.vocab_size)
        loss = step_loss(
            student, batch.teacher, kd_term=kd_term, lambda_T=torch.ones(tokens), step_tokens=batch.step_tokens
        )
        ends = batch.gold_T == AutoTokenizer.from_pretrained(config().model.name).convert_tokens_to_ids("<|im_end|>")
        assert ends.sum() == 4
        assert (loss.kd_T[~ends] > 0).all()
        assert bool((loss.kd_T[ends] > 0).all()) == taught_end
        assert taught_end or not loss.kd_T[ends].any()
        assert (loss.ce_T > 0).all()
