"""The stages of an experiment, in this process or as processes of their own; each does what is not done yet."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import logitbank
from logitbank.cluster import RayOptions
from logitbank.configs import Config, load_config
from logitbank.experiment import CONDITIONS, DEFAULT_VIEWS, NO_VIEW
from logitbank.processes import run_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stages:
    """Teacher, students and evaluation of one model.

    Attributes:
        name: of the model, for headings.
        files: configurations, merged left to right.
        overrides: `key=value`, merged last.
        store: URL of the teacher store.
        results: directory of the result rows.
        processes: how many that `accelerate launch` starts for teacher and students; None: this one does it all.
    """

    name: str
    files: Sequence[str]
    overrides: Sequence[str]
    store: str
    results: Path
    processes: int | None = None

    @cached_property
    def config(self) -> Config:
        """The configuration that every stage shares.

        Raises:
            ConfigError: see `load_config`.
        """
        return load_config(self.files, self.overrides)

    def sample(self, output: Path, overrides: Sequence[str] = ()) -> Path:
        """Have `sampling.model` answer the training examples; returns the file of its answers."""
        heading(f"{self.name}: answers for {output.parent.name}")
        if self.config.evaluation.engine == "vllm":
            self._launch("sample-answers", ["--output", str(output)], [*self.overrides, *overrides])
            return output
        return logitbank.sample_answers([*self.files, *self.overrides, *overrides], output=output)

    def build(self, views: Sequence[str] = DEFAULT_VIEWS, answers: Path | None = None) -> None:
        """Fill the store's views, with the answers of a file if there is one."""
        heading(f"{self.name}: teacher cache ({', '.join(views)})")
        if self.processes is not None or self.config.teacher.engine == "vllm":  # vLLM keeps its memory to the end
            shown = [item for view in views for item in ("--view", view)]
            written = [] if answers is None else ["--answers", str(answers)]
            self._launch("build-teacher-cache", ["--store", self.store, *shown, *written], self.overrides)
            return
        logitbank.build(self.config, store=self.store, views=views, answers=answers)

    def build_on_ray(self, views: Sequence[str], options: RayOptions) -> None:
        """Fill the store's views with actors on the cluster of these options, as many as fit."""
        heading(f"{self.name}: teacher cache ({', '.join(views)})")
        from logitbank.teacher_cache.on_ray import Recipe, build_on_ray

        plain = RayOptions(options.address, seconds=options.seconds)
        build_on_ray(Recipe(self.files, self.overrides, self.store, views), plain)

    def train(self, view: str | None, output: Path, overrides: Sequence[str] = ()) -> None:
        """Train one student, from its newest checkpoint on."""
        heading(f"{self.name}: student {output.name} (view {view or NO_VIEW})")
        if self.processes is not None:
            places = ["--store", self.store, "--view", view or NO_VIEW, "--output", str(output)]
            own = [*places, "--results", str(self.results)]
            self._launch("train-student", own, [*self.overrides, *overrides])
            return
        config = [*self.files, *self.overrides, *overrides]
        logitbank.train(config, store=self.store, view=view, output=output, results=self.results)

    def evaluate(
        self, condition: str | None, student: Path | None = None, steps: Sequence[int] = (), *, new: bool = False
    ) -> None:
        """Evaluate the model before training, or a student: its end, or each of the given steps.

        Args:
            condition: its name in the tables; None for what the student was trained for.
            student: directory that it was trained into.
            steps: of its checkpoints.
            new: whether the condition is a name of the study's own.
        """
        what = f"student {student.name}" if student is not None else condition
        heading(f"{self.name}: evaluate {what}" + (f" at steps {', '.join(map(str, steps))}" if steps else ""))
        if self.config.evaluation.engine == "vllm":
            where = [] if student is None else ["--checkpoint", str(student if steps else student / "final")]
            asked = ["--steps", *map(str, steps)] if steps else []
            named = [] if condition is None else ["--condition", condition, *(["--new-condition"] if new else [])]
            own = [*named, *where, *asked, "--results", str(self.results)]
            self._launch("evaluate-model", own, self.overrides)
            return
        checkpoint = None if student is None else student if steps else student / "final"
        logitbank.evaluate(
            self.config,
            results=self.results,
            checkpoint=checkpoint,
            steps=steps,
            condition=condition,
            new_condition=new,
        )

    def students(self, conditions: Sequence[str], work: Path) -> None:
        """Train the students of the given conditions, each into the directory of its name."""
        for condition in conditions:
            self.train(CONDITIONS[condition].view, work / condition)

    def conditions(self, conditions: Sequence[str], work: Path) -> None:
        """Evaluate the given conditions."""
        for condition in conditions:
            if CONDITIONS[condition].trained:
                self.evaluate(None, work / condition)  # a teacher of another model makes `distilled` of `control`
            else:
                self.evaluate(condition)

    def _launch(self, command: str, own: Sequence[str], overrides: Sequence[str]) -> None:
        files = ["--config", *self.files] if self.files else []
        launch = [] if command in ("evaluate-model", "sample-answers") else launcher(self.processes)
        run_here([*launch, command, *own, *files, *overrides])


def launcher(processes: int | None) -> list[str]:
    """What comes before a command that several processes share, as a user types it; nothing for None."""
    if processes is None:
        return []
    from accelerate.commands.config.config_args import default_config_file

    # If there is no accelerator, or none is asked for, the launcher would start a single process.
    several = ["--multi_gpu"] if processes > 1 and not Path(default_config_file).exists() else []
    own = [*several, "--num_processes", str(processes), "--main_process_port", "0"]
    return ["accelerate", "launch", *own, "-m", "logitbank"]


def run_here(words: Sequence[str]) -> None:
    """Run a command of ours, launched or not, as a process in this environment.

    Raises:
        LogitbankError: see `run_process`.
    """
    launched = words[:2] == ["accelerate", "launch"]
    module = ["accelerate.commands.launch", *words[2:]] if launched else ["logitbank", *words]
    run_process([sys.executable, "-m", *module])


def heading(text: str) -> None:
    """Say which stage begins."""
    logger.info("\n== %s", text)
