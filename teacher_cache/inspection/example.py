"""One example of a store, token by token: what the student reads, and what its teachers said of each answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from logitbank.errors import counted
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows, TeacherStore
from logitbank.teacher_cache.tables import print_table

TOP = 5  # tokens shown of each row


def show_example(store: TeacherStore, example_id: str, output: str) -> None:
    """One example token by token, as text or JSON; of a conversation one answer after the other.

    Raises:
        StoreError: no such example.
    """
    from logitbank.models.huggingface import token_text  # transformers: not for the rest

    example = store.examples.index_of(example_id)
    sequence = store.examples.sequence(example)
    shared = [view for view in store.views if not store.has_own_sequences(view)]
    written = [view for view in shared if store.plan.shard_of(example) not in store.missing_shards(view)]
    views = {view: store.read([example], view) for view in written}
    text = token_text(store.info.model)
    spans, tokens = _spans(sequence, views), _tokens(sequence, views, text)
    if output == "json":
        print(json.dumps({"example_id": example_id, "spans": spans, "tokens": tokens}, indent=2, ensure_ascii=False))
        return
    print(example_id)
    for view in store.views:
        if view not in shared:
            print(f"view {view}: {counted(len(store.table(view).positions_of(example_id)), 'sequence')} of its own")
        elif view not in views:
            print(f"view {view}: not written yet")
    shown = 0
    for number, span in enumerate(sequence.spans):
        print("".join(text(int(token)) for token in sequence.ids[shown : span.start]))
        if len(sequence.spans) > 1:
            print(f"answer {number + 1} of {len(sequence.spans)}, tokens {span.start:,} to {span.stop - 1:,}:")
        _print_tokens([token for token in tokens if token["span"] == number])
        shown = span.stop
    if len(sequence.spans) > 1 and views:
        print()
        _print_spans(spans)


def _spans(sequence: AnsweredSequence, views: Mapping[str, TeacherRows]) -> list[dict[str, Any]]:
    """Each answer: its position, and means over its tokens under each view."""
    found, start = [], 0
    for span in sequence.spans:
        part = slice(start, start + span.length)
        means = {
            view: {
                "mean_entropy": float(rows.entropy[part].mean()),
                "teacher_ce": float((rows.logsumexp[part] - rows.gold_logit[part]).mean()),
                "teacher_accuracy": float((rows.gold_rank[part] == 0).mean()),
            }
            for view, rows in views.items()
        }
        found.append({"start": span.start, "length": span.length, "views": means})
        start += span.length
    return found


def _tokens(
    sequence: AnsweredSequence, views: Mapping[str, TeacherRows], text: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Each answer token and its rows."""
    found = []
    span_of = np.repeat(np.arange(len(sequence.spans)), [span.length for span in sequence.spans])
    for position, (token, span) in enumerate(zip(sequence.answer_ids.tolist(), span_of.tolist(), strict=True)):
        entry: dict[str, Any] = {"position": position, "span": span, "token_id": token, "token": text(token)}
        entry["views"] = {view: _row(rows, position, text) for view, rows in views.items()}
        found.append(entry)
    return found


def _row(rows: TeacherRows, position: int, text: Callable[[int], str]) -> dict[str, Any]:
    probabilities = np.exp(rows.logits[position, :TOP] - rows.logsumexp[position])
    return {
        "entropy": float(rows.entropy[position]),
        "gold_probability": float(np.exp(rows.gold_logit[position] - rows.logsumexp[position])),
        "gold_rank": int(rows.gold_rank[position]),
        "top": [
            {"token_id": int(token), "token": text(int(token)), "probability": float(probability)}
            for token, probability in zip(rows.token_ids[position, :TOP], probabilities, strict=True)
        ],
    }


def _print_tokens(tokens: list[dict[str, Any]]) -> None:
    """A line per answer token and view, the views of a token below each other."""
    lines = []
    for entry in tokens:
        for view, about in entry["views"].items():
            top = "  ".join(f"{top['token']!r} {top['probability']:.2f}" for top in about["top"])
            where = [str(entry["position"]), repr(entry["token"])]
            lines.append([*where, view, f"{about['gold_probability']:.2f}", f"{about['gold_rank']:,}", top])
    print_table(["#", "answer token", "view", "p", "rank", "top 5"], lines, left=6)


def _print_spans(spans: list[dict[str, Any]]) -> None:
    """A line per answer, the views side by side."""
    views = list(spans[0]["views"])
    measures = {"entropy": ("mean_entropy", "{:.3f}"), "CE": ("teacher_ce", "{:.3f}")}
    measures["accuracy"] = ("teacher_accuracy", "{:.0%}")
    header = ["answer", "tokens", *(f"{name} {view}" for name in measures for view in views)]
    rows = [
        [
            *(str(number), f"{span['length']:,}"),
            *(form.format(span["views"][view][key]) for key, form in measures.values() for view in views),
        ]
        for number, span in enumerate(spans, start=1)
    ]
    print_table(header, rows)
