"""What a teacher store says in numbers: per task, language and view, and as histograms."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitbank.storage import TeacherStore
from logitbank.storage.results import TOKEN_SCHEMA, token_batches

MEASURES_SQL = """
    count(DISTINCT example_id) AS examples,
    count(*) AS answer_tokens,
    avg(entropy) AS mean_entropy,
    -avg(logprob) AS teacher_ce,
    avg(known::INT) AS teacher_accuracy,
    avg(top_k_mass) AS top_k_mass_mean,
    quantile_cont(top_k_mass, 0.05) AS top_k_mass_p05
"""
CELLS_SQL = f"SELECT task, language, view, {MEASURES_SQL} FROM tokens GROUP BY ALL ORDER BY task, language, view"
VIEWS_SQL = f"SELECT view, {MEASURES_SQL} FROM tokens GROUP BY view"
CE_SQL = "SELECT task, view, -avg(logprob) AS teacher_ce FROM tokens GROUP BY ALL ORDER BY task, view"
BINS = 60
LEAST_TAIL = 1e-6  # smaller tails are not told apart


class Inspection:
    """The scalars of a store's tokens, read once; unwritten shards are left out.

    Attributes:
        store: the store.
        views: its views that hold anything.
    """

    def __init__(self, store: TeacherStore) -> None:
        self.store = store
        self._tokens = duckdb.connect(":memory:")
        self._tokens.register("read", pa.RecordBatchReader.from_batches(TOKEN_SCHEMA, token_batches(store)))
        self._tokens.execute(
            "CREATE TABLE tokens AS SELECT task, language, view, example_id, entropy, logprob, gold_rank = 0 AS known, "
            "top_k_mass FROM read"
        )
        self.views = tuple(row["view"] for row in self._rows("SELECT DISTINCT view FROM tokens ORDER BY view"))

    def summary(self) -> dict[str, Any]:
        """What `inspect-cache --format json` prints: the store as a whole, and rows per task, language and view."""
        store, info = self.store, self.store.info
        totals = {row.pop("view"): row for row in self._rows(VIEWS_SQL)}
        sizes = store.objects.sizes()
        size = sum(sizes.values())
        bytes_of = {view: _bytes_per_shard(store, view, sizes) for view in store.views}
        rows, views, stored_tokens = self._rows(CELLS_SQL), {}, 0
        for view in store.views:
            attributes, plan = store.view_attributes(view), store.plan_of(view)
            missing = len(store.missing_shards(view))
            stored_tokens += int(plan.answer_length.sum())
            view_bytes = sum(length for key, length in sizes.items() if key.startswith(f"teachers/{view}/"))
            done = totals.get(view, {}).get("answer_tokens", 0)
            views[view] = {
                "complete": not missing,
                "shards": plan.shards,
                "missing_shards": missing,
                "bytes": view_bytes,
                "bytes_per_token": float(bytes_of[view].sum()) / done if done else None,
                "fingerprint": attributes["fingerprint"],
                "bounded": list(store.bounded(view)),
                **attributes["details"],
                **totals.get(view, {}),
            }
        for row in rows:
            cell = f"{row['task']}/{row['language']}"
            row["bytes_per_token"] = self._cell_bytes(row, bytes_of[row["view"]])
            row["demonstrations_dropped"] = views[row["view"]].get("demonstrations_dropped", {}).get(cell, 0)
        return {
            "store": store.url,
            "model": info.model,
            "teacher": dict(info.teacher),
            "fingerprint": info.fingerprint,
            "encoding": info.encoding,
            "top_k": info.top_k,
            "signal": info.signal,
            "draws": info.draws,
            "split": info.split,
            "answers": None if info.answers is None else dict(info.answers),
            "examples": len(store.examples),
            "validation_examples": len(store.validation),
            "answer_tokens": info.answer_tokens,
            "shards": info.shards,
            "bytes": size,
            "bytes_per_answer_token_and_view": size / (stored_tokens or info.answer_tokens),
            "views": views,
            "rows": rows,
        }

    def entropies(self, view: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Edges in nats (0 to log V) and answer tokens between them."""
        edges = np.linspace(0.0, math.log(self.store.tokens_of(view).vocab_size), BINS + 1)
        return edges, self._histogram(view, f"entropy / {edges[1]}")

    def tails(self, view: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Edges of the probability outside the stored ranks, on a logarithmic scale, and answer tokens between them."""
        edges = np.logspace(math.log10(LEAST_TAIL), 0.0, BINS + 1)
        step = -math.log10(LEAST_TAIL) / BINS
        tail = f"log10(greatest(1 - top_k_mass, {LEAST_TAIL}) / {LEAST_TAIL}) / {step}"
        return edges, self._histogram(view, tail)

    def cross_entropies(self) -> dict[str, dict[str, float]]:
        """Mean teacher cross-entropy in nats per answer token, by task and view."""
        found: dict[str, dict[str, float]] = {}
        for row in self._rows(CE_SQL):
            found.setdefault(row["task"], {})[row["view"]] = row["teacher_ce"]
        return found

    def _cell_bytes(self, row: dict[str, Any], bytes_of_shard: NDArray[np.float64]) -> float:
        """A shard's bytes belong to its answer tokens in equal parts: tasks share objects, none has its own."""
        info, table, plan = self.store.info, self.store.table(row["view"]), self.store.plan_of(row["view"])
        chosen = (table.task == info.tasks.index(row["task"])) & (
            table.language == info.languages.index(row["language"])
        )
        shards = table.answer_start[chosen] // plan.shard_tokens
        written = bytes_of_shard[shards] > 0
        used = np.bincount(table.answer_start // plan.shard_tokens, weights=table.answer_length, minlength=plan.shards)
        lengths = table.answer_length[chosen]
        return float((bytes_of_shard[shards] / used[shards] * lengths)[written].sum() / lengths[written].sum())

    def _histogram(self, view: str, position: str) -> NDArray[np.int64]:
        bins = f"greatest(0, least(floor({position}), {BINS - 1}))::INT"
        query = f"SELECT {bins} AS bin, count(*) FROM tokens WHERE view = ? GROUP BY bin"
        counts = Counter(dict(self._tokens.execute(query, [view]).fetchall()))
        return np.array([counts[number] for number in range(BINS)], dtype=np.int64)

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        result = self._tokens.execute(sql)
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _bytes_per_shard(store: TeacherStore, view: str, sizes: dict[str, int]) -> NDArray[np.float64]:
    """Bytes of each shard's objects, manifest included; 0 for a shard that is not written."""
    missing = set(store.missing_shards(view))
    total = np.zeros(store.plan_of(view).shards)
    for key, size in sizes.items():
        folder, _, chunk = key.partition("/c/")
        shard = chunk.split("/")[0]
        if folder.startswith(f"manifest/{view}/") and not key.endswith("/view.json"):
            shard = key.rsplit("/", 1)[-1].removesuffix(".json")
        elif not folder.startswith(f"teachers/{view}/") or folder.count("/") > 2:
            continue  # of another view, or examples and vocabulary of this one
        if shard.isdigit() and int(shard) not in missing:
            total[int(shard)] += size
    return total
