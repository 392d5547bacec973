"""A plan as documents in the store, so that it is made once: `plan/base.json` and one for each view.

They are sealed as manifests are, and nothing depends on them: a build whose data or settings are others, or that finds
none, plans again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from logitbank.errors import StoreError
from logitbank.storage import PlannedExamples
from logitbank.storage.objects import ObjectEntry, ObjectStore, plan_key, read_manifest, write_manifest
from logitbank.teacher_cache.plan import TeacherPlan, ViewPlan
from logitbank.teacher_cache.questions import Questions

BASE = "base"


class StoredPlan(NamedTuple):
    """A plan, and the objects that were written of it before there was a store; empty where there was one."""

    plan: TeacherPlan
    objects: Mapping[str, ObjectEntry]


class PlanKeys:
    """What plans are told apart by: all that they are made from."""

    def __init__(self, questions: Questions, layout: Mapping[str, Any]) -> None:
        """Take them down; `layout` is what decides it besides: shards, and whether prefixes are looked for."""
        self.base = _as_json({**questions.key(), **layout})
        self.views = {view: _as_json(questions.key(view)) for view in questions.views}


def read_plan(objects: ObjectStore, keys: PlanKeys) -> StoredPlan | None:
    """The plan of these keys; None if the store has none, or not of all views."""
    found = _read(objects, BASE)
    if found is None or found[1]["key"] != keys.base:
        return None
    entries, base = found
    views = {}
    for view, key in keys.views.items():
        if (stored := _read(objects, view)) is None:
            return None
        about = stored[1]
        if about["key"] != key or about["base"] != base["key"] or about["examples"] != base["examples"]:
            return None
        views[view] = _view_of(about)
    plan = TeacherPlan(
        examples=PlannedExamples(**base["examples"]),
        languages=tuple(base["languages"]),
        sources=np.cumsum(_unpacked(base["sources"], np.int64)),
        parts=_unpacked(base["parts"], np.int32),
        views=views,
        left_out={(task, language): count for task, language, count in base["left_out"]},
        notes=base["notes"],
    )
    return StoredPlan(plan, entries)


def read_objects_of_plan(objects: ObjectStore) -> Mapping[str, ObjectEntry]:
    """The objects that the latest plan, whichever it is, wrote before there was a store."""
    found = _read(objects, BASE)
    return {} if found is None else found[0]


def write_plan(objects: ObjectStore, keys: PlanKeys, plan: TeacherPlan, entries: Mapping[str, ObjectEntry]) -> None:
    """Keep a plan; `entries` are the objects that were written of it. What the store has of it already, stays."""
    examples = vars(plan.examples)
    for view, found in plan.views.items():
        decided = {"key": keys.views[view], "base": keys.base, "examples": examples}
        if _has(objects, view, decided):
            continue
        about = {
            **decided,
            "prompt_hash": found.prompt_hash,
            "as_student": found.as_student,
            "longest": found.longest,
            "demonstrations": found.demonstrations,
            "dropped": dict(found.dropped),
            "tokens": _packed(found.tokens),
            "checks": _packed(found.checks),
            "shared": None if found.shared is None else _packed(found.shared),
        }
        write_manifest(objects, plan_key(view), {}, about)
    if _has(objects, BASE, {"key": keys.base, "examples": examples}):
        return
    base = {
        "key": keys.base,
        "examples": examples,
        "languages": list(plan.languages),
        "sources": _packed(np.diff(plan.sources, prepend=0)),
        "parts": _packed(plan.parts),
        "left_out": [[task, language, count] for (task, language), count in sorted(plan.left_out.items())],
        "notes": dict(plan.notes),
    }
    write_manifest(objects, plan_key(BASE), entries, base)


def _read(objects: ObjectStore, name: str) -> tuple[dict[str, ObjectEntry], dict[str, Any]] | None:
    """A document; None if there is none that can be used."""
    with contextlib.suppress(FileNotFoundError, StoreError):
        return read_manifest(objects, plan_key(name))
    return None


def _has(objects: ObjectStore, name: str, decided: Mapping[str, Any]) -> bool:
    found = _read(objects, name)
    return found is not None and all(found[1][key] == value for key, value in decided.items())


def _view_of(about: Mapping[str, Any]) -> ViewPlan:
    return ViewPlan(
        prompt_hash=about["prompt_hash"],
        as_student=about["as_student"],
        longest=about["longest"],
        demonstrations=about["demonstrations"],
        dropped=about["dropped"],
        tokens=_unpacked(about["tokens"], np.int64),
        checks=_unpacked(about["checks"], np.uint64),
        shared=None if about["shared"] is None else _unpacked(about["shared"], np.int32),
    )


def _as_json(key: Mapping[str, Any]) -> Any:
    """A key as it is read back, so that the two compare equal."""
    return json.loads(json.dumps(key))


def _packed(values: NDArray[Any]) -> str:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()


def _unpacked(text: str, dtype: DTypeLike) -> NDArray[Any]:
    little = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.dtype(dtype).newbyteorder("<"))
    return little.astype(dtype)
