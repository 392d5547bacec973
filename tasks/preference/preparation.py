"""What a label store is built of: comparisons without duplicates and leaks, in folds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import TaskError, counted
from logitbank.preference import CLASSES, TASK, Pair, prompt_keys
from logitbank.tasks.preference.duplicates import Distinct, distinct, without_prompts
from logitbank.tasks.preference.folds import classes_of, folds_of
from logitbank.tasks.preference.parts import PARTS, part_of
from logitbank.tasks.preference.reading import ReadPairs, divided_training, read_external, read_pairs, read_test
from logitbank.tasks.settings import DataSettings


@dataclass(frozen=True)
class Counts:
    """What became of the rows of one kind.

    Attributes:
        read: rows of the files.
        without_text: left out because the prompt or an answer has no text.
        held_out: moved into validation, if there is no file of it.
        leaking: dropped because validation or test has their prompt.
        known: external rows dropped because the training rows have their prompt.
        merged: rows that went into an earlier one of the same two answers.
        same_prompt: left out by `preference.dedup=prompt`, an earlier row having their prompt.
        contradictory: groups of merged rows that disagree.
        used: rows that are left.
        prompts: of these.
    """

    read: int
    without_text: int
    held_out: int
    leaking: int
    known: int
    merged: int
    same_prompt: int
    contradictory: int
    used: int
    prompts: int

    @property
    def line(self) -> str:
        """How many were used, and why the others were not."""
        why = (
            (self.without_text, "without text"),
            (self.held_out, "held out for validation"),
            (self.leaking, "with a prompt of validation or test"),
            (self.known, "with a prompt of the training rows"),
            (self.merged, f"merged into duplicates ({counted(self.contradictory, 'contradictory group')})"),
            (self.same_prompt, "with a prompt of an earlier row"),
        )
        left_out = "".join(f", {number:,} {words}" for number, words in why if number)
        return f"{self.read:,} read{left_out}, {self.used:,} used ({counted(self.prompts, 'prompt')})"


@dataclass(frozen=True)
class PreparationReport:
    """What was read, left out and kept.

    Attributes:
        train: the base rows.
        external: the external rows, of all files together.
        validation: rows.
        parts: of these, rows of each part, in the order of `PARTS`.
        shared: of these, rows whose prompt test has too; they stay.
        test: rows.
        classes: of the base rows, rows whose likeliest class is each of `CLASSES`.
        folds: base rows of each fold.
        soft: base rows whose target is not a single class.
    """

    train: Counts
    external: Counts
    validation: int
    parts: tuple[int, ...]
    shared: int
    test: int
    classes: tuple[int, ...]
    folds: tuple[int, ...]
    soft: int

    def as_json(self) -> dict[str, Any]:
        """The numbers, for attributes of a store."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """All of it in words, a line a subject."""
        parts = ", ".join(f"{number:,} {name}" for number, name in zip(self.parts, PARTS, strict=True))
        shared = f"; {self.shared:,} with a prompt of test" if self.shared else ""
        rows = sum(self.classes)
        classes = (
            f"{name} {number:,} ({number / rows:.1%})" for name, number in zip(CLASSES, self.classes, strict=True)
        )
        return [
            f"train: {self.train.line}",
            *([f"external: {self.external.line}"] if self.external.read else []),
            f"validation: {self.validation:,} used ({parts}){shared}",
            f"test: {self.test:,}",
            f"classes: {', '.join(classes)}; {counted(self.soft, 'soft label')}",
            f"folds: {', '.join(f'{number:,}' for number in self.folds)}",
        ]


@dataclass(frozen=True)
class Prepared:
    """The comparisons of a label store.

    Attributes:
        train: N comparisons by fold, in each fold in an order drawn by the seed.
        folds: (N,) int8, the fold of each.
        validation: M comparisons.
        parts: (M,) int8, the part of each, as a position in `PARTS`.
        external: further comparisons to train on, none with a prompt of the others.
        report: what was left out on the way.
    """

    train: tuple[Pair, ...]
    folds: NDArray[np.int8]
    validation: tuple[Pair, ...]
    parts: NDArray[np.int8]
    external: tuple[Pair, ...]
    report: PreparationReport


def prepare(data: DataSettings) -> Prepared:
    """Read all files, and leave out what must not be learned from.

    Args:
        data: names the files; its seed draws the folds and the order within them.

    Raises:
        TaskError: as of `load_pairs`; nothing left to train on, or fewer prompts than folds.
    """
    settings = data.preference
    base, held_out = divided_training(data)
    own_file = data.file(TASK, "validation")
    validation = held_out if own_file is None else read_pairs(f"{TASK}.validation", own_file, "validation", data)
    test = read_test(data) if data.file(TASK, "test") is not None else ReadPairs([], 0)
    files = read_external(data)
    tested = {pair.prompt_key for pair in test.pairs}
    evaluated = tested | {pair.prompt_key for pair in validation.pairs}

    clean = without_prompts(base.pairs, evaluated)
    kept = distinct(clean, settings.dedup)
    if not kept.pairs:
        raise TaskError(f"{TASK}.train: all of its {base.read:,} rows share a prompt with validation or test rows")
    folds = folds_of(kept.pairs, settings.folds, data.seed)
    order = np.lexsort((np.random.default_rng(data.seed).random(len(folds)), folds))

    further = [pair for file in files for pair in file.pairs]
    unseen = without_prompts(further, evaluated)
    fresh = without_prompts(unseen, {pair.prompt_key for pair in kept.pairs})
    external = distinct(fresh, settings.dedup)

    train = tuple(kept.pairs[position] for position in order)
    parts = part_of(prompt_keys(validation.pairs), settings.selection)
    report = PreparationReport(
        train=_counts(
            kept, base.read, base.without_text, held_out=len(held_out.pairs), leaking=len(base.pairs) - len(clean)
        ),
        external=_counts(
            external,
            sum(file.read for file in files),
            sum(file.without_text for file in files),
            leaking=len(further) - len(unseen),
            known=len(unseen) - len(fresh),
        ),
        validation=len(validation.pairs),
        parts=_tally(parts, len(PARTS)),
        shared=sum(pair.prompt_key in tested for pair in validation.pairs),
        test=len(test.pairs),
        classes=_tally(classes_of(train), len(CLASSES)),
        folds=_tally(folds, settings.folds),
        soft=sum(max(pair.target or ()) < 1 for pair in train),
    )
    return Prepared(train, folds[order], tuple(validation.pairs), parts, tuple(external.pairs), report)


def _counts(
    kept: Distinct, read: int, without_text: int, *, held_out: int = 0, leaking: int = 0, known: int = 0
) -> Counts:
    return Counts(
        read=read,
        without_text=without_text,
        held_out=held_out,
        leaking=leaking,
        known=known,
        merged=kept.merged,
        same_prompt=kept.same_prompt,
        contradictory=kept.contradictory,
        used=len(kept.pairs),
        prompts=len({pair.prompt_key for pair in kept.pairs}),
    )


def _tally(numbers: NDArray[np.int8], size: int) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(np.asarray(numbers, dtype=np.int64), minlength=size))
