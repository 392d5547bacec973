"""The teacher that answers are compared with: a view of a store that was built on the split that is evaluated."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.errors import StoreError
from logitbank.evaluation.engines.base import Teacher
from logitbank.experiment import model_label
from logitbank.models.huggingface import lm_head_rows, load_tokenizer
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows, TeacherStore
from logitbank.tasks.prompts import PromptEncoder

DIGITS = 6  # of a fingerprint, in tables


@dataclass(frozen=True)
class Reference:
    """One view of an opened store.

    Attributes:
        store: the store.
        view: the view.
        fingerprint: of the view: what the comparison depends on.
    """

    store: TeacherStore
    view: str
    fingerprint: str

    @property
    def label(self) -> str:
        """Teacher, view, K and the fingerprint's first digits, as `taught_by` has them."""
        info = self.store.info
        return f"{model_label(info.teacher_model)} {self.view} K={info.top_k} {self.fingerprint[:DIGITS]}"

    def teacher_encoder(self, encoder: PromptEncoder) -> PromptEncoder | None:
        """The teacher's encoder, where its chat template is not that of the evaluated model.

        It decides which turns of a conversation share a sequence.

        Raises:
            ConfigError: the teacher's tokenizer cannot be opened.
        """
        info = self.store.info
        if info.teacher_template is None:
            return None
        own = ModelConfig(name=info.teacher_model, revision=info.teacher.get("revision"))
        return PromptEncoder(load_tokenizer(own))

    def teacher_of(self, sequences: Sequence[tuple[str, AnsweredSequence]]) -> Teacher:
        """The rows of the given sequences.

        Args:
            sequences: ids as the store has them, and what will be scored.

        Raises:
            StoreError: a sequence that the store lacks, or has with other tokens.
        """
        table, place = self.store.examples, f"--store {shlex.quote(self.store.url)}"
        again = "build it with build-teacher-cache --split and the same model, data and chat.* settings"
        positions = []
        for name, sequence in sequences:
            try:
                position = table.index_of(name)
            except StoreError:
                raise StoreError(f"{place}: has no example {name}, which this run evaluates; {again}") from None
            if table.sequence(position) != sequence:
                raise StoreError(f"{place}: example {name} has different tokens than this run evaluates; {again}")
            positions.append(position)

        def rows(places: Sequence[int]) -> TeacherRows:
            return self.store.read([positions[place] for place in places], self.view)

        info = self.store.info
        return Teacher(rows, info.vocab_size, info.untaught)


def open_reference(url: str, view: str | None, config: Config) -> Reference:
    """Open a store to compare with.

    Args:
        url: of the store.
        view: which of its views; None if it has one alone.
        config: what is evaluated.

    Raises:
        ConfigError: an engine that cannot compare, a store of draws, or of another split, or with several views of
            which none is named.
        StoreError: no store, or a view that is absent or half-built.
    """
    place = f"--store {shlex.quote(url)}"
    if config.evaluation.engine == "vllm":
        raise ConfigError(
            f"{place}: vLLM does not return logits to compare with a teacher's; set evaluation.engine=hf, or leave "
            "--store out"
        )
    store = TeacherStore.open(url)
    info, asked = store.info, config.evaluation.split
    if info.split != asked:
        raise ConfigError(
            f"{place}: expected a store of the evaluated split {asked}, got one of {info.split}; "
            f"build one with build-teacher-cache --split {asked}"
        )
    if info.signal == "sampled":
        raise ConfigError(f"{place}: expected a store with ranks (teacher.signal=topk or hybrid), got only draws")
    if view is None:
        if len(store.views) != 1:
            have = ", ".join(store.views) or "none yet"
            raise ConfigError(f"--view: expected the view to compare with, got none; views of {url}: {have}")
        (view,) = store.views
    store.require_view(view)
    rows = lm_head_rows(config.model)
    if rows < info.tokenizer_size:
        raise ConfigError(
            f"{place}: it ranks {info.tokenizer_size} tokens, but {config.model.name} has {rows} lm_head rows; build "
            "a store for this model"
        )
    return Reference(store, view, str(store.view_attributes(view)["fingerprint"]))
