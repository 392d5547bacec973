"""What is asked: examples, prompts, demonstrations, parsing and scoring; one file per task."""

from logitbank.errors import TaskError
from logitbank.registry import TASKS
from logitbank.tasks.common import LANGUAGES, Example, Source, Task

__all__ = [
    "LANGUAGES",
    "TASKS",
    "Example",
    "Source",
    "Task",
    "TaskError",
    "common",
    "data",
    "demonstrations",
    "encoding",
    "ner",
    "nli",
    "pos",
    "prompts",
]
