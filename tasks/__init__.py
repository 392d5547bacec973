"""What is asked: examples, prompts, demonstrations, parsing and scoring; one file per task."""

from logitbank.errors import TaskError
from logitbank.registry import TASKS
from logitbank.tasks.common import LANGUAGES, UNDETERMINED, Example, ReadsFiles, Source, Task
from logitbank.tasks.settings import ChatSettings, DataSettings, PreferenceSettings

__all__ = [
    "LANGUAGES",
    "TASKS",
    "UNDETERMINED",
    "ChatSettings",
    "DataSettings",
    "Example",
    "PreferenceSettings",
    "ReadsFiles",
    "Source",
    "Task",
    "TaskError",
    "answers",
    "common",
    "conversations",
    "data",
    "demonstrations",
    "encoding",
    "files",
    "ner",
    "nli",
    "outside",
    "pos",
    "preference",
    "prompts",
    "settings",
    "spool",
]
