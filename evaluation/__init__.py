"""Let a model answer, score the answers, and make tables of the scores."""

__all__ = [
    "checkpoints",
    "run",
]
