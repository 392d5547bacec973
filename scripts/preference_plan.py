"""The commands of a preference study, as data: what runs after what, and what may run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from logitbank.configs import Config, load_config
from logitbank.errors import ConfigError
from logitbank.experiment import NO_VIEW, flatten
from logitbank.scripts.stages import launcher

Command = tuple[str, ...]
STUDENTS = ("distilled", "finetuned")
CALIBRATED_ON = ("validation", "folds")


@dataclass(frozen=True)
class Teacher:
    """A model that scores the training comparisons.

    Attributes:
        name: of its view and of its directory.
        model: hub id or path; None if `files` names it.
        files: configurations of its own, merged after those of the study.
    """

    name: str
    model: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One step of the study.

    Attributes:
        title: what it does.
        tasks: may run side by side; the commands of one task follow one another.
        after: indices, in the list of stages, of those that have to succeed first.
        gpu: whether a model runs in it.
        shared: whether several workers may run all of it at once and share the work.
    """

    title: str
    tasks: tuple[tuple[Command, ...], ...]
    after: tuple[int, ...] = ()
    gpu: bool = True
    shared: bool = False


@dataclass(frozen=True)
class Plan:
    """What a preference study does.

    Attributes:
        output: everything goes there.
        teachers: at least one, names unique.
        files: `--config` of every command.
        overrides: `key=value` of every command.
        post_pretrain: whether first train each teacher on the external comparisons.
        student_rows: `--rows` of the students.
        quantize: how the merged student is quantised; None leaves it as it is.
        calibrate_on: which rows fit temperatures: of `validation`, or of the `folds` that students left out.
        processes: of training and scoring, started by `accelerate launch`; None: one, without a launcher.
    """

    output: Path
    teachers: tuple[Teacher, ...]
    files: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    post_pretrain: bool = False
    student_rows: str = "all"
    quantize: str | None = None
    calibrate_on: str = "validation"
    processes: int | None = None

    @cached_property
    def config(self) -> Config:
        """The students' configuration.

        Raises:
            ConfigError: see `load_config`; or tasks other than `preference`.
        """
        config = load_config(self.files, self.overrides)
        if not config.is_preference:
            raise ConfigError(f"tasks: expected [preference], got [{', '.join(config.tasks)}]; add --config preference")
        return config

    def check(self) -> None:
        """Refuse settings that some command would refuse, before the first one runs.

        Raises:
            ConfigError: see `load_config`; or external comparisons that are asked for and not given.
        """
        for teacher in self.teachers:
            self._teacher_config(teacher)
        if not self.config.preference.external:
            asked = "--post-pretrain" if self.post_pretrain else "--student-rows external"
            if self.post_pretrain or self.student_rows == "external":
                raise ConfigError(f"preference.external: expected a file or hub id for {asked}, got none")

    @property
    def folds(self) -> range:
        """The numbers of the folds."""
        return range(self.config.preference.folds)

    @property
    def store(self) -> str:
        """URL of the label store."""
        return str(self.output / "store")

    @property
    def results(self) -> str:
        """Directory of the result rows."""
        return str(self.output / "results")

    @property
    def merged(self) -> str:
        """Directory of the mean of the distilled students."""
        return str(self.output / "merged")

    @property
    def quantised(self) -> str:
        """Directory of its quantised copy."""
        return str(self.output / "quantised")

    def student(self, name: str, fold: int) -> str:
        """Directory of the weights that a student keeps."""
        return str(self.output / name / f"fold-{fold}" / _kept(self.config))

    def stages(self) -> list[Stage]:
        """Every step, in an order in which they can run one after another."""
        found: list[Stage] = []

        def add(title: str, tasks: Sequence[Sequence[Command]], *, gpu: bool = True, shared: bool = False) -> None:
            after = (len(found) - 1,) if found else ()
            found.append(Stage(title, tuple(map(tuple, tasks)), after, gpu, shared))

        add(
            "rows and folds",
            [[self._command("build-teacher-cache", "--store", self.store, "--view", NO_VIEW)]],
            gpu=False,
        )
        if self.post_pretrain:
            add("post-pretrain on the external rows, and merge", [self._post_pretrain(each) for each in self.teachers])
        add("teachers, one for each fold that it does not see", self._each_fold(self._train_teacher))
        scored = [command for [command] in self._each_fold(self._score)]
        add("score each fold by the teacher that did not see it", [scored], shared=True)
        add("prove it", [[("inspect-cache", "--store", self.store, "--verify")]], gpu=False)
        students = [[self._train_student(name, fold)] for name in STUDENTS for fold in self.folds]
        add("students of each fold, with and without teachers", students)
        add("average and merge the distilled students", [self._merge()], gpu=False)
        if self.quantize is not None:
            add(f"quantise ({self.quantize})", [[self._quantize(self.quantize)]])
        add("calibrate, and evaluate on the test split", self._evaluations())
        add("submission and tables", [self._report()], gpu=False)
        return found

    def _each_fold(self, make: Callable[[Teacher, int], Command]) -> list[list[Command]]:
        return [[make(teacher, fold)] for teacher in self.teachers for fold in self.folds]

    def _post_pretrain(self, teacher: Teacher) -> list[Command]:
        home = self._home(teacher)
        trained = self._teacher_command(
            teacher, "train-student", "--store", self.store, "--view", NO_VIEW, "--rows", "external",
            "--output", str(home / "base"), own_model=True,
        )  # fmt: skip
        kept = str(home / "base" / _kept(self._teacher_config(teacher)))
        return [trained, ("export-model", "--checkpoint", kept, "--output", str(home / "model"))]

    def _train_teacher(self, teacher: Teacher, fold: int) -> Command:
        output = str(self._home(teacher) / f"fold-{fold}")
        return self._teacher_command(
            teacher, "train-student", "--store", self.store, "--view", NO_VIEW, "--held-out-fold", str(fold),
            "--output", output,
        )  # fmt: skip

    def _score(self, teacher: Teacher, fold: int) -> Command:
        checkpoint = str(self._home(teacher) / f"fold-{fold}" / _kept(self._teacher_config(teacher)))
        return self._teacher_command(
            teacher, "build-teacher-cache", "--store", self.store, "--view", teacher.name, "--fold", str(fold),
            "--checkpoint", checkpoint,
        )  # fmt: skip

    def _train_student(self, name: str, fold: int) -> Command:
        views = [teacher.name for teacher in self.teachers] if name == "distilled" else [NO_VIEW]
        shown = [word for view in views for word in ("--view", view)]
        rows = [] if self.student_rows == "all" else ["--rows", self.student_rows]
        output = str(self.output / name / f"fold-{fold}")
        return self._command(
            "train-student", "--store", self.store, *shown, "--held-out-fold", str(fold), *rows, "--output", output,
            "--results", self.results,
        )  # fmt: skip

    def _merge(self) -> list[Command]:
        students = [self.student("distilled", fold) for fold in self.folds]
        return [("export-model", "--average", *students, "--output", self.merged)]

    def _quantize(self, how: str) -> Command:
        own = ("--bits", "8", "--fallback", "int8") if how == "gptq" else ()
        places = ("--checkpoint", self.merged, "--output", self.quantised, "--store", self.store)
        return ("export-model", *places, "--quantize", how, *own)

    def _evaluations(self) -> list[list[Command]]:
        tasks = [[self._evaluate(self.student(name, fold))] for name in STUDENTS for fold in self.folds]
        for task, fold in zip(tasks, self.folds, strict=False):  # the distilled ones, whose folds weigh the ensemble
            task.append(self._evaluate_held_out(self.student("distilled", fold)))
        tasks.append([self._evaluate(self.merged, "merged")])
        if self.quantize is not None:
            tasks.append([self._evaluate(self.quantised, "quantised")])
        return tasks

    def _evaluate(self, checkpoint: str, condition: str | None = None) -> Command:
        named = () if condition is None else ("--condition", condition, "--new-condition")
        rows = ("--store", self.store) if self.calibrate_on == "folds" else ()
        own = ("--checkpoint", checkpoint, "--calibrate", *rows, "--results", self.results)
        return self._command("evaluate-model", *named, *own)

    def _evaluate_held_out(self, checkpoint: str) -> Command:
        own = ("--checkpoint", checkpoint, "--store", self.store, "--results", self.results)
        return self._command("evaluate-model", *own, overrides=["evaluation.split=held_out"])

    def _report(self) -> list[Command]:
        own = ("query-results", "--results", self.results)
        chosen = ("--condition", "distilled", "--ensemble", "cv")
        return [
            (*own, "submission", *chosen, "--output", str(self.output / "submission.csv")),
            (*own, "tables"),
            (*own, "--store", self.store, "report", "--output", str(self.output / "report.md")),
        ]

    def _home(self, teacher: Teacher) -> Path:
        return self.output / "teachers" / teacher.name

    def _teacher_config(self, teacher: Teacher) -> Config:
        return load_config(
            [*self.files, *teacher.files], self._overrides(teacher.files, self._model_of(teacher, own=True))
        )

    def _model_of(self, teacher: Teacher, *, own: bool) -> list[str]:
        """What a teacher's commands say of its model: its own, or what post-pretraining made of that."""
        if self.post_pretrain and not own:
            return [f"model.name={self._home(teacher) / 'model'}"]
        return [] if teacher.model is None else [f"model.name={teacher.model}"]

    def _teacher_command(self, teacher: Teacher, *words: str, own_model: bool = False) -> Command:
        return self._command(*words, files=teacher.files, overrides=self._model_of(teacher, own=own_model))

    def _command(self, *words: str, files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Command:
        every = (*self.files, *files)
        configs = ("--config", *every) if every else ()
        launch = launcher(self.processes) if words[0] == "train-student" or "--fold" in words else []
        return (*launch, *words, *configs, *self._overrides(files, overrides))

    def _overrides(self, files: Sequence[str], overrides: Sequence[str]) -> list[str]:
        """Those of the study, but for the keys that a teacher's own files and overrides have, then the latter."""
        own = {override.partition("=")[0] for override in overrides}.union(*map(_keys_of, files))
        return [*(override for override in self.overrides if override.partition("=")[0] not in own), *overrides]


def _keys_of(file: str) -> set[str]:
    """The dotted keys of a YAML file; none of one that `load_config` refuses."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()
    return set(flatten(content)) if isinstance(content, dict) else set()


def _kept(config: Config) -> str:
    """Which checkpoint of a run is used: the best, where evaluations choose one."""
    return "final" if config.training.eval_steps is None else "best"
