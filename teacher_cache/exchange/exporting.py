"""An export: the shards of a view in order, as Parquet files that appear when they are whole."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from logitbank.command import make_directory
from logitbank.errors import ConfigError, StoreError, counted
from logitbank.progress import Progress
from logitbank.registry import EXPORT_LAYOUTS
from logitbank.storage import ShardPlan, TeacherStore
from logitbank.teacher_cache.exchange.export_layouts import ExportLayout, ExportOptions

FILE_BYTES = 512 << 20  # before compression
BATCH_BYTES = 32 << 20
METADATA = b"logitbank"


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        folder: where.
        files: how many Parquet files there are.
        kept: of them, from an earlier run.
        examples, tokens: in all of them; tokens are answer tokens.
        size: bytes of all files.
    """

    folder: Path
    files: int
    kept: int
    examples: int
    tokens: int
    size: int

    def describe(self) -> str:
        """For people."""
        kept = f" ({self.kept} from an earlier run)" if self.kept else ""
        return (
            f"{self.folder}: {counted(self.examples, 'example')}, {counted(self.tokens, 'answer token')}, "
            f"{self.size:,} bytes in {counted(self.files, 'file')}{kept}"
        )


def export_view(store: TeacherStore, folder: Path, options: ExportOptions) -> Exported:
    """Write a view into a directory, or the files that an earlier export did not get to.

    Raises:
        StoreError: the view is absent or half-built, or more ranks are asked for than stored.
        ConfigError: the store holds draws instead of ranks, or the directory something else than this export, or it
            cannot be written.
    """
    store.require_view(options.view)
    top_k = store.check_top_k(options.top_k)
    if store.info.signal == "sampled":
        raise ConfigError(f"export: {shlex.quote(store.url)} holds draws, not ranks (teacher.signal=sampled)")
    layout: ExportLayout = EXPORT_LAYOUTS[options.layout]
    plan, about = store.plan_of(options.view), _about(store, options, top_k)
    parts = _parts(store, options, layout, top_k)
    names = [f"train-{number:05}-of-{len(parts):05}.parquet" for number in range(len(parts))]
    make_directory("--output", folder)
    _require_own(folder, names)
    kept = 0
    with Progress("export", plan.shards, "shards") as progress:
        for name, part in zip(names, parts, strict=True):
            said = {**about, "shards": [part.start, part.stop]}
            if (folder / name).exists():
                _require_same(folder / name, said)
                kept += 1
                progress.advance(len(part))
                continue
            partial = folder / f".{name}.partial"
            _write(partial, _batches(store, part, layout, options, top_k, progress), said)
            partial.replace(folder / name)
    size = sum((folder / name).stat().st_size for name in names)
    examples = len(plan.answer_length)
    return Exported(folder, len(names), kept, examples, int(plan.answer_length.sum()), size)


def _about(store: TeacherStore, options: ExportOptions, top_k: int) -> dict[str, Any]:
    """What a file says of where its rows come from."""
    return {
        **asdict(options),
        "top_k": top_k,
        "store": store.info.fingerprint,
        "view_fingerprint": store.view_attributes(options.view)["fingerprint"],
        "model": store.info.model,
        "teacher": store.info.teacher_model,
        "bounded": list(store.bounded(options.view)),
    }


def _parts(store: TeacherStore, options: ExportOptions, layout: ExportLayout, top_k: int) -> list[range]:
    """The shards of each file."""
    plan, table = store.plan_of(options.view), store.table(options.view)
    of_token, of_answer = layout.token_bytes(top_k, options)
    total = int(table.input_length.sum(dtype=np.int64)) * of_token + int(plan.answer_length.sum()) * of_answer
    each = max(1, int(FILE_BYTES / max(1, total / plan.shards)))
    return [range(first, min(first + each, plan.shards)) for first in range(0, plan.shards, each)]


def _batches(
    store: TeacherStore, shards: range, layout: ExportLayout, options: ExportOptions, top_k: int, progress: Progress
) -> Iterator[pa.RecordBatch]:
    """The rows of some shards, few enough at a time."""
    table, plan = store.table(options.view), store.plan_of(options.view)
    own, bounded = store.has_own_sequences(options.view), store.bounded(options.view)
    of_token, of_answer = layout.token_bytes(top_k, options)
    for shard in shards:
        rows = store.read_shard(options.view, shard, top_k)
        sizes = {
            i: int(table.input_length[i]) * of_token + int(plan.answer_length[i]) * of_answer
            for i in plan.examples_of(shard)
        }
        first_row = 0
        for group in _groups(sizes):
            examples = [table[i] for i in group]
            # a view's own sequences may have several of one example
            ids = [f"{each.id}/{i}" if own else each.id for i, each in zip(group, examples, strict=True)]
            last_row = first_row + _tokens(plan, group)
            yield layout.batch(ids, examples, rows.take(slice(first_row, last_row)), bounded, options)
            first_row = last_row
        progress.advance(1)


def _groups(sizes: Mapping[int, int]) -> Iterator[list[int]]:
    """Examples in order, as many at a time as `BATCH_BYTES` hold."""
    group: list[int] = []
    held = 0
    for i, size in sizes.items():
        if group and held + size > BATCH_BYTES:
            yield group
            group, held = [], 0
        group.append(i)
        held += size
    yield group


def _tokens(plan: ShardPlan, examples: list[int]) -> int:
    return int(plan.answer_length[examples].sum())


def _write(path: Path, batches: Iterator[pa.RecordBatch], about: Mapping[str, Any]) -> None:
    first = next(batches)
    schema = first.schema.with_metadata({METADATA: json.dumps(about)})
    try:
        with pq.ParquetWriter(path, schema, compression="zstd") as file:
            file.write_batch(first)
            for batch in batches:
                file.write_batch(batch)
        with path.open("rb") as written:
            os.fsync(written.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _require_own(folder: Path, names: list[str]) -> None:
    if strange := sorted(path.name for path in folder.glob("*.parquet") if path.name not in names):
        raise ConfigError(
            f"--output {shlex.quote(str(folder))}: expected an empty directory or one of the same export, but it holds "
            f"{strange[0]}; choose another"
        )


def _require_same(path: Path, about: Mapping[str, Any]) -> None:
    try:
        said = json.loads((pq.read_schema(path).metadata or {}).get(METADATA, b"{}"))
    except (pa.ArrowException, ValueError) as error:
        raise StoreError(f"--output: {shlex.quote(str(path))} cannot be read ({error}); delete it") from None
    differing = next((key for key in about if said.get(key) != about[key]), None)
    if differing is not None:
        raise ConfigError(
            f"--output: {shlex.quote(str(path))} belongs to a different export ({differing}: expected "
            f"{about[differing]}, got "
            f"{said.get(differing)}); choose another directory"
        )
