"""Whether a teacher fits a student: the tokens that both mean by the same ids, and whose chat template asks."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.models.huggingface import context_tokens, lm_head_rows, load_tokenizer
from logitbank.models.vocabulary import ModelTokens, TokenDifferences
from logitbank.sequences import AnsweredSequence
from logitbank.tasks.prompts import PromptEncoder

logger = logging.getLogger(__name__)


class Contexts(NamedTuple):
    """Most tokens that student and teacher read at once; None for a model without such a limit."""

    student: int | None = None
    teacher: int | None = None


@dataclass(frozen=True)
class Pairing:
    """A student and its teacher before anything is asked.

    Attributes:
        student: the base model of the students.
        teacher: the model that will be asked; the student's base model if no other is configured.
        encoder: of the student.
        own: encoder of a teacher whose chat template is another than the student's; None for any other teacher.
        tokens: what the two mean by their ids; None if both are one model.
        teacher_tokenizer: hash of the teacher's tokenizer, for information; None if both are one model.
    """

    student: ModelConfig
    teacher: ModelConfig
    encoder: PromptEncoder
    own: PromptEncoder | None = None
    tokens: TokenDifferences | None = None
    teacher_tokenizer: str | None = None

    @cached_property
    def excluded(self) -> tuple[int, ...]:
        """Ids that both could rank, but that are not the same token for both: they never enter the top K."""
        return () if self.tokens is None else tuple(i for i in self.tokens.ids.tolist() if i < self._rankable)

    @cached_property
    def contexts(self) -> Contexts:
        """Most tokens that each of the two reads at once."""
        return Contexts(context_tokens(self.student), context_tokens(self.teacher))

    @property
    def rankable(self) -> int:
        """How many ids may enter the top K."""
        return self._rankable - len(self.excluded)

    @cached_property
    def _rankable(self) -> int:
        return min(lm_head_rows(self.teacher), len(self.encoder.tokenizer))

    def check(self, student: AnsweredSequence, teacher: Iterable[AnsweredSequence], untaught: Sequence[int]) -> None:
        """Refuse an example with an id that is another token for the teacher.

        A teacher with a chat template of its own writes the context in its own ids: it shares the answers' alone.

        Args:
            student: what a student learns.
            teacher: what the teacher reads of it.
            untaught: answer tokens that it is not asked for.

        Raises:
            ConfigError: names the first such token, as both spell it.
        """
        if self.tokens is None:
            return
        answer_ids = student.answer_ids
        used = answer_ids[~np.isin(answer_ids, untaught)]
        contexts = (sequence.context_ids for sequence in teacher) if self.own is None else ()
        token = self.tokens.first_used([used, *contexts])
        if token is not None:
            raise ConfigError(
                f"teacher.model: expected the student's token for every id in the data, but "
                f"{self.tokens.describe(token)}; logits can only be used between ids of the same tokens"
            )


def pair(config: Config) -> Pairing:
    """Open the tokenizers of student and teacher and compare them.

    Raises:
        ConfigError: one of them, or a model configuration, that cannot be opened; a teacher most of whose ids are
            other tokens, or whose chat template gives an answer's text other token ids.
    """
    encoder = PromptEncoder(load_tokenizer(config.model))
    teacher = teacher_model(config)
    if teacher.name == config.model.name:
        return Pairing(config.model, teacher, encoder)
    try:
        theirs = PromptEncoder(load_tokenizer(teacher))
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.name", "teacher.model", 1)) from None
    tokens = TokenDifferences(
        ModelTokens.of(config.model.name, encoder.tokenizer, lm_head_rows(config.model)),
        ModelTokens.of(teacher.name, theirs.tokenizer, lm_head_rows(teacher)),
    )
    if 2 * len(tokens.ids) > len(encoder.tokenizer):
        raise ConfigError(
            f"teacher.model: expected the tokens of {shlex.quote(config.model.name)}, got another tokenizer's: "
            f"{len(tokens.ids):,} ids are other tokens ({tokens.describe(int(tokens.ids[0]))}); use a teacher of the "
            "student's family"
        )
    if len(tokens.ids):
        logger.info(
            "teacher.model: %s not the same token for student and teacher (%s): their probability is added to the tail",
            "1 id is" if len(tokens.ids) == 1 else f"{len(tokens.ids):,} ids are",
            tokens.describe(int(tokens.ids[0])),
        )
    own = None
    if theirs.template_hash != encoder.template_hash:
        _check_templates(encoder, theirs, config.model.name, teacher.name)
        own = theirs
    return Pairing(config.model, teacher, encoder, own, tokens, theirs.tokenizer_hash)


def teacher_model(config: Config) -> ModelConfig:
    """The teacher: `teacher.model`, or the student's base model."""
    name = config.teacher.model or config.model.name
    revision = config.teacher.revision if config.teacher.model else config.model.revision
    return ModelConfig(
        name=name,
        revision=revision,
        dtype=config.model.dtype,
        attn_implementation=config.model.attn_implementation,
        trust_remote_code=config.model.trust_remote_code,
    )


def _check_templates(encoder: PromptEncoder, theirs: PromptEncoder, student: str, teacher: str) -> None:
    """Refuse a template that gives answers other token ids; say where it ends a turn with another token."""
    student, teacher = shlex.quote(student), shlex.quote(teacher)
    if not theirs.answers_like(encoder):
        raise ConfigError(
            f"teacher.model: expected answers with the token ids that the chat template of {student} gives "
            f"them, but the template of {teacher} gives others (such as a space before the answer); use the same "
            "template for both"
        )
    if theirs.end_of_turn_id != encoder.end_of_turn_id:
        their_end, our_end = (it.tokenizer.convert_ids_to_tokens(it.end_of_turn_id) for it in (theirs, encoder))
        logger.info(
            "teacher.model: %s ends a turn with %s, the student with %s: the end of turn carries no teacher term",
            teacher,
            their_end,
            our_end,
        )
