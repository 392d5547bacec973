"""What decides which examples a task has: data sets, files, the seed of random subsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ChatSettings:
    """How conversations are read, and which of their turns are learned.

    Attributes:
        holdout: share of the training file that stands in for a validation file if there is none.
        turns: `all` assistant turns are learned, or the `last`.
        thinking: `drop` what an assistant turn thinks before it answers, or `keep` it.
        context: file whose text the teacher alone reads before every conversation; None for none.
    """

    holdout: float = 0.05
    turns: str = "all"
    thinking: str = "drop"
    context: str | None = None


@dataclass(frozen=True)
class PreferenceSettings:
    """How comparisons of two answers are read and divided.

    Attributes:
        external: files, globs, URLs or hub ids of further comparisons to train on.
        holdout: share of the training file's prompts that stands in for a validation file if there is none.
        selection: share of the validation prompts that chooses checkpoints.
        dedup: what of duplicates is kept: `pair`, `prompt` or `none`.
        folds: of the training comparisons.
    """

    external: tuple[str, ...] = ()
    holdout: float = 0.05
    selection: float = 0.2
    dedup: str = "pair"
    folds: int = 5


@dataclass(frozen=True)
class DataSettings:
    """Where examples come from; `configs.data_settings` makes it from a configuration.

    Attributes:
        mirror: directory of local clones `<org>/<name>` of hub data sets; None for the hub.
        sources: task -> which of its sources; otherwise its first.
        seed: of random subsets.
        files: task -> split -> file, glob, URL or hub id, for tasks that read files.
        chat: how conversations are read.
        preference: how comparisons of two answers are read.
    """

    mirror: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    seed: int = 0
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    chat: ChatSettings = ChatSettings()
    preference: PreferenceSettings = PreferenceSettings()

    def file(self, task: str, split: str) -> str | None:
        """The file that the configuration names for a split of a task; None if it names none."""
        return self.files.get(task, {}).get(split)
