"""What a store is built from, what it says of itself, and the fingerprint that tells two stores apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from logitbank.storage.groups import SHORT_DIGITS, as_json, hash_json
from logitbank.storage.teacher_store.layout import FORMAT, FORMAT_VERSION
from logitbank.storage.teacher_store.views import OwnSequences, Saw, Tokens, ViewLayout
from logitbank.storage.teacher_store.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class StoreFields:
    """What decides a store's arrays, known before and after it is built; a root's attributes are in this order.

    Attributes:
        model: hub id or path of the student's base model.
        tokenizer_size: ids below this may be stored; rows above are padding of the `lm_head`.
        vocab_size: rows of the teacher's `lm_head`.
        tokenizer_hash: of the tokenizer that made every id.
        tasks: names of the tasks, in the order that example columns index.
        languages: likewise.
        top_k: ranks stored per answer token.
        signal: one of `samples.SIGNALS`.
        draws: per answer token; 0 for `topk`.
        encoding: key of `logitbank.registry.ENCODINGS`.
        shard_tokens: answer-token rows per shard.
        chunk_tokens: answer-token rows per inner chunk.
        teacher: model, revision, weights hash, engine, dtype … of the teacher.
        config: the full configuration, for information only.
    """

    model: str
    tokenizer_size: int
    vocab_size: int
    tokenizer_hash: str
    tasks: tuple[str, ...]
    languages: tuple[str, ...]
    top_k: int
    signal: str = "topk"
    draws: int = 0
    encoding: str
    shard_tokens: int
    chunk_tokens: int
    teacher: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StoreSpec(StoreFields):
    """What a store is built from; all of it but `config` must be the same to resume building.

    Attributes:
        identity: whatever else changes ids or numbers: `template` (hash of the chat template), `seed` …
    """

    identity: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StoreInfo(StoreFields):
    """What a store says of itself.

    Attributes:
        identity: every input that decides its content, as `identity_of` gives it.
        fingerprint: SHA-256 over the identity and the vocabulary.
        answer_tokens: answer tokens of all examples, per view.
        shards: shards per view.
    """

    identity: Mapping[str, Any]
    fingerprint: str
    answer_tokens: int
    shards: int

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> StoreInfo:
        """What the attributes of a store's root group say; others than the known ones are left out."""
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in attributes.items() if key in known}
        return cls(**{**values, "tasks": tuple(values["tasks"]), "languages": tuple(values["languages"])})

    @property
    def template_hash(self) -> str | None:
        """Hash of the chat template that made every prompt; None if the builder recorded none."""
        return self._text(self.identity.get("identity", {}).get("template"))

    @property
    def untaught(self) -> tuple[int, ...]:
        """Answer tokens whose rows carry no teacher term: the teacher ends a turn with another token."""
        return tuple(self.identity.get("identity", {}).get("untaught", ()))

    @property
    def teacher_template(self) -> str | None:
        """Hash of the teacher's chat template, if it is another than the student's; None for any other teacher."""
        return self._text(self.identity.get("identity", {}).get("teacher_template"))

    @property
    def split(self) -> str:
        """Whose examples it holds."""
        return self._text(self.identity.get("identity", {}).get("split")) or "train"

    @property
    def answers(self) -> Mapping[str, Any] | None:
        """Which model wrote the answers, and how: the record of their file; None if they are the examples' own.

        `model` is None if nothing says it.
        """
        found = self.identity.get("identity", {}).get("answers")
        return found if isinstance(found, Mapping) else None

    @property
    def teacher_model(self) -> str:
        """Hub id or path of the teacher; the student's base model where the builder recorded none."""
        return self._text(self.teacher.get("model")) or self.model

    @property
    def tokens(self) -> Tokens:
        """What the ids of the examples, and of views without ids of their own, stand for."""
        return Tokens(self.tokenizer_size, self.vocab_size, self.tokenizer_hash)

    @property
    def short_fingerprint(self) -> str:
        """The fingerprint's first digits, for tables and messages."""
        return self.fingerprint[:SHORT_DIGITS]

    @staticmethod
    def _text(value: object) -> str | None:
        return value if isinstance(value, str) else None


@dataclass(frozen=True)
class PlannedExamples:
    """What is known of a store's examples once they are planned.

    Attributes:
        shard_tokens, chunk_tokens: of the answer-token axis.
        shards: how many.
        answer_tokens: of all examples.
        examples, validation: number and hash of each group of examples.
    """

    shard_tokens: int
    chunk_tokens: int
    shards: int
    answer_tokens: int
    examples: Mapping[str, Any]
    validation: Mapping[str, Any]


def identity_of(spec: StoreSpec, planned: PlannedExamples) -> dict[str, Any]:
    """Every input that decides a store's content, as JSON gives it back."""
    values = asdict(spec)
    del values["config"]
    if not spec.draws:
        for key in _UNSAID:
            del values[key]
    values.update(
        shard_tokens=planned.shard_tokens,
        chunk_tokens=planned.chunk_tokens,
        examples=planned.examples,
        validation=planned.validation,
    )
    return dict(as_json(values))


def root_attributes(
    spec: StoreSpec, identity: Mapping[str, Any], planned: PlannedExamples, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Attributes of a new store's root group; `StoreInfo.from_attributes` reads them."""
    common = [f.name for f in fields(StoreFields) if f.name in identity]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": hash_json([identity, vocabulary.hash()]),
        "identity": identity,
        "shards": planned.shards,
        "answer_tokens": planned.answer_tokens,
        "config": as_json(spec.config),
        **{key: identity[key] for key in common},
    }


def view_identity(identity: Mapping[str, Any], own: OwnSequences | None, layout: ViewLayout) -> dict[str, Any]:
    """Every input that decides what a view holds, as JSON gives it back."""
    found = dict(identity)
    if own is not None:
        sizes = {"shard_tokens": layout.plan.shard_tokens, "chunk_tokens": layout.chunk_tokens}
        found["own"] = own.identity() | sizes
    return dict(as_json(found))


def view_attributes(
    view: str,
    store_fingerprint: str,
    sequences: Saw,
    identity: Mapping[str, Any],
    details: Mapping[str, Any],
    layout: ViewLayout,
) -> dict[str, Any]:
    """Attributes of a new view's group, from what `view_identity` gave."""
    decides: list[Any] = [store_fingerprint, identity]
    attributes: dict[str, Any] = {"view": view, "sequences": sequences}
    if (own := identity.get("own")) is not None:
        attributes["sequences"] = "own"
        attributes |= {key: value for key, value in own.items() if key not in ("count", "hash")}
        attributes |= {"shards": layout.plan.shards, "answer_tokens": int(layout.plan.answer_length.sum())}
        if "teacher" in own:
            decides.append(layout.vocabulary.hash())
    return {**attributes, "identity": identity, "details": as_json(details), "fingerprint": hash_json(decides)}


_UNSAID = {"signal": "topk", "draws": 0}  # a store without draws says nothing of them
ABSENT = {
    **_UNSAID,
    "identity.split": "train",  # nor one of the training split of that
    "teacher.capture": "decode",  # nor one of vLLM while it decoded given answers
}
