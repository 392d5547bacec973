"""Build a teacher store in this process: what `build-teacher-cache` does, as functions."""

from __future__ import annotations

from collections.abc import Sequence

from logitbank.configs import Config
from logitbank.experiment import DEFAULT_VIEWS
from logitbank.models.workers import Worker
from logitbank.teacher_cache.estimate import Estimate, estimate
from logitbank.teacher_cache.examples import TRAIN
from logitbank.teacher_cache.fill import fill_share
from logitbank.teacher_cache.preparation import prepare
from logitbank.teacher_cache.scoring import Tally
from logitbank.teacher_cache.session import open_session


def estimate_store(
    config: Config, views: Sequence[str] = DEFAULT_VIEWS, *, split: str = TRAIN, answers: str | None = None
) -> Estimate:
    """What `build_store` would do: tokens, bytes and examples, per task and language.

    Raises:
        ConfigError, TaskError: see `prepare`.
    """
    with prepare(config, views, split, answers) as prepared:
        return estimate(config, prepared.questions)


def build_store(
    config: Config,
    url: str,
    views: Sequence[str] = DEFAULT_VIEWS,
    *,
    split: str = TRAIN,
    answers: str | None = None,
    worker: Worker | None = None,
) -> Tally:
    """Write every shard that a store still lacks; one that is complete is left as it is.

    Args:
        config: of the build; recorded in the store.
        url: directory or fsspec URL of the store.
        views: which to fill.
        split: whose examples; see `prepare`.
        answers: file of answers that a model wrote; see `prepare`.
        worker: which of several processes that fill one store this is; None for one on its own.

    Raises:
        ConfigError, TaskError: see `prepare`; or a model that cannot be opened.
        StoreError: a store that cannot be written, or was started with different settings.
        MemoryExhaustedError: even single sequences do not fit in memory.
    """
    with open_session(config, url, views, split=split, answers=answers, worker=worker) as session:
        return fill_share(session, worker)
