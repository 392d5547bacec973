"""Which runs a submission is made of, and how good each was on the fold that its training left out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.errors import ConfigError, counted
from logitbank.storage.results import SERIES, Catalogue

_MOST_SHOWN = 3  # runs of each series in a message


@dataclass(frozen=True)
class Member:
    """One evaluation on the test split.

    Attributes:
        row: of `evaluations`, with `weights`, `config` and `preferred` (0 for the best checkpoint).
    """

    row: Mapping[str, Any]

    @property
    def run(self) -> str:
        """Name of the evaluation."""
        return str(self.row["run"])

    @property
    def series(self) -> tuple[str, ...]:
        """What tables call one row or column."""
        return tuple(self.row[name] for name in SERIES.split(", "))

    @property
    def student(self) -> tuple[Any, Any]:
        """What tells students of one series apart: seed and fold."""
        return self.row["seed"], self.row["held_out_fold"]

    @property
    def max_samples(self) -> int | None:
        """The most comparisons that it was to evaluate."""
        return self._settings().get("max_samples")

    def about(self) -> dict[str, Any]:
        """For the file beside a submission."""
        names = ("run", "model", "condition", "variant", "seed", "held_out_fold", "step", "checkpoint")
        return {name: self.row[name] for name in names}

    def protocol(self) -> dict[str, Any]:
        """The settings of evaluation that decide probabilities, the split aside."""
        names = ("tta_tokens", "swap_average", "load_in_8bit")
        return {name: value for name, value in self._settings().items() if name in names}

    def _settings(self) -> dict[str, Any]:
        config = json.loads(self.row["config"] or "{}")
        return dict(config.get("evaluation", {}))


def chosen_members(catalogue: Catalogue, *, conditions: Sequence[str] = (), runs: Sequence[str] = ()) -> list[Member]:
    """The runs to average: those named, or the students of the only series that was evaluated on the test split.

    Of a student that was evaluated at several checkpoints its best one counts, else its last step, as in tables.

    Raises:
        ConfigError: no run, one that does not exist, several series where one is expected, or two evaluations of one
            student at one step.
    """
    found = _evaluations(catalogue, "test")
    if not found:
        raise ConfigError(
            "--results: expected predictions of class probabilities on the test split, got none; evaluate-model with "
            "preference.test=FILE writes them"
        )
    if runs:
        return _require_one_generation(_named(found, runs))
    known = {member.row["condition"] for member in found}
    for name in conditions:
        if name not in known:
            raise ConfigError(f"--condition: expected one of {', '.join(sorted(known))}, got {name}")
    groups = [_members_of(found, name) for name in dict.fromkeys(conditions)] if conditions else [found]
    chosen = []
    for group in groups:
        _require_one_series(group)
        chosen += _last_steps(group)
    return _require_one_generation(chosen)


def held_out_losses(catalogue: Catalogue, members: Sequence[Member], results: Sequence[Path]) -> list[float]:
    """Log loss in nats of each run's weights on the fold that its training left out, evaluated in the same way.

    Raises:
        ConfigError: a run of a student that left out no fold, or one without such an evaluation; says the command.
    """
    others = _evaluations(catalogue, "held_out")
    losses = {
        row["run"]: float(row["value"])
        for row in catalogue.rows(
            "SELECT run, value FROM metrics WHERE metric = 'log_loss' AND method = 'classify' AND split = 'held_out'"
        )
    }
    found = []
    for member in members:
        same = [
            other
            for other in others
            if other.row["weights"] == member.row["weights"]
            and other.row["training_run"] == member.row["training_run"]
            and other.protocol() == member.protocol()
            and other.run in losses
        ]
        if not same:
            raise ConfigError(_lacking(member, results))
        newest = max(same, key=lambda other: (other.row["created_at"], other.run))
        found.append(losses[newest.run])
    return found


def _lacking(member: Member, results: Sequence[Path]) -> str:
    """What to do about a run without a held-out log loss."""
    if member.row["held_out_fold"] is None:
        return (
            f"--ensemble cv: expected runs of students that left out a fold, but {member.run} did not; use --ensemble "
            "equal, or train with --held-out-fold"
        )
    settings = [f"evaluation.{name}={_written(value)}" for name, value in member.protocol().items() if value]
    command = [
        *("evaluate-model", "--config", "FILE", "--store", "URL", "--condition", member.row["condition"]),
        *("--checkpoint", member.row["checkpoint"] or "DIR", "--results", str(results[0])),
        *("evaluation.split=held_out", *settings),
    ]
    return (
        f"--ensemble cv: expected the log loss of {member.run} on fold {member.row['held_out_fold']}, which it left "
        f"out, got none; run: {shlex.join(command)}"
    )


def _written(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _evaluations(catalogue: Catalogue, split: str) -> list[Member]:
    """Every evaluation of class probabilities on a split, by name."""
    rows = catalogue.rows(
        f"""
        SELECT e.*, r.weights, r.config,
               CASE WHEN regexp_matches(coalesce(e.checkpoint, ''), '(^|/)best/*$') THEN 0 ELSE 1 END AS preferred
        FROM evaluations AS e
        JOIN (SELECT DISTINCT ON (run) run, weights, config FROM runs WHERE kind = 'evaluation') AS r USING (run)
        WHERE e.run IN (SELECT run FROM predictions WHERE method = 'classify' AND split = '{split}')
        ORDER BY e.condition, e.seed, e.held_out_fold, e.step, e.run
        """
    )
    return [Member(row) for row in {row["run"]: row for row in rows}.values()]


def _named(found: Sequence[Member], runs: Sequence[str]) -> list[Member]:
    by_name = {member.run: member for member in found}
    for run in runs:
        if run not in by_name:
            raise ConfigError(f"--run: expected one of {', '.join(by_name)}, got {run}")
        if runs.count(run) > 1:
            raise ConfigError(f"--run: expected each run once, got {run} {runs.count(run)} times")
    return [by_name[run] for run in runs]


def _members_of(found: Sequence[Member], condition: str) -> list[Member]:
    return [member for member in found if member.row["condition"] == condition]


def _require_one_series(found: Sequence[Member]) -> None:
    groups: dict[tuple[str, ...], list[str]] = {}
    for member in found:
        groups.setdefault(member.series, []).append(member.run)
    if len(groups) == 1:
        return
    shown = []
    for (model, condition, setup, variant, taught_by), runs in groups.items():
        parts = [part for part in (variant, taught_by, f"setup {setup[:6]}") if part]
        names = ", ".join([*runs[:_MOST_SHOWN], *(["…"] if len(runs) > _MOST_SHOWN else [])])
        shown.append(f"{model} {condition} ({', '.join(parts)}): {counted(len(runs), 'run')}, {names}")
    raise ConfigError(
        f"--condition: expected runs of one condition and setup, got {len(groups)}: {'; '.join(shown)}; name a "
        "condition by --condition or runs by --run"
    )


def _last_steps(found: Sequence[Member]) -> list[Member]:
    """The best checkpoint of each student, else its last step; all evaluations of it."""
    chosen = []
    for student in dict.fromkeys(member.student for member in found):
        own = [member for member in found if member.student == student]

        def place(member: Member) -> tuple[int, int]:
            return -member.row["preferred"], member.row["step"] or 0

        last = max(map(place, own))
        chosen += [member for member in own if place(member) == last]
    return chosen


def _require_one_generation(found: list[Member]) -> list[Member]:
    seen: dict[tuple[Any, ...], str] = {}
    for member in found:
        key = (*member.series, *member.student, member.row["step"], member.row["checkpoint"])
        if (other := seen.setdefault(key, member.run)) != member.run:
            raise ConfigError(
                f"--run: expected one evaluation of each student, got {other} and {member.run} of the same one; name "
                "the runs to use by --run"
            )
    return found
