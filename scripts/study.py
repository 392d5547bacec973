"""`logitbank study NAME …`: whole experiments."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.command import CommandGroup, CommandParser

GROUP = CommandGroup(
    "logitbank study",
    "Whole experiments, from teachers to tables. Run the same command to resume.",
    {
        "xtreme": ("logitbank.scripts.xtreme", "teacher caches, three students and five conditions of each model"),
        "gsm8k": ("logitbank.scripts.gsm8k", "GSM8K at every checkpoint, with both ablations of the teacher"),
        "lambda-sweep": ("logitbank.scripts.lambda_sweep", "many students from one store: λ, strategy, view, seed"),
        "preference": ("logitbank.scripts.preference", "teachers out of fold into one calibrated model of preferences"),
        "on-policy": ("logitbank.scripts.on_policy", "answers that the student samples, against given ones"),
        "incontext": ("logitbank.scripts.incontext", "what demonstrations are worth, over many synthetic worlds"),
    },
)


def make_parser() -> CommandParser:
    """The name of a study, and its arguments."""
    return GROUP.make_parser()


def make_tree() -> CommandParser:
    """All studies with their arguments."""
    return GROUP.make_tree()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    GROUP.main(argv)
