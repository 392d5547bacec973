"""PA: are two sentences paraphrases? PAWS-X, which has no Hindi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logitbank.tasks.common import Example, HubSource, Source, class_name
from logitbank.tasks.scoring.labels import LabelAnswers

LABELS = ("no", "yes")  # the hub's classes 0 and 1
PAWSX_LANGUAGES = ("en", "es", "de", "fr", "zh")


def _hub(split: str, language: str) -> HubSource:
    return HubSource("google-research-datasets/paws-x", language, split)


class PA(LabelAnswers):
    """Paraphrase identification, scored by accuracy."""

    name = "pa"
    system_prompt = "Classify if the sentences are paraphrases. Output yes or no."
    languages: tuple[str, ...] = PAWSX_LANGUAGES
    sources: Mapping[str, Source] = {
        "paws-x": Source(_hub, train_languages=PAWSX_LANGUAGES, eval_languages=PAWSX_LANGUAGES)
    }
    num_demonstrations = 5
    max_new_tokens = 5
    labels = LABELS

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row without label or with an untranslated sentence (empty, or `NS` on the hub) is none."""
        label = class_name(row["label"], LABELS)
        fields = {"sentence1": row["sentence1"], "sentence2": row["sentence2"]}
        if label is None or any(text.strip() in ("", "NS") for text in fields.values()):
            return None
        return Example(example_id, self.name, language, fields, answer=label)

    def user_message(self, example: Example) -> str:
        """Both sentences, a line each."""
        return f"Sentence 1: {example.fields['sentence1']}\nSentence 2: {example.fields['sentence2']}"


TASK = PA()
