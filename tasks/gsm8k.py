"""GSM8K: grade school mathematics in English; the answer is a solution that ends in `#### n`.

The data set has no validation split, so the last twentieth of the training split stands in for it and
is never trained on. Demonstrations come from the rest of the training split, at evaluation too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from logitbank.tasks.common import Example, HubSource, Source, Task
from logitbank.tasks.scoring.labels import accuracy_metrics

_SPLITS = {"train": "train[:95%]", "validation": "train[95%:]", "test": "test"}
_MINUS = "-\N{MINUS SIGN}"
# A sign counts only if it is not an operator: `12-5` ends in 5, `= -5` in minus 5.
_NUMBER = re.compile(rf"(?:(?<![\w)])([{_MINUS}]))?(?:\$([{_MINUS}])?)?(\d[\d,]*(?:\.\d+)?|\.\d+)")

_MARKED = re.compile(r"####\s*([\d,]+)")


def _hub(split: str, language: str) -> HubSource:
    return HubSource("openai/gsm8k", "main", _SPLITS[split])


class GSM8K(Task):
    """Grade school mathematics, scored by the final number."""

    name = "gsm8k"
    system_prompt = "Solve the math problem step by step. End with #### and the final number."
    languages: tuple[str, ...] = ("en",)
    sources: Mapping[str, Source] = {
        "gsm8k": Source(_hub, train_languages=("en",), eval_languages=("en",), eval_demonstrations="train")
    }
    num_demonstrations = 8
    max_new_tokens = 400
    primary_metric = "accuracy"
    labels: tuple[str, ...] = ()

    def to_example(self, row: Mapping[str, Any], language: str, example_id: str) -> Example | None:
        """A row without question or whose solution has no final number is none."""
        solution = row["answer"].strip()
        if not row["question"].strip() or "####" not in solution or final_number(solution) is None:
            return None
        return Example(example_id, self.name, language, {"question": row["question"]}, answer=solution)

    def user_message(self, example: Example) -> str:
        """The problem."""
        return str(example.fields["question"])

    def reference(self, example: Example) -> str:
        """The gold solution with its `#### n`."""
        return example.answer

    def parse(self, output: str) -> Decimal | None:
        """The final number."""
        return final_number(output)

    def statistics(self, output: str, reference: str, language: str, protocol: str | None = None) -> dict[str, float]:
        """`correct`, `strictly_correct` and `parse_failure`.

        Final numbers are compared as numbers, so `1,000`, `$1000` and `1000.0` are one. Strictly correct is
        what ends in `####` and exactly the digits of the gold solution, the number that papers report.
        """
        number = final_number(output)
        correct = number is not None and number == final_number(reference)
        digits = marked_digits(output)
        return {
            "correct": float(correct),
            "strictly_correct": float(digits is not None and digits == marked_digits(reference)),
            "parse_failure": float(number is None),
        }

    def metrics(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """`accuracy`, `parse_failure` and, where it was counted, `strict_accuracy`; older results lack it."""
        strict = {"strict_accuracy": means["strictly_correct"]} if "strictly_correct" in means else {}
        return {**accuracy_metrics(means), **strict}


def marked_digits(text: str) -> str | None:
    """The digits after the first `####` that any follow, commas left out; None without them."""
    found = _MARKED.search(text)
    return found.group(1).replace(",", "") or None if found else None


def final_number(text: str) -> Decimal | None:
    """The number after the first `####` on its line, else the last number of the text; None without one.

    A model that does not stop continues with further problems, which is why it is the first `####`.
    """
    _, marker, rest = text.partition("####")
    lines = rest.strip().splitlines()
    if marker and lines and (number := _NUMBER.search(lines[0])):
        return _value(number)
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(match: re.Match[str]) -> Decimal:
    sign, sign_after_dollar, digits = match.groups()
    value = Decimal(digits.replace(",", ""))
    return -value if sign or sign_after_dollar else value


TASK = GSM8K()
