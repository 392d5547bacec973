"""NER: tag persons, organisations and places. WikiANN, scored by span F1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.tasks.common import LANGUAGES, HubSource, Source, class_name
from logitbank.tasks.scoring.tags import TagAnswers, fit_length, parse_tags, ratio

TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")  # in the order of the hub's class labels
_TAG = re.compile(r"O|[BI]-[A-Z]+")


def _is_tag(word: str) -> bool:
    return _TAG.fullmatch(word) is not None


def _hub(split: str, language: str) -> HubSource:
    return HubSource("unimelb-nlp/wikiann", language, split)


class NER(TagAnswers):
    """Named entity recognition: one IOB2 tag for each token."""

    name = "ner"
    system_prompt = "Tag each token: O B-PER I-PER B-ORG I-ORG B-LOC I-LOC."
    languages: tuple[str, ...] = LANGUAGES
    sources: Mapping[str, Source] = {"wikiann": Source(_hub, train_languages=LANGUAGES, eval_languages=LANGUAGES)}
    num_demonstrations = 5
    max_new_tokens = 150
    primary_metric = "f1"
    tag_column = "ner_tags"

    def tag_of(self, value: Any) -> str | None:
        """The IOB2 tag of a class name or number."""
        return class_name(value, TAGS)

    def parse(self, output: str) -> list[str] | None:
        """Tags in order, whatever their case; a word that is not a tag among them becomes `O`."""
        words = parse_tags(output, _is_tag)
        return None if words is None else [word if _is_tag(word) else "O" for word in words]

    def statistics(
        self, output: str, reference: Sequence[str], language: str, protocol: str | None = None
    ) -> dict[str, float]:
        """Counts of spans: `true_positives`, `predicted`, `gold`; and `parse_failure`."""
        tags = self.parse(output)
        predicted = spans(fit_length(tags, len(reference), missing="O"))
        gold = spans(reference)
        return {
            "true_positives": float(len(predicted & gold)),
            "predicted": float(len(predicted)),
            "gold": float(len(gold)),
            "parse_failure": float(tags is None),
        }

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Micro-averaged `f1`, `precision`, `recall`; 0 where a denominator is, as seqeval has it."""
        correct, predicted, gold = means["true_positives"], means["predicted"], means["gold"]
        return {
            "f1": ratio(2 * correct, predicted + gold),
            "precision": ratio(correct, predicted),
            "recall": ratio(correct, gold),
            "parse_failure": means["parse_failure"],
        }


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of an IOB2 sequence as (type, first token, last token), as seqeval reads them.

    It repairs malformed sequences as conlleval did before it: an I- that continues no entity of its type
    begins one.
    """
    from seqeval.metrics.sequence_labeling import get_entities  # imports scikit-learn, which takes a second

    return set(get_entities(list(tags)))


TASK = NER()
