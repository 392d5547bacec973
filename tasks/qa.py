"""QA: answer a question with a span of the context. Trained on SQuAD, evaluated on MLQA or XQuAD.

The two benchmarks normalise answers differently, in English too:

- `squad`, after the evaluation of SQuAD v1.1 (Rajpurkar et al., 2016), which XQuAD uses for every
  language: lower case, ASCII punctuation out, English articles out.
- `mlqa`, after the evaluation of MLQA v1 (Lewis et al., 2020): lower case, every character of a
  Unicode punctuation category and ASCII symbols out, the articles of the language out, and for
  Chinese every ideograph its own token.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from logitbank.tasks.common import Example, HubSource, Source, Task, TaskError

MLQA_LANGUAGES = ("en", "hi", "es", "de", "zh")
PROTOCOLS = ("mlqa", "squad")

_ENGLISH_ARTICLES = r"\b(?:a|an|the)\b"
# The articles that the MLQA evaluation takes out; it names none for Hindi and Chinese. Its Arabic
# pattern takes the two letters out wherever they occur.
_MLQA_ARTICLES: dict[str, str | None] = {
    "en": _ENGLISH_ARTICLES,
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "hi": None,
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": "ال",
    "zh": None,
}
_IDEOGRAPH = re.compile("([\u4e00-\u9fa5])")


def _hub(test: Callable[[str], HubSource]) -> Callable[[str, str], HubSource]:
    def hub(split: str, language: str) -> HubSource:
        if split == "train":
            return HubSource("rajpurkar/squad", "plain_text", "train")
        if split == "validation":
            return HubSource("google/xtreme", f"MLQA.{language}.{language}", "validation")
        return test(language)

    return hub


def _mlqa_test(language: str) -> HubSource:
    return HubSource("google/xtreme", f"MLQA.{language}.{language}", "test")


def _xquad_test(language: str) -> HubSource:
    return HubSource("google/xtreme", f"XQuAD.{language}", "validation")  # the only split it has


class QA(Task):
    """Extractive question answering, scored by token F1 and exact match."""

    name = "qa"
    system_prompt = "Answer the question based on the context. Be concise."
    languages: tuple[str, ...] = MLQA_LANGUAGES
    sources: Mapping[str, Source] = {
        "mlqa": Source(_hub(_mlqa_test), train_languages=("en",), eval_languages=MLQA_LANGUAGES),
        "xquad": Source(
            _hub(_xquad_test),
            train_languages=("en",),
            eval_languages=MLQA_LANGUAGES,
            protocol="squad",
        ),
    }
    num_demonstrations = 3
    max_new_tokens = 60
    primary_metric = "f1"
    labels: tuple[str, ...] = ()

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row whose gold answers are all empty is none; the first gold answer is the one taught."""
        answers = tuple(text for text in row["answers"]["text"] if text.strip())
        if not answers or not row["question"].strip():
            return None
        fields = {"context": row["context"], "question": row["question"], "answers": answers}
        return Example(example_id, self.name, language, fields, answer=answers[0])

    def user_message(self, example: Example) -> str:
        """Context and question, a line each."""
        return f"Context: {example.fields['context']}\nQuestion: {example.fields['question']}"

    def reference(self, example: Example) -> list[str]:
        """All gold answers."""
        return list(example.fields["answers"])

    def parse(self, output: str) -> str | None:
        """The whole text without surrounding space; None if nothing is left."""
        return output.strip() or None

    def statistics(
        self, output: str, reference: Sequence[str], language: str, protocol: str | None = None
    ) -> dict[str, float]:
        """`f1` and `exact_match`, each the best over the gold answers, and `parse_failure`.

        No gold answer at all counts as the empty one.

        Raises:
            TaskError: an unknown protocol, or a language that the MLQA evaluation does not define.
        """
        protocol = protocol or PROTOCOLS[0]
        golds = [reference] if isinstance(reference, str) else list(reference) or [""]
        prediction = normalize_answer(output, language, protocol)
        normalized = [normalize_answer(gold, language, protocol) for gold in golds]
        return {
            "f1": max(token_f1(prediction, gold) for gold in normalized),
            "exact_match": float(prediction in normalized),
            "parse_failure": float(self.parse(output) is None),
        }

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """`f1`, `exact_match` and `parse_failure`."""
        return {name: means[name] for name in ("f1", "exact_match", "parse_failure")}


def normalize_answer(text: str, language: str, protocol: str) -> str:
    """Tokens that count, joined by single spaces."""
    if protocol == "squad":
        kept = "".join(character for character in text.lower() if character not in string.punctuation)
        return " ".join(re.sub(_ENGLISH_ARTICLES, " ", kept).split())
    if protocol != "mlqa":
        raise TaskError(f"qa: protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if language not in _MLQA_ARTICLES:
        raise TaskError(f"qa: the MLQA evaluation is defined for {', '.join(_MLQA_ARTICLES)}, not for {language!r}")
    kept = "".join(character for character in text.lower() if not _is_mlqa_punctuation(character))
    articles = _MLQA_ARTICLES[language]
    if articles is not None:
        kept = re.sub(articles, " ", kept)
    if language == "zh":
        kept = _IDEOGRAPH.sub(r" \1 ", kept)
    return " ".join(kept.split())


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the bags of space-separated tokens; 0 where they share none, both empty included."""
    predicted, expected = prediction.split(), gold.split()
    shared = (Counter(predicted) & Counter(expected)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def _is_mlqa_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


TASK = QA()
