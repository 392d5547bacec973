"""Train a student from a teacher store, with no teacher in memory."""

__all__ = [
    "collator",
    "dataset",
    "records",
    "taught",
    "train",
]
