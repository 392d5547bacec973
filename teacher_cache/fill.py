"""A worker's share of a store: which missing shards are its own, with a bar for them."""

from __future__ import annotations

import logging
from collections import Counter

from logitbank.models.workers import Worker
from logitbank.progress import Progress
from logitbank.teacher_cache.scoring import Tally
from logitbank.teacher_cache.session import Session

logger = logging.getLogger(__name__)


def fill_share(session: Session, worker: Worker | None = None) -> Tally:
    """Write every shard that the session's views still lack.

    Args:
        session: an open store with its teacher.
        worker: which of several this process is: of n, it does every n-th shard; None does all.

    Raises:
        StoreError: see `Session.fill`.
        MemoryExhaustedError: even single sequences do not fit in memory.
    """
    work = [item for item in session.missing() if worker is None or item.shard % worker.count == worker.index]
    todo = Counter(item.view for item in work)
    for view, shards in session.shards.items():
        if done := shards - todo[view]:
            logger.info("%s: skipped %d of %d shards that are finished or belong to another worker", view, done, shards)
    quiet = worker is not None and worker.index > 0
    with Progress("teacher", sum(item.tokens for item in work), "tokens", quiet=quiet) as progress:
        return session.fill(work, progress.advance)
