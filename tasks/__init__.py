"""What is asked: examples, prompts, demonstrations, parsing and scoring; one file per task."""

from tasks.common import LANGUAGES, Example, Source, Task, TaskError
from tasks.gsm8k import GSM8K
from tasks.ner import NER
from tasks.nli import NLI
from tasks.pa import PA
from tasks.pos import POS
from tasks.qa import QA

TASKS: dict[str, Task] = {task.name: task for task in (GSM8K(), NLI(), PA(), QA(), NER(), POS())}

__all__ = ["LANGUAGES", "TASKS", "Example", "Source", "Task", "TaskError"]
