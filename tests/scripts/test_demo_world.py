"""The demo's world: reproducible, readable through the tasks' own code, and undecidable without demonstrations."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from logitbank.configs import load_config
from logitbank.scripts import demo_world as demo
from logitbank.tasks import LANGUAGES, TASKS, DataSettings
from logitbank.tasks.data import cells, demonstration_pool, load_examples, training_examples
from logitbank.tasks.prompts import PromptEncoder
from tests.tasks.scores import score as score_outputs


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "hub"
    demo.write_mirror(folder, demo.World(train_rows=24, eval_rows=30))
    return folder


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(mirror: Path, tmp_path: Path) -> None:
    demo.write_mirror(tmp_path / "same", demo.World(train_rows=24, eval_rows=30))
    demo.write_mirror(tmp_path / "other", demo.World(seed=1, train_rows=24, eval_rows=30))

    assert _digest(tmp_path / "same") == _digest(mirror)
    different = [name for name, digest in _digest(tmp_path / "other").items() if _digest(mirror)[name] != digest]
    assert all(name in different for name in _digest(mirror) if name.endswith(".parquet"))


@pytest.mark.parametrize(("task", "language"), cells(demo.drawn_tasks(), list(LANGUAGES)).present)
def test_every_cell_of_the_mirror_loads_through_the_tasks_own_code(task: str, language: str, mirror: Path) -> None:
    examples = load_examples(task, "test", language, DataSettings(mirror=str(mirror)))
    score = score_outputs(
        TASKS[task],
        [example.answer for example in examples],
        [TASKS[task].reference(example) for example in examples],
        language,
    )
    assert len(examples) == 30
    assert score[TASKS[task].primary_metric] == 1.0
    assert (
        len(training_examples(task, [language], DataSettings(mirror=str(mirror)))) >= 22
    )  # GSM8K keeps a twentieth back
    wanted = load_config(["demo"]).fewshot.num_demonstrations[task]
    assert len(demonstration_pool(task, language, DataSettings(mirror=str(mirror)), stage="eval")) > wanted


def test_training_labels_are_wrong_as_often_as_asked_and_test_labels_never(tmp_path: Path) -> None:
    demo.write_mirror(tmp_path, demo.World(scheme=1, train_rows=400, eval_rows=50, label_noise=0.3))
    right = demo.LABELS["pos"][1]

    def wrong(split: str) -> float:
        examples = load_examples("pos", split, "en", DataSettings(mirror=str(tmp_path)))
        pairs = [
            (tag, right[demo.word_class(word)])
            for example in examples
            for word, tag in zip(example.fields["tokens"], example.answer.split(), strict=True)
        ]
        return sum(tag != label for tag, label in pairs) / len(pairs)

    assert wrong("train") == pytest.approx(0.3, abs=0.04)
    assert wrong("test") == 0.0


@pytest.mark.parametrize("task", demo.drawn_tasks())
def test_a_question_alone_leaves_its_answer_open_and_the_scheme_decides_it(task: str) -> None:
    """Over the schemes the same word gets several labels, under one scheme a single one."""
    answers: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for scheme in range(demo.SCHEMES):
        draw = demo.Draw(demo.LEXICON[:4], scheme, 0.0, random.Random(scheme))
        for _ in range(400):
            example = demo.to_example(task, draw.row(task))
            # The word that decides the first label begins the sentence or question that ends the message.
            words = demo.SENTENCE_WORDS if task in ("pos", "ner") else demo.QUESTION_WORDS
            word = TASKS[task].user_message(example).split()[-words]
            answers[word][scheme].add(example.answer.split()[0])
    assert len(answers) == demo.CLASSES
    assert all(len(found) == 1 for by_scheme in answers.values() for found in by_scheme.values())
    # Two classes of ner and one of pa have the same label under every scheme; every other word's is open.
    open_words = [word for word, by_scheme in answers.items() if len(set.union(*by_scheme.values())) > 1]
    assert len(open_words) >= {"ner": 2, "pa": 3}.get(task, 4)


def test_each_language_has_words_that_english_lacks() -> None:
    for language in LANGUAGES[1:]:
        assert set(demo.words_of(language)) - set(demo.words_of("en"))
    assert set().union(*map(demo.words_of, LANGUAGES)) == set(demo.LEXICON)


@pytest.mark.parametrize("task", demo.drawn_tasks())
def test_pretraining_sees_the_very_ids_of_the_commands_prompts(task: str) -> None:
    tokenizer = demo.build_tokenizer()
    encoder = PromptEncoder(tokenizer)
    conversations = demo.Conversations(tokenizer, demo.Pretraining())
    draw = demo.Draw(demo.LEXICON, 2, 0.3, random.Random(7))
    *shown, query = [
        dataclasses.replace(demo.to_example(task, draw.row(task)), example_id=str(index)) for index in range(4)
    ]

    ids, weights = conversations.render(task, [*shown, query])

    prompt = encoder.encode_prompt(TASKS[task], query, shown, max_tokens=1000)
    assert prompt is not None
    answer = encoder.encode_answer(query.answer)
    assert ids == [*prompt.ids, *answer]
    assert weights[-len(answer) :] == [1 / len(answer)] * len(answer)
    assert weights[len(ids) - len(answer) - 1] == 0
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(answer[:-1]) == query.answer
    assert sum(weight > 0 for weight in weights) == 4 * len(answer)


def test_a_few_steps_of_pretraining_lower_the_loss_reproducibly() -> None:
    plan = demo.Pretraining(layers=1, width=32, steps=40, batch=4, warmup=5, learning_rate=5e-3)
    tokenizer = demo.build_tokenizer()

    def losses() -> list[float]:
        model = demo.build_model(tokenizer, plan)
        return list(demo.pretrain(model, demo.Conversations(tokenizer, plan), plan))

    first = losses()
    assert sum(first[-5:]) < 0.8 * sum(first[:5])
    assert first == losses()


def test_what_is_there_is_kept_and_what_was_made_otherwise_is_made_anew(tmp_path: Path) -> None:
    plan = demo.Pretraining(layers=1, width=32, steps=2, batch=2)
    demo.make_model(tmp_path, plan)
    weights = tmp_path / "model.safetensors"
    written = weights.stat().st_mtime_ns

    demo.make_model(tmp_path, plan)
    assert weights.stat().st_mtime_ns == written

    demo.make_model(tmp_path, dataclasses.replace(plan, steps=3))
    assert weights.stat().st_mtime_ns != written
    loaded = demo.Qwen3ForCausalLM.from_pretrained(tmp_path)
    assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())
