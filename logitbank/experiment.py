"""The vocabulary of an experiment, which all rooms share: views, conditions, and what a training run leaves behind.

A *view* is what a teacher was shown when it was asked for an answer; a store has rows for each of its views. A
*condition* says what was evaluated: a model before training, or a student that learned from a view or from none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from logitbank.errors import ConfigError

QUESTION_VIEWS = ("fewshot", "zeroshot", "shuffled_answers")
CONVERSATION_VIEWS = ("fewshot", "zeroshot", "context")
VIEWS = tuple(dict.fromkeys(QUESTION_VIEWS + CONVERSATION_VIEWS))
DEFAULT_VIEWS = ("fewshot", "zeroshot")
TELLING_VIEWS = ("fewshot", "context")  # these show the teacher more than the student sees
NO_VIEW = "none"  # as `--view` spells cross-entropy alone
TRAINING_RECORD = "training.json"  # beside the weights that training wrote
EXPORT_RECORD = "export.json"  # beside those that export-model wrote
CONDITION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
CHECKPOINT_NAME = re.compile(r"final|best|checkpoint-\d+")  # of a directory that training wrote


@dataclass(frozen=True)
class Condition:
    """What was evaluated.

    Attributes:
        name: as tables show it.
        trained: whether it is a student; otherwise the model before training.
        view: the teacher view that such a student of a study learns from; None for cross-entropy alone, and untrained.
        demonstrations: whether it is evaluated with demonstrations in its prompt.
    """

    name: str
    trained: bool
    view: str | None = None
    demonstrations: bool = False


CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition("base", trained=False),
        Condition("fewshot", trained=False, demonstrations=True),
        Condition("finetuned", trained=True),
        Condition("distilled", trained=True, view="fewshot"),
        Condition("control", trained=True, view="zeroshot"),
        Condition("shuffled_answers", trained=True, view="shuffled_answers"),
    )
}
STUDENTS = ("finetuned", "distilled", "control")  # of the study, in its order
STUDY_CONDITIONS = ("base", "fewshot", *STUDENTS)
# (minuend, subtrahend): the differences that tables form between trained conditions
GAPS = (("distilled", "finetuned"), ("control", "finetuned"), ("distilled", "control"))


def condition_of(view: str | None, *, teacher: str | None = None, model: str = "") -> str:
    """The name of the condition of students, by what they learned from.

    | learned from | condition |
    | --- | --- |
    | no teacher | `finetuned` |
    | another model than the student's base model, under any view | `distilled` |
    | the base model, shown more than the student is: `fewshot`, `context` | `distilled` |
    | the base model, shown the same: `zeroshot` | `control` |
    | the base model under another view | the view's own name |

    Args:
        view: the teacher view; None for cross-entropy alone.
        teacher: hub id or path of the teacher; None for the base model itself.
        model: hub id or path of the base model.
    """
    if view is None:
        return "finetuned"
    if view in TELLING_VIEWS or (teacher is not None and not is_same_model(teacher, model)):
        return "distilled"
    return "control" if view == "zeroshot" else view


def is_same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: a hub id and a local copy of it share their last part.

    Not so the names that training gives to its checkpoints, such as `final`: these are compared as paths.
    """
    last = Path(one).name
    if last != Path(other).name:
        return False
    return not CHECKPOINT_NAME.fullmatch(last) or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def model_label(name: str) -> str:
    """The last part of a hub id or path; with the one before it where any checkpoint has that name: `big/final`."""
    parts = Path(name).parts
    return "/".join(parts[-2:] if CHECKPOINT_NAME.fullmatch(parts[-1]) else parts[-1:]).lstrip("/")


def view_of_argument(argument: str) -> str | None:
    """The view that `--view` names; None for `none`."""
    return None if argument == NO_VIEW else argument


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a training run says of itself beside its weights, in `training.json`.

    Attributes:
        run: name of the run, unique.
        condition: see `condition_of`.
        model: hub id or path of the base model.
        view: teacher view, or several joined by `+`; None for cross-entropy alone.
        seed: of the run.
        config: the whole configuration, as nested mappings.
        store: URL of the teacher store.
        store_fingerprint: of the store.
        view_fingerprint: of the view; None without one.
        versions: package -> version.
        template: hash of the chat template that made its prompts.
        training_set: hash of the store's training examples.
        teacher: hub id or path of the teacher; None without one.
        top_k: ranks that the store holds; None without a teacher.
        held_out_fold: the fold of the store that it left out; None if it left out none.
        step: optimizer step after which the weights were written.
        seconds: training time up to then; None before the end.
        finished_at: ISO 8601; None before the end.
        rows: which rows of a label store it learned from: `train`, `external` or `all`; None for a teacher store.
        scorers: hash of the weights that scored the rows it learned from; None for a teacher store.
        best_step: the step of least log loss on the selection part so far; None without evaluations.
        best_log_loss: that log loss, in nats.
        stopped_early: whether training ended because that step was too long ago; None before the end.

    What has a default is None in the records of earlier versions.
    """

    run: str
    condition: str
    model: str
    view: str | None
    seed: int
    config: Mapping[str, Any]
    store: str
    store_fingerprint: str
    view_fingerprint: str | None
    versions: Mapping[str, str]
    template: str | None = None
    training_set: str | None = None
    teacher: str | None = None
    top_k: int | None = None
    held_out_fold: int | None = None
    step: int | None = None
    seconds: float | None = None
    finished_at: str | None = None
    rows: str | None = None
    scorers: str | None = None
    best_step: int | None = None
    best_log_loss: float | None = None
    stopped_early: bool | None = None

    @classmethod
    def read(cls, directory: Path) -> TrainingRecord | None:
        """The record beside a checkpoint's weights; None if another program trained them and left none.

        Fields of a later version are left out.

        Raises:
            ConfigError: a file that is not such a record.
        """
        path = directory / TRAINING_RECORD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"--checkpoint: {path} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ConfigError(f"--checkpoint: {path}: expected a JSON object, got {type(content).__name__}")
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in content.items() if name in known})
        except TypeError:
            lacking = [field.name for field in fields(cls) if field.default is not None and field.name not in content]
            raise ConfigError(
                f"--checkpoint: {path}: expected the record of a training run, but these keys are missing: "
                f"{', '.join(lacking)}; "
                "delete the file if another program wrote it"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object; `read` takes it back."""
        return asdict(self)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat
