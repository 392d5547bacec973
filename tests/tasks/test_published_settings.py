"""Every task asks as the published study did: its data, its demonstrations, how long an answer may be, its metric."""

from __future__ import annotations

import pytest

from logitbank.tasks import TASKS, DataSettings, TaskError
from logitbank.tasks.data import get_source, load_examples, training_examples

# task -> demonstrations, new tokens, primary metric, first source
SETTINGS = {
    "nli": (5, 5, "accuracy", "multi_nli"),
    "pa": (5, 5, "accuracy", "paws-x"),
    "qa": (3, 60, "f1", "mlqa"),
    "ner": (5, 150, "f1", "wikiann"),
    "pos": (5, 150, "accuracy", "udpos"),
    "gsm8k": (8, 400, "accuracy", "gsm8k"),
}
# (task, source, split, language) -> repository, configuration, split
DATA = {
    ("nli", "multi_nli", "train", "en"): ("nyu-mll/multi_nli", "default", "train"),
    ("nli", "multi_nli", "validation", "zh"): ("facebook/xnli", "zh", "validation"),
    ("nli", "multi_nli", "test", "en"): ("facebook/xnli", "en", "test"),
    ("nli", "xnli", "train", "en"): ("facebook/xnli", "en", "train"),
    ("nli", "xnli", "test", "hi"): ("facebook/xnli", "hi", "test"),
    ("pa", "paws-x", "train", "en"): ("google-research-datasets/paws-x", "en", "train"),
    ("pa", "paws-x", "test", "fr"): ("google-research-datasets/paws-x", "fr", "test"),
    ("qa", "mlqa", "train", "en"): ("rajpurkar/squad", "plain_text", "train"),
    ("qa", "mlqa", "validation", "hi"): ("google/xtreme", "MLQA.hi.hi", "validation"),
    ("qa", "mlqa", "test", "de"): ("google/xtreme", "MLQA.de.de", "test"),
    ("qa", "xquad", "train", "en"): ("rajpurkar/squad", "plain_text", "train"),
    ("qa", "xquad", "validation", "en"): ("google/xtreme", "MLQA.en.en", "validation"),
    ("qa", "xquad", "test", "zh"): ("google/xtreme", "XQuAD.zh", "validation"),
    ("ner", "wikiann", "train", "es"): ("unimelb-nlp/wikiann", "es", "train"),
    ("ner", "wikiann", "test", "zh"): ("unimelb-nlp/wikiann", "zh", "test"),
    ("pos", "udpos", "train", "en"): ("google/xtreme", "udpos.English", "train"),
    ("pos", "udpos", "test", "zh"): ("google/xtreme", "udpos.Chinese", "test"),
    ("gsm8k", "gsm8k", "train", "en"): ("openai/gsm8k", "main", "train[:95%]"),
    ("gsm8k", "gsm8k", "validation", "en"): ("openai/gsm8k", "main", "train[95%:]"),
    ("gsm8k", "gsm8k", "test", "en"): ("openai/gsm8k", "main", "test"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_task_has_the_study_s_settings(name: str) -> None:
    task = TASKS[name]
    found = (task.num_demonstrations, task.max_new_tokens, task.primary_metric, next(iter(task.sources)))
    assert found == SETTINGS[name]


@pytest.mark.parametrize(("place", "expected"), DATA.items(), ids=["-".join(place) for place in DATA])
def test_a_split_comes_from_the_study_s_data(place: tuple[str, str, str, str], expected: tuple[str, str, str]) -> None:
    task, source, split, language = place
    hub = TASKS[task].sources[source].hub(split, language)
    assert (hub.path, hub.config, hub.split) == expected


@pytest.mark.parametrize(("output", "parsed"), [("  Rome \n", "Rome"), (" \n", None), ("", None)])
def test_an_answer_to_a_question_is_its_whole_text(output: str, parsed: str | None) -> None:
    assert TASKS["qa"].parse(output) == parsed


@pytest.mark.parametrize(
    ("first", "second", "label", "answer"),
    [
        ("A cat.", "One cat.", 1, "yes"),
        ("A cat.", "A dog.", 0, "no"),
        ("NS", "One cat.", 1, None),
        ("A cat.", " NS ", 1, None),
        ("", "One cat.", 1, None),
        ("A cat.", "One cat.", -1, None),
    ],
)
def test_a_pair_that_was_not_translated_or_labelled_is_no_example(
    first: str, second: str, label: int, answer: str | None
) -> None:
    found = TASKS["pa"].to_example({"sentence1": first, "sentence2": second, "label": label}, "de", "pa/de/test/0")
    assert (found and found.answer) == answer


def test_a_source_is_one_of_the_tasks() -> None:
    assert get_source("qa", "xquad") is TASKS["qa"].sources["xquad"]
    assert get_source("qa") is TASKS["qa"].sources["mlqa"]
    with pytest.raises(TaskError, match=r"data\.sources\.qa: expected one of mlqa, xquad, got 'squad'"):
        get_source("qa", "squad")


def test_languages_without_training_data_are_refused_before_any_is_loaded() -> None:
    with pytest.raises(TaskError, match="nli has no train split in 'hi', only in en"):
        load_examples("nli", "train", "hi", DataSettings(mirror="nowhere"))
    with pytest.raises(TaskError, match=r"data\.train_languages: expected one of english, in_language, got 'all'"):
        training_examples("nli", ["en"], DataSettings(mirror="nowhere"), train_languages="all")
