"""`logitbank COMMAND …` and `python -m logitbank COMMAND …`: every command under one name."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank import __version__
from logitbank.command import CommandGroup

GROUP = CommandGroup(
    "logitbank",
    "Run the teacher once; train every student from its cached logits.",
    {
        "build-teacher-cache": ("logitbank.teacher_cache.build_command", "run a teacher once and fill a store"),
        "inspect-cache": ("logitbank.teacher_cache.inspection.command", "what a store holds, and whether it is sound"),
        "train-student": ("logitbank.student_train.train_command", "train a student from a store"),
        "export-model": ("logitbank.student_train.export.command", "average, merge and quantise what training wrote"),
        "evaluate-model": ("logitbank.evaluation.evaluate_command", "let a model answer, and score the answers"),
        "sample-answers": ("logitbank.evaluation.sample_command", "let a model answer the training examples"),
        "query-results": ("logitbank.evaluation.query_command", "tables, SQL and reports over results"),
        "push": ("logitbank.teacher_cache.sharing.push_command", "share a store: pack it, and put it on the hub"),
        "pull": ("logitbank.teacher_cache.sharing.pull_command", "copy a shared store into a directory"),
        "import": ("logitbank.teacher_cache.exchange.import_command", "take over a cache that another toolkit wrote"),
        "export": ("logitbank.teacher_cache.exchange.export_command", "give a store to another toolkit"),
        "demo": ("logitbank.scripts.demo", "the whole path on a tiny model, with no download"),
        "study": ("logitbank.scripts.study", "a whole experiment, from teachers to tables"),
        "slurm": ("logitbank.scripts.slurm.command", "the study on a Slurm cluster"),
        "completion": ("logitbank.completion", "a script that completes all of this in your shell"),
    },
    version=__version__,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    GROUP.main(argv)


if __name__ == "__main__":
    main()
