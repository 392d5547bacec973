"""PA: are two sentences paraphrases? PAWS-X, which has no Hindi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.tasks.common import Example, HubSource, Source, class_name, score_by_statistics
from logitbank.tasks.scoring.labels import accuracy_metrics, label_statistics, parse_label

LABELS = ("no", "yes")  # the hub's classes 0 and 1
PAWSX_LANGUAGES = ("en", "es", "de", "fr", "zh")


def _hub(split: str, language: str) -> HubSource:
    return HubSource("google-research-datasets/paws-x", language, split)


class PA:
    """Paraphrase identification, scored by accuracy."""

    name = "pa"
    system_prompt = "Classify if the sentences are paraphrases. Output yes or no."
    languages: tuple[str, ...] = PAWSX_LANGUAGES
    sources: Mapping[str, Source] = {
        "paws-x": Source(_hub, train_languages=PAWSX_LANGUAGES, eval_languages=PAWSX_LANGUAGES)
    }
    num_demonstrations = 5
    max_new_tokens = 5
    primary_metric = "accuracy"
    labels = LABELS  # what `evaluation.method=likelihood` compares

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row without label or with an untranslated sentence (empty, or `NS` on the hub) is none."""
        label = class_name(row["label"], LABELS)
        fields = {"sentence1": row["sentence1"], "sentence2": row["sentence2"]}
        if label is None or any(not text or text.strip() in ("", "NS") for text in fields.values()):
            return None
        return Example(example_id, self.name, language, fields, answer=label)

    def user_message(self, example: Example) -> str:
        """Both sentences, a line each."""
        return f"Sentence 1: {example.fields['sentence1']}\nSentence 2: {example.fields['sentence2']}"

    def reference(self, example: Example) -> str:
        """`yes` or `no`."""
        return example.answer

    def parse(self, output: str) -> str | None:
        """The first `yes` or `no`."""
        return parse_label(output, LABELS)

    def statistics(self, output: str, reference: str, language: str) -> dict[str, float]:
        """`correct` and `parse_failure`."""
        return label_statistics(output, reference, LABELS)

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """`accuracy` and `parse_failure`."""
        return accuracy_metrics(means)

    def score(self, outputs: Sequence[str], references: Sequence[str], language: str) -> dict[str, float]:
        """`accuracy` over all outputs, those that cannot be read included as wrong."""
        return score_by_statistics(self, outputs, references, language)


TASK = PA()
