"""NLI: does the premise entail the hypothesis? Trained on MultiNLI, evaluated on XNLI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logitbank.tasks.common import LANGUAGES, Example, HubSource, Source, class_name
from logitbank.tasks.scoring.labels import LabelAnswers

LABELS = ("entailment", "neutral", "contradiction")  # in the order of the hub's class labels


def _train_on_multi_nli(split: str, language: str) -> HubSource:
    if split == "train":
        return HubSource("nyu-mll/multi_nli", "default", "train")
    return HubSource("facebook/xnli", language, split)


def _train_on_xnli(split: str, language: str) -> HubSource:
    return HubSource("facebook/xnli", language, split)


class NLI(LabelAnswers):
    """Three-way natural language inference, scored by accuracy."""

    name = "nli"
    system_prompt = "You are an NLI classifier. Output one of: entailment, neutral, contradiction."
    languages: tuple[str, ...] = LANGUAGES
    sources: Mapping[str, Source] = {
        "multi_nli": Source(_train_on_multi_nli, train_languages=("en",), eval_languages=LANGUAGES),
        "xnli": Source(_train_on_xnli, train_languages=("en",), eval_languages=LANGUAGES),
    }
    num_demonstrations = 5
    max_new_tokens = 5
    labels = LABELS

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row without label (-1) or without text is none."""
        label = class_name(row["label"], LABELS)
        fields = {"premise": row["premise"], "hypothesis": row["hypothesis"]}
        if label is None or not all(text.strip() for text in fields.values()):
            return None
        return Example(example_id, self.name, language, fields, answer=label)

    def user_message(self, example: Example) -> str:
        """Premise and hypothesis, a line each."""
        return f"Premise: {example.fields['premise']}\nHypothesis: {example.fields['hypothesis']}"


TASK = NLI()
