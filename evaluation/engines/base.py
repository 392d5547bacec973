"""What generates answers and scores them by likelihood, behind one Protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from logitbank.configs import Config
from logitbank.evaluation.checkpoints import Checkpoint


@dataclass(frozen=True)
class Request:
    """One prompt to be continued.

    Attributes:
        prompt_ids: the whole prompt, generation prompt included.
        max_new_tokens: at most so many are generated.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int


class Engine(Protocol):
    """Greedy generation with one model; `open_engine` picks the implementation."""

    tokenizer: Any
    context_tokens: int | None  # longest prompt and answer together that the model can take, where known

    def generate(self, requests: Sequence[Request], *, progress: Callable[[int], object]) -> list[str]:
        """Answers in the order of the requests, without end-of-turn token or anything after it.

        Args:
            requests: prompts, of any lengths, in any order.
            progress: called with the number of answers that have just become ready.
        """

    def answer_logprobs(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, progress: Callable[[int], object]
    ) -> list[float]:
        """Sum of log p(answer token | prompt, earlier answer tokens) of each pair, in nats."""


def open_engine(config: Config, checkpoint: Checkpoint | None) -> Engine:
    """The engine that `evaluation.engine` names, with the base model or a checkpoint of it.

    Raises:
        ConfigError: a model, tokenizer or checkpoint that cannot be opened.
    """
    if config.evaluation.engine == "vllm":
        from logitbank.evaluation.engines.vllm import VllmEngine

        return VllmEngine.open(config, checkpoint)
    from logitbank.evaluation.engines.huggingface import HfEngine

    return HfEngine.open(config, checkpoint)
