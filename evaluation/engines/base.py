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
class Draw:
    """One answer to be sampled: its tokens are a function of what stands here, whatever else is sampled with it.

    Attributes:
        request: its prompt.
        seed: of all answers.
        name: of this one.
    """

    request: Request
    seed: int
    name: str


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: from the smallest set of tokens that has this probability.
        vocabulary: ids below it are tokens; rows of the `lm_head` above it are never drawn.
    """

    temperature: float
    top_p: float
    vocabulary: int


@dataclass(frozen=True)
class Sample:
    """Tokens as a model drew them.

    Attributes:
        token_ids: the stop token that ended the answer included.
        cut_short: no stop token ended it.
    """

    token_ids: Sequence[int]
    cut_short: bool


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
    """Generation and likelihoods with one model.

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

    def sample(self, draws: Sequence[Draw], sampling: Sampling, *, progress: Callable[[int], object]) -> list[Sample]:
        """Sampled answers in the order of the draws.

        Args:
            draws: prompts, of any lengths, in any order.
            sampling: how tokens are drawn.
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


def sample_of(ids: Sequence[int], stop_ids: Sequence[int], vocabulary: int) -> Sample:
    """The sample in generated ids: up to and with the first stop token, or up to the first id that is not a token."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return Sample(list(ids[: position + 1]), cut_short=False)
        if token >= vocabulary:
            return Sample(list(ids[:position]), cut_short=True)
    return Sample(list(ids), cut_short=True)


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int]) -> Answer:
    """The answer in generated ids: up to the first stop token, cut short if there is none."""
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
