"""The data card of a shared store: what it holds, who may use it, and how it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from logitbank import __version__
from logitbank.authorship import describe_answers
from logitbank.storage import TeacherStore

CARD_NAME = "README.md"
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def write_card(store: TeacherStore, url: str, views: Sequence[str], licenses: Sequence[str], size: int) -> str:
    """The card as Markdown, with the metadata that the hub reads.

    Args:
        store: what is shared.
        url: where others will read it.
        views: the views that are shared.
        licenses: as the user gave them; none are invented.
        size: bytes of what is shared.
    """
    info = store.info
    teacher = info.teacher
    draws = f" and {info.draws} draws ({info.signal})" if info.draws else ""
    facts = {
        "Teacher": info.teacher_model,
        "Revision": teacher.get("revision"),
        "Weights (SHA-256)": teacher.get("weights"),
        "Engine, dtype": ", ".join(str(teacher[key]) for key in ("engine", "dtype") if teacher.get(key)),
        "Token ids of": f"{info.model} ({info.tokenizer_size:,} tokens)",
        "Fingerprint": f"`{info.fingerprint}`",
        "Tasks": ", ".join(info.tasks),
        "Languages": ", ".join(info.languages),
        "Split": info.split,
        "Answers": None if info.answers is None else describe_answers(info.answers),
        "Examples": f"{len(store.examples):,}",
        "Answer tokens": f"{info.answer_tokens:,}",
        "Per answer token": f"top {info.top_k} logits{draws}, `{info.encoding}`",
        "Bytes": f"{size:,}",
        "Licences": ", ".join(licenses) or "not stated",
        "Written by": f"logitbank {__version__}",
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value]
    of_views = [
        f"| {view} | {store.plan_of(view).shards:,} | {int(store.plan_of(view).answer_length.sum()):,} "
        f"| `{store.view_attributes(view)['fingerprint']}` |"
        for view in views
    ]
    shown = next((view for view in views if not store.has_own_sequences(view)), views[0])
    return f"""---
{_metadata(info.teacher_model, licenses, len(store.examples))}---

# Teacher logits of {info.teacher_model}

What the teacher says of every answer token: its top {info.top_k} logits, and the exact logsumexp and entropy. Students
are trained from it without running the teacher. The examples are included as token ids, so anyone who reads this can
read the texts.

| | |
|---|---|
{chr(10).join(rows)}

| view | shards | answer tokens | fingerprint |
|---|---|---|---|
{chr(10).join(of_views)}

## Reading it

```
pip install logitbank
train-student --config FILE --store {url} --view {shown} --output runs/student
logitbank pull {url} DIRECTORY
```

```python
import logitbank

store = logitbank.open_store("{url}")
rows = store.read([0], view="{shown}")  # token_ids and logits: (answer tokens, {info.top_k})
```

Every byte that is read is checked against its manifest. `inspect-cache --store {url} --verify` checks all of them.
"""


def _metadata(teacher: str, licenses: Sequence[str], examples: int) -> str:
    """YAML for the hub; JSON strings are YAML too."""
    size = next((name for most, name in SIZES.items() if examples < most), "n>10M")
    found: Mapping[str, Any] = {
        "pretty_name": f"Teacher logits of {teacher}",
        **({"license": list(licenses)} if licenses else {}),
        "tags": ["logitbank", "knowledge-distillation"],
        "size_categories": [size],
        "viewer": False,
    }
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in found.items())


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")
