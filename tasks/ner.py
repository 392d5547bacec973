"""NER: tag persons, organisations and places. WikiANN, scored by span F1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank.tasks.common import LANGUAGES, Example, HubSource, Source, class_name, score_by_statistics
from logitbank.tasks.scoring.tags import fit_length, parse_tags, ratio

TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")  # in the order of the hub's class labels
_TAG = re.compile(r"O|[BI]-[A-Z]+")


def _is_tag(word: str) -> bool:
    return _TAG.fullmatch(word) is not None


def _hub(split: str, language: str) -> HubSource:
    return HubSource("unimelb-nlp/wikiann", language, split)


class NER:
    """Named entity recognition: one IOB2 tag for each token."""

    name = "ner"
    system_prompt = "Tag each token: O B-PER I-PER B-ORG I-ORG B-LOC I-LOC."
    languages: tuple[str, ...] = LANGUAGES
    sources: Mapping[str, Source] = {"wikiann": Source(_hub, train_languages=LANGUAGES, eval_languages=LANGUAGES)}
    num_demonstrations = 5
    max_new_tokens = 150
    primary_metric = "f1"

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row without tokens, or with a token that has no tag or is blank, is none."""
        tokens = tuple(row["tokens"])
        tags = [class_name(tag, TAGS) for tag in row["ner_tags"]]
        if not tokens or len(tokens) != len(tags) or not all(token.strip() for token in tokens):
            return None
        known = [tag for tag in tags if tag is not None]
        if len(known) != len(tags):
            return None
        return Example(example_id, self.name, language, {"tokens": tokens}, answer=" ".join(known))

    def user_message(self, example: Example) -> str:
        """The tokens, separated by spaces."""
        return f"Tokens: {' '.join(example.fields['tokens'])}"

    def reference(self, example: Example) -> list[str]:
        """One tag for each token."""
        return example.answer.split()

    def parse(self, output: str) -> list[str] | None:
        """Tags in order, whatever their case; a word that is no tag among them stands as `O`."""
        words = parse_tags(output, _is_tag)
        return None if words is None else [word if _is_tag(word) else "O" for word in words]

    def statistics(self, output: str, reference: Sequence[str], language: str) -> dict[str, float]:
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

    def score(self, outputs: Sequence[str], references: Sequence[Sequence[str]], language: str) -> dict[str, float]:
        """Span `f1`, `precision` and `recall`: type and both ends must agree."""
        return score_by_statistics(self, outputs, references, language)


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of an IOB2 sequence as (type, first token, last token).

    Malformed sequences are repaired as seqeval (and conlleval before it) does: an I- that continues
    no entity of its type begins one.
    """
    found: set[tuple[str, int, int]] = set()
    open_type, start = "", 0
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        continues = prefix == "I" and kind == open_type
        if open_type and not continues:
            found.add((open_type, start, position - 1))
            open_type = ""
        if prefix in ("B", "I") and not continues:
            open_type, start = kind, position
    return found


TASK = NER()
