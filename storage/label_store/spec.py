"""What a label store is built from, what it says of itself, and who scored its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from logitbank.preference import CLASSES, SeenPrompts
from logitbank.storage.groups import SHORT_DIGITS


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """What a label store is built from; all of it but `config` must be the same to resume building.

    Attributes:
        folds: how many folds the training rows have.
        seed: of the folds.
        identity: whatever else decides which rows there are: files, deduplication …
        config: the full configuration, for information only.
        shard_rows: rows per shard.
    """

    folds: int
    seed: int
    identity: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    shard_rows: int = 4096


@dataclass(frozen=True, kw_only=True)
class LabelStoreInfo:
    """What a label store says of itself.

    Attributes:
        fingerprint: SHA-256 over the identity.
        identity: every input that decides its content.
        config: the full configuration, for information only.
        folds: how many folds the training rows have.
        seed: of the folds.
        classes: the columns of targets and logits.
        shard_rows: rows per shard.
        shards: shards per view.
        counts: rows of `train`, `validation` and `external`.
    """

    fingerprint: str
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    folds: int
    seed: int
    classes: tuple[str, ...] = CLASSES
    shard_rows: int
    shards: int
    counts: Mapping[str, int]

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> LabelStoreInfo:
        """What the attributes of a store's root group say; others than the known ones are left out."""
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in attributes.items() if key in known}
        return cls(**{**values, "classes": tuple(values["classes"])})

    @property
    def short_fingerprint(self) -> str:
        """The fingerprint's first digits, for tables and messages."""
        return self.fingerprint[:SHORT_DIGITS]


@dataclass(frozen=True)
class Scorer:
    """Who scored the rows of a shard.

    Attributes:
        model: hub id or path, or the file that logits came from.
        weights: hash of the weights, or of that file.
        fold: the fold that was held out of its training; None if none was.
        seen: the prompts that it learned from or was selected on; None if that is unknown.
        details: recorded with every shard, for information.
    """

    model: str
    weights: str
    fold: int | None = None
    seen: SeenPrompts | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredShard:
    """What the manifest of a shard says of who scored it.

    Attributes:
        shard: its number.
        fold: the fold of its rows.
        rows: the training rows that it holds.
        model: hub id or path of the scorer, or the file that logits came from.
        weights: hash of its weights, or of that file.
        held_out_fold: the fold that was held out of its training; None if none was.
        proven: whether anything says which prompts it saw.
        trained_rows: training rows of the store whose prompts it learned from; None unless proven.
        selected_rows: training rows of the store whose prompts chose its checkpoint; None unless proven.
        trained_prompts: prompts that it learned from, in the store or not; None unless proven.
        selected_prompts: prompts that chose its checkpoint, in the store or not; None unless proven.
        details: for information.
    """

    shard: int
    fold: int
    rows: range
    model: str
    weights: str
    held_out_fold: int | None
    proven: bool
    trained_rows: int | None
    selected_rows: int | None
    trained_prompts: int | None
    selected_prompts: int | None
    details: Mapping[str, Any]

    @classmethod
    def from_manifest(cls, about: Mapping[str, Any]) -> ScoredShard:
        """From what a shard's manifest says besides its objects."""
        scorer = about["scorer"]
        names = ("model", "weights", "held_out_fold", *SEEN_COUNTS)
        return cls(
            shard=about["shard"],
            fold=about["fold"],
            rows=range(*about["examples"]),
            proven=about["seen"] is not None,
            details=about["details"],
            **{name: scorer[name] for name in names},
        )


SEEN_COUNTS = ("trained_rows", "selected_rows", "trained_prompts", "selected_prompts")
