"""POS: tag each token with its part of speech. Universal Dependencies, mapped to twelve tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.tasks.common import LANGUAGES, Example, HubSource, Source, class_name, score_by_statistics
from logitbank.tasks.scoring.labels import accuracy_metrics
from logitbank.tasks.scoring.tags import fit_length, parse_tags, ratio

TAGS = ("NOUN", "VERB", "ADJ", "ADV", "PRON", "DET", "ADP", "NUM", "CONJ", "PART", "PUNCT", "X")
# The hub's class labels, in its order.
UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
_UPOS_TO_TAG = {"AUX": "VERB", "PROPN": "NOUN", "CCONJ": "CONJ", "SCONJ": "CONJ", "INTJ": "X", "SYM": "X"}
_KNOWN = {*TAGS, *UPOS}
_CONFIG_NAMES = {
    "en": "English",
    "hi": "Hindi",
    "es": "Spanish",
    "de": "German",
    "fr": "French",
    "zh": "Chinese",
}


def _hub(split: str, language: str) -> HubSource:
    return HubSource("google/xtreme", f"udpos.{_CONFIG_NAMES[language]}", split)


def study_tag(tag: Any) -> str | None:
    """One of the twelve tags for a UPOS name or class number; None where it is neither."""
    if tag in ("_", "CONJ"):
        return "X" if tag == "_" else "CONJ"
    name = class_name(tag, UPOS)
    return None if name is None else _UPOS_TO_TAG.get(name, name)


class POS:
    """Part-of-speech tagging: one tag for each token, scored by token accuracy."""

    name = "pos"
    system_prompt = f"Tag each token with its POS: {' '.join(TAGS)}."
    languages: tuple[str, ...] = LANGUAGES
    sources: Mapping[str, Source] = {"udpos": Source(_hub, train_languages=LANGUAGES, eval_languages=LANGUAGES)}
    num_demonstrations = 5
    max_new_tokens = 150
    primary_metric = "accuracy"

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row without tokens, or with a token that has no tag or is blank, is none."""
        tokens = tuple(row["tokens"])
        tags = [study_tag(tag) for tag in row["pos_tags"]]
        known = [tag for tag in tags if tag is not None]
        if not tokens or len(tokens) != len(known) or len(known) != len(tags):
            return None
        if not all(token.strip() for token in tokens):
            return None
        return Example(example_id, self.name, language, {"tokens": tokens}, answer=" ".join(known))

    def user_message(self, example: Example) -> str:
        """The tokens, separated by spaces."""
        return f"Tokens: {' '.join(example.fields['tokens'])}"

    def reference(self, example: Example) -> list[str]:
        """One tag for each token."""
        return example.answer.split()

    def parse(self, output: str) -> list[str] | None:
        """Tags in order, whatever their case; a word that is no tag among them stays, and is wrong."""
        return parse_tags(output, _KNOWN.__contains__)

    def statistics(self, output: str, reference: Sequence[str], language: str) -> dict[str, float]:
        """`correct` and `tokens`: counts; and `parse_failure`. A missing tag is wrong, surplus ignored."""
        tags = self.parse(output)
        fitted = fit_length(tags, len(reference), missing="")
        return {
            "correct": float(sum(tag == gold for tag, gold in zip(fitted, reference, strict=True))),
            "tokens": float(len(reference)),
            "parse_failure": float(tags is None),
        }

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """`accuracy` over tokens, and `parse_failure`."""
        return accuracy_metrics({**means, "correct": ratio(means["correct"], means["tokens"])})

    def score(self, outputs: Sequence[str], references: Sequence[Sequence[str]], language: str) -> dict[str, float]:
        """Token `accuracy` over all tokens of all sentences."""
        return score_by_statistics(self, outputs, references, language)


TASK = POS()
