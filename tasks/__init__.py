"""What is asked: examples, prompts, demonstrations, parsing and scoring; one file per task."""

from tasks.common import LANGUAGES, Example, Task, TaskError

TASKS: dict[str, Task] = {}

__all__ = ["LANGUAGES", "TASKS", "Example", "Task", "TaskError"]
