"""Run a frozen teacher once over the training examples and fill a store."""

__all__ = [
    "build",
    "on_ray",
]
