"""An import: every row is read and checked, then read again and written, so that a bad row leaves no store behind.

Shape letters: T answer tokens of an example, K ranks.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from logitbank.errors import StoreError, TaskError, counted
from logitbank.progress import Progress
from logitbank.teacher_cache.exchange.foreign import ForeignRow
from logitbank.teacher_cache.exchange.reading import ForeignRows
from logitbank.teacher_cache.exchange.records import RecordFile
from logitbank.teacher_cache.store_writer import StoreWriter

logger = logging.getLogger(__name__)

Normalized = Literal["vocabulary", "top-k"]
RENORMALIZED = 1e-3  # how near all sums of probabilities are to 1 where they were divided by their sum


@dataclass(frozen=True)
class Target:
    """Where an import goes, and what is said of it.

    Attributes:
        url: of the store.
        view: its name.
        model: the students' base model.
        teacher: `model`, and what else is known.
        tokenizer: of the base model.
        vocab_size: rows of the teacher's `lm_head`.
        top_k: ranks to keep; None for as many as every answer token has.
        encoding: of the store.
        shard_tokens: answer tokens of a shard.
        task, language: of rows that say none.
        normalized: over what the probabilities of a row sum to 1; None to tell from their sums.
    """

    url: str
    view: str
    model: str
    teacher: dict[str, Any]
    tokenizer: Any
    vocab_size: int
    top_k: int | None
    encoding: str
    shard_tokens: int
    task: str
    language: str
    normalized: Normalized | None


@dataclass
class Survey:
    """What all rows say together.

    Attributes:
        examples, tokens: how many.
        fewest, most: entries of an answer token.
        raw: whether values are logits with their logsumexp.
        entropy, gold_known: whether every row says it.
        latest_gold: the last rank at which an answer token stands among its entries; inf where one does not.
        least_sum: the smallest sum of an answer token's probabilities.
        above: answer tokens whose probabilities sum to more than 1 by more than rounding.
        digest: hash of all rows.
    """

    examples: int = 0
    tokens: int = 0
    fewest: int = 2**31
    most: int = 0
    raw: bool = True
    entropy: bool = True
    gold_known: bool = True
    latest_gold: float = 0.0
    least_sum: float = math.inf
    above: int = 0
    digest: str = ""

    def add(self, row: ForeignRow) -> None:
        """Take a row in."""
        entries, mass = row.entries, row.mass
        self.examples += 1
        self.tokens += len(entries)
        self.fewest, self.most = min(self.fewest, int(entries.min())), max(self.most, int(entries.max()))
        self.raw &= row.logsumexp is not None
        self.entropy &= row.entropy is not None
        self.gold_known &= row.gold is not None and row.gold_rank is not None
        self.latest_gold = max(self.latest_gold, float(row.gold_ranks().max()))
        self.least_sum = min(self.least_sum, float(mass.min()))
        self.above += int((mass > 1 + RENORMALIZED).sum())

    def normalized(self) -> Normalized:
        """Over what the probabilities of a row seem to sum to 1."""
        return "top-k" if not self.raw and self.least_sum > 1 - RENORMALIZED else "vocabulary"

    def bounded(self, top_k: int, normalized: Normalized) -> tuple[str, ...]:
        """Which of `storage.BOUNDABLE` the rows do not say exactly."""
        lacking = {
            "logits": not self.raw,
            "logsumexp": normalized == "top-k",
            "entropy": not self.entropy or normalized == "top-k",
            "gold": not self.gold_known and self.latest_gold >= top_k,
        }
        return tuple(name for name, lacks in lacking.items() if lacks)


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        survey: of the rows.
        top_k: ranks kept.
        bounded: what the view does not know exactly.
        written: examples written now; others were there.
    """

    survey: Survey
    top_k: int
    bounded: tuple[str, ...]
    written: int


def import_rows(rows: ForeignRows, target: Target, *, dry_run: bool = False) -> Imported:
    """Write the rows of another program into a store, or resume an import that was cut off.

    Raises:
        TaskError: a row that cannot be meant; says file and row. Nothing is written then.
        StoreError: the store exists and was made of something else, or cannot be written.
    """
    with RecordFile() as records:
        survey = _survey(rows, records, target)
        if target.top_k is None:
            target = replace(target, top_k=survey.fewest)
        top_k = target.top_k or 0
        normalized = target.normalized or survey.normalized()
        imported = Imported(survey, top_k, survey.bounded(top_k, normalized), 0)
        return imported if dry_run else replace(imported, written=_write(rows, records, target, imported))


def _survey(rows: ForeignRows, records: RecordFile, target: Target) -> Survey:
    survey, digest = Survey(), hashlib.sha256()
    tokenizer_size = min(len(target.tokenizer), target.vocab_size)
    with Progress("check", None, "rows") as progress:
        for row in rows:
            row.check(tokenizer_size, target.vocab_size, rows.reader.tolerance)
            if target.top_k is not None:
                row.ranked(target.top_k)
            try:
                records.append(row.record(f"imported/{survey.examples}", target.task, target.language))
            except ValueError as error:
                raise TaskError(f"{row.place}: {error}") from None
            survey.add(row)
            digest.update(row.digest())
            progress.advance(1)
    survey.digest = digest.hexdigest()
    return survey


def _write(rows: ForeignRows, records: Sequence[Any], target: Target, imported: Imported) -> int:
    writer = StoreWriter(
        target.url,
        records,
        tokenizer=target.tokenizer,
        model=target.model,
        teacher=target.teacher,
        view=target.view,
        top_k=imported.top_k,
        vocab_size=target.vocab_size,
        bounded=imported.bounded,
        encoding=target.encoding,
        shard_tokens=target.shard_tokens,
        view_identity={"imported": {"format": rows.format, "rows": imported.survey.digest}},
    )
    with writer:
        missing = set(writer.missing())
        with Progress("write", len(missing), "rows") as progress:
            for number, cells in enumerate(rows.cells()):
                if number not in missing:
                    continue
                row = rows.reader.read(cells)
                if not np.array_equal(row.answer_ids, records[number].answer_ids):
                    raise StoreError(f"{row.place}: changed during the import; run the same command again")
                kept = row.ranked(imported.top_k)
                writer.write_top_k(
                    number,
                    kept.token_ids,
                    kept.values,
                    logsumexp=kept.logsumexp,
                    entropy=None if "entropy" in imported.bounded else kept.entropy,
                    gold_logit=kept.gold,
                    gold_rank=None if "gold" in imported.bounded else kept.gold_rank,
                )
                progress.advance(1)
    return len(missing)


def describe(imported: Imported, rows: ForeignRows) -> str:
    """What was found in the rows, and what became of it, for people."""
    survey = imported.survey
    lines = [
        f"{rows.format}: {counted(survey.examples, 'example')}, {counted(survey.tokens, 'answer token')}, "
        f"top {imported.top_k}" + (f" of {survey.fewest} to {survey.most}" if survey.most > imported.top_k else "")
    ]
    if rows.reader.about:
        lines.append(rows.reader.about)
    if survey.above:
        lines.append(f"{counted(survey.above, 'answer token')} with a probability above 1 in all: scaled to 1")
    if "logsumexp" in imported.bounded:
        lines.append("probabilities sum to 1 over the ranks of each row: what the teacher gave to others is lost")
    if imported.bounded:
        lines.append(f"bounded: {', '.join(imported.bounded)}; losses and strategies that need it refuse the view")
    return "\n".join(lines)
