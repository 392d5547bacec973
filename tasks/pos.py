"""POS: tag each token with its part of speech. Universal Dependencies, mapped to twelve tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.tasks.common import LANGUAGES, HubSource, Source, class_name
from logitbank.tasks.scoring.labels import accuracy_metrics
from logitbank.tasks.scoring.tags import TagAnswers, fit_length, parse_tags, ratio

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
    """One of the twelve tags for a UPOS name or class number; None if it is neither."""
    if tag in ("_", "CONJ"):
        return "X" if tag == "_" else "CONJ"
    name = class_name(tag, UPOS)
    return None if name is None else _UPOS_TO_TAG.get(name, name)


class POS(TagAnswers):
    """Part-of-speech tagging: one tag for each token, scored by token accuracy."""

    name = "pos"
    system_prompt = f"Tag each token with its POS: {' '.join(TAGS)}."
    languages: tuple[str, ...] = LANGUAGES
    sources: Mapping[str, Source] = {"udpos": Source(_hub, train_languages=LANGUAGES, eval_languages=LANGUAGES)}
    num_demonstrations = 5
    max_new_tokens = 150
    primary_metric = "accuracy"
    tag_column = "pos_tags"

    def tag_of(self, value: Any) -> str | None:
        """See `study_tag`."""
        return study_tag(value)

    def parse(self, output: str) -> list[str] | None:
        """Tags in order, whatever their case, UD's own names folded as in the gold tags.

        A word that is not a tag among them stays, and is wrong.
        """
        words = parse_tags(output, _KNOWN.__contains__)
        return None if words is None else [study_tag(word) or word for word in words]

    def statistics(
        self, output: str, reference: Sequence[str], language: str, protocol: str | None = None
    ) -> dict[str, float]:
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


TASK = POS()
