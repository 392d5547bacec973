"""inspect-cache: what a teacher store holds, whether it is sound, and single examples token by token."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from configs import ConfigError
from configs.command import run_command
from configs.models import load_tokenizer
from configs.schema import ModelConfig
from storage import StoreError, TeacherStore
from storage.cache_rows import TOKEN_SCHEMA, token_batches
from storage.verify import verify

SUMMARY_SQL = """
    SELECT task, language, view,
           count(DISTINCT example_id) AS examples,
           count(*) AS answer_tokens,
           avg(entropy) AS mean_entropy,
           -avg(logprob) AS teacher_ce,
           avg((gold_rank = 0)::INT) AS teacher_accuracy,
           avg(top_k_mass) AS top_k_mass_mean,
           quantile_cont(top_k_mass, 0.05) AS top_k_mass_p05
    FROM cache_tokens
    GROUP BY ALL
    ORDER BY task, language, view
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="inspect-cache", description=__doc__)
    parser.add_argument("--store", required=True, metavar="URL", help="directory or fsspec URL of the store")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--verify", action="store_true", help="check every byte and every number")
    parser.add_argument("--example", metavar="ID", help="show one example token by token")
    arguments = parser.parse_args(argv)
    run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.verify:
        _verify(arguments.store, arguments.format)
    elif arguments.example:
        _example(TeacherStore.open(arguments.store), arguments.example, arguments.format)
    else:
        _summary(TeacherStore.open(arguments.store), arguments.format)


def _verify(url: str, output: str) -> None:
    with tqdm(desc="verify", unit=" parts", disable=None, leave=False) as bar:
        problems = verify(url, lambda what: bar.update())
    if output == "json":
        print(json.dumps({"store": url, "sound": not problems, "problems": problems}, indent=2))
    elif not problems:
        print(f"{url}: sound; every object matches its manifest and every number its meaning")
    else:
        print("\n".join(problems))
    if problems:
        raise StoreError(f"--store {url}: {len(problems)} problems found")


def summary(store: TeacherStore) -> dict[str, Any]:
    """What `inspect-cache --format json` prints: the store as a whole, and rows per task, language and view."""
    connection = duckdb.connect()
    connection.register("cache_tokens", pa.RecordBatchReader.from_batches(TOKEN_SCHEMA, token_batches(store)))
    result = connection.execute(SUMMARY_SQL)
    names = [column[0] for column in result.description]
    rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    views: dict[str, Any] = {}
    for view in store.views:
        attributes = store.view_attributes(view)
        views[view] = {
            "complete": not store.missing_shards(view),
            "missing_shards": len(store.missing_shards(view)),
            "bytes": sum(store.objects.sizes(f"teachers/{view}").values()),
            "fingerprint": attributes["fingerprint"],
            **attributes["details"],
        }
    size = sum(store.objects.sizes().values())
    tokens = store.info.answer_tokens
    return {
        "store": store.url,
        "model": store.info.model,
        "teacher": dict(store.info.teacher),
        "fingerprint": store.info.fingerprint,
        "encoding": store.info.encoding,
        "top_k": store.info.top_k,
        "examples": len(store.examples),
        "validation_examples": len(store.validation),
        "answer_tokens": tokens,
        "shards": store.info.shards,
        "bytes": size,
        "bytes_per_answer_token_and_view": size / (tokens * max(1, len(store.views))),
        "views": views,
        "rows": rows,
    }


def _summary(store: TeacherStore, output: str) -> None:
    facts = summary(store)
    if output == "json":
        print(json.dumps(facts, indent=2))
        return
    print(
        f"{facts['store']}: {facts['examples']:,} examples, {facts['answer_tokens']:,} answer tokens, "
        f"top {facts['top_k']} ({facts['encoding']}), {facts['bytes'] / 1e6:,.1f} MB = "
        f"{facts['bytes_per_answer_token_and_view']:,.0f} bytes per answer token and view\n"
        f"teacher {facts['teacher'].get('model', facts['model'])} ({facts['teacher'].get('dtype', '?')}), "
        f"fingerprint {facts['fingerprint']}"
    )
    for view, about in facts["views"].items():
        state = "complete" if about["complete"] else f"{about['missing_shards']} of {facts['shards']} shards missing"
        dropped = sum(about.get("demonstrations_dropped", {}).values())
        print(
            f"view {view}: {state}, {about.get('demonstrations', 0):,} demonstrations, {dropped:,} dropped for length"
        )
    table = Table()
    headings = ("task", "language", "view", "examples", "answer tokens", "entropy", "teacher CE", "teacher accuracy")
    for name in (*headings, f"top-{facts['top_k']} mass", "5th percentile"):
        table.add_column(name, justify="left" if name in headings[:3] else "right")
    for row in facts["rows"]:
        table.add_row(
            row["task"],
            row["language"],
            row["view"],
            f"{row['examples']:,}",
            f"{row['answer_tokens']:,}",
            f"{row['mean_entropy']:.3f}",
            f"{row['teacher_ce']:.3f}",
            f"{row['teacher_accuracy']:.1%}",
            f"{row['top_k_mass_mean']:.4f}",
            f"{row['top_k_mass_p05']:.4f}",
        )
    _console().print(table)


def _example(store: TeacherStore, example_id: str, output: str) -> None:
    example = store.examples.index_of(example_id)
    answer_ids = store.examples.answer_ids(example)
    text = _decoder(store)
    tokens = []
    views = {view: store.read([example], view) for view in store.views if not store.missing_shards(view)}
    for position, token in enumerate(answer_ids.tolist()):
        entry: dict[str, Any] = {"position": position, "token_id": token, "token": text(token), "views": {}}
        for view, rows in views.items():
            probabilities = np.exp(rows.logits[position, :5] - rows.logsumexp[position])
            entry["views"][view] = {
                "entropy": float(rows.entropy[position]),
                "gold_probability": float(np.exp(rows.gold_logit[position] - rows.logsumexp[position])),
                "gold_rank": int(rows.gold_rank[position]),
                "top": [
                    {"token_id": int(t), "token": text(int(t)), "probability": float(p)}
                    for t, p in zip(rows.token_ids[position, :5], probabilities, strict=True)
                ],
            }
        tokens.append(entry)
    if output == "json":
        print(json.dumps({"example_id": example_id, "tokens": tokens}, indent=2, ensure_ascii=False))
        return
    prompt = "".join(text(int(token)) for token in store.examples.prompt_ids(example))
    print(f"{example_id}\n{prompt}")
    table = Table()
    for name in ("#", "answer token", *(f"{view} top 5" for view in views)):
        table.add_column(name)
    for entry in tokens:
        cells = [
            "  ".join(f"{escape(repr(top['token']))} {top['probability']:.2f}" for top in about["top"])
            for about in entry["views"].values()
        ]
        table.add_row(str(entry["position"]), escape(repr(entry["token"])), *cells)
    _console().print(table)


def _decoder(store: TeacherStore) -> Any:
    """Token id to text; the bare id where the store's tokenizer cannot be opened."""
    try:
        tokenizer = load_tokenizer(ModelConfig(name=store.info.model))
    except ConfigError as error:
        print(f"{error}; token ids are shown instead", file=sys.stderr)
        return lambda token: f"<{token}>"
    return lambda token: tokenizer.decode([token])


def _console() -> Console:
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 180)


if __name__ == "__main__":
    main()
