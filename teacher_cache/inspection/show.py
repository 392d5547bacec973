"""What inspect-cache prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from logitbank.storage import StoreError, TeacherStore, verify
from logitbank.teacher_cache.inspection.summary import Inspection


def show_verification(url: str, output: str) -> None:
    """Say whether a store is sound, as text or JSON.

    Raises:
        StoreError: it is not.
    """
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


def show_summary(inspection: Inspection, output: str) -> None:
    """What a store holds, as text or JSON."""
    facts = inspection.summary()
    if output == "json":
        print(json.dumps(facts, indent=2))
        return
    draws = f" and {facts['draws']} draws, {facts['signal']}" if facts["draws"] else ""
    print(
        f"{facts['store']}: {facts['examples']:,} examples, {facts['answer_tokens']:,} answer tokens, "
        f"top {facts['top_k']}{draws} ({facts['encoding']}), {facts['bytes'] / 1e6:,.1f} MB = "
        f"{facts['bytes_per_answer_token_and_view']:,.0f} bytes per answer token and view\n"
        f"teacher {facts['teacher'].get('model', facts['model'])} ({facts['teacher'].get('dtype', '?')}), "
        f"fingerprint {facts['fingerprint']}"
    )
    for view, about in facts["views"].items():
        state = "complete" if about["complete"] else f"{about['missing_shards']} of {facts['shards']} shards missing"
        dropped = sum(about.get("demonstrations_dropped", {}).values())
        print(
            f"view {view}: {state}, {about.get('demonstrations', 0):,} demonstrations, {dropped:,} dropped for length, "
            f"fingerprint {about['fingerprint']}"
        )
    if inspection.views:
        _console().print(_table(facts, inspection.views))


def _table(facts: dict[str, Any], views: Sequence[str]) -> Table:
    """A line per task and language; where there are several views, their values side by side."""
    measures = {
        "bytes per token": ("bytes_per_token", "{:,.0f}"),
        "entropy": ("mean_entropy", "{:.3f}"),
        "teacher CE": ("teacher_ce", "{:.3f}"),
        "teacher accuracy": ("teacher_accuracy", "{:.1%}"),
        f"top-{facts['top_k']} mass": ("top_k_mass_mean", "{:.4f}"),
        "5th percentile": ("top_k_mass_p05", "{:.4f}"),
        "demonstrations dropped": ("demonstrations_dropped", "{:,}"),
    }
    table = Table(title=f"side by side: {' | '.join(views)}" if len(views) > 1 else f"view {views[0]}")
    for name in ("task", "language"):
        table.add_column(name)
    for name in ("examples", "answer tokens", *measures):
        table.add_column(name, justify="right")
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in facts["rows"]:
        cells.setdefault((row["task"], row["language"]), {})[row["view"]] = row
    cells[("all", "")] = {
        view: {
            **facts["views"][view],
            "demonstrations_dropped": sum(facts["views"][view].get("demonstrations_dropped", {}).values()),
        }
        for view in views
    }
    for (task, language), by_view in cells.items():
        if task == "all":
            table.add_section()
        most = max(by_view.values(), key=lambda row: row["answer_tokens"])  # a half-built view has fewer
        shown = [
            " | ".join(form.format(by_view[view][key]) if view in by_view else "–" for view in views)
            for key, form in measures.values()
        ]
        table.add_row(task, language, f"{most['examples']:,}", f"{most['answer_tokens']:,}", *shown)
    return table


def show_example(store: TeacherStore, example_id: str, output: str) -> None:
    """One example token by token, as text or JSON.

    Raises:
        StoreError: no such example.
    """
    from logitbank.models.huggingface import token_text  # transformers: not for the rest

    example = store.examples.index_of(example_id)
    answer_ids = store.examples.answer_ids(example)
    text = token_text(store.info.model)
    tokens = []
    written = [view for view in store.views if store.plan.shard_of(example) not in store.missing_shards(view)]
    views = {view: store.read([example], view) for view in written}
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
    for view in store.views:
        if view not in views:
            print(f"view {view}: not written yet")
    table = Table()
    for name in ("#", "answer token", *(name for view in views for name in (f"{view}: p, rank", f"{view}: top 5"))):
        table.add_column(name)
    for entry in tokens:
        cells = []
        for about in entry["views"].values():
            cells.append(f"{about['gold_probability']:.2f}, {about['gold_rank']:,}")
            cells.append("  ".join(f"{escape(repr(top['token']))} {top['probability']:.2f}" for top in about["top"]))
        table.add_row(str(entry["position"]), escape(repr(entry["token"])), *cells)
    _console().print(table)


def _console() -> Console:
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 180)
