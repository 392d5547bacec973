"""What generates answers and scores them by likelihood, behind one Protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from logitbank.configs import Config
from logitbank.evaluation.checkpoints import Checkpoint
from logitbank.registry import EVALUATION_ENGINES
from logitbank.sequences import AnsweredSequence
from logitbank.storage import TeacherRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Request:
    """One prompt to be continued.

    Attributes:
        prompt_ids: the whole prompt, generation prompt included.
        max_new_tokens: at most so many are generated.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without end-of-turn token or anything after it.
        cut_short: it ended at `max_new_tokens`, not at a stop token.
    """

    text: str
    cut_short: bool


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds the answers of one sequence, teacher-forced; sums over its answer tokens.

    Attributes:
        tokens: how many answer tokens there are.
        negative_log_likelihood: Σ −log p(token | all before it), nats.
        correct: how many are the model's first choice.
        compared: how many the teacher says something of; 0 without a teacher.
        kl: Σ KL(teacher ‖ model) over those, nats.
        agreement: how many of those have the teacher's first choice as the model's.
    """

    tokens: int
    negative_log_likelihood: float
    correct: int
    compared: int = 0
    kl: float = 0.0
    agreement: int = 0


@dataclass(frozen=True)
class Teacher:
    """What a teacher said of the sequences to be scored.

    Attributes:
        rows: positions of sequences -> its rows for their answer tokens, end to end.
        vocab_size: rows of its `lm_head`.
        untaught: answer tokens that it was not asked for, since it ends a turn with another.
    """

    rows: Callable[[Sequence[int]], TeacherRows]
    vocab_size: int
    untaught: Sequence[int] = ()


class Engine(Protocol):
    """Greedy generation and likelihoods with one model.

    Attributes:
        context_tokens: longest prompt and answer together that the model can take, where known.
    """

    context_tokens: int | None

    def generate(self, requests: Sequence[Request], *, progress: Callable[[int], object]) -> list[Answer]:
        """Answers in the order of the requests.

        Args:
            requests: prompts, of any lengths, in any order.
            progress: called with the number of answers that have just become ready.
        """

    def answer_logprobs(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, progress: Callable[[int], object]
    ) -> list[float]:
        """Sum of log p(answer token | prompt, earlier answer tokens) of each pair, in nats."""

    def score(
        self,
        sequences: Sequence[AnsweredSequence],
        teacher: Teacher | None = None,
        *,
        progress: Callable[[int], object],
    ) -> list[Likelihood]:
        """The likelihood of each sequence's answers, in the order of the sequences.

        Args:
            sequences: of any lengths, in any order.
            teacher: what to compare with.
            progress: called with the number of sequences that have just become ready.

        Raises:
            ConfigError: a teacher, where the engine cannot compare.
        """


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int]) -> Answer:
    """The answer in generated ids: up to the first stop token, cut short where there is none."""
    ends = [position for position, token in enumerate(ids) if token in stop_ids]
    kept = list(ids[: ends[0]] if ends else ids)
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(str(text), cut_short=not ends)


EngineOpener = Callable[[Config, Checkpoint | None], Engine]


def open_engine(config: Config, checkpoint: Checkpoint | None) -> Engine:
    """The engine that `evaluation.engine` names, with the base model or a checkpoint of it.

    Raises:
        ConfigError: a model, tokenizer or checkpoint that cannot be opened.
    """
    opener: EngineOpener = EVALUATION_ENGINES[config.evaluation.engine]
    return opener(config, checkpoint)
