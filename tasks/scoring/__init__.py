"""Reading and scoring answers."""

__all__ = [
    "likelihood",
]
