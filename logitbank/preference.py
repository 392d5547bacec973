"""Preferences between two answers, in the words that all rooms share: pairs, classes, packed tokens, what was seen.

Shape letters: N pairs, L tokens of one packed pair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitbank.errors import ConfigError
from logitbank.sequences import Span

TASK = "preference"
CLASSES = ("model_a", "model_b", "tie")  # the columns of every array of logits, probabilities and targets
SWAPPED = (1, 0, 2)  # those columns once answers A and B change places
LETTERS = ("A", "B", "C")  # what a language model answers for each class
SEEN_PROMPTS = "seen_prompts.npz"  # beside a model's weights

Turns = tuple[str, ...]
Target = tuple[float, float, float]


@dataclass(frozen=True)
class Pair:
    """A prompt with two answers, and which of them people preferred.

    Attributes:
        example_id: unique over all splits: `preference/und/train/<id of the row>`.
        prompt: the user's turns, at least one.
        response_a: the turns of the first answer, as many as the prompt has.
        response_b: likewise, of the second.
        target: probability of each of `CLASSES`, their sum 1; None if unknown.
    """

    example_id: str
    prompt: Turns
    response_a: Turns
    response_b: Turns
    target: Target | None = None

    @property
    def row_id(self) -> str:
        """The id that the row has in its file."""
        return row_id_of(self.example_id)

    @cached_property
    def prompt_key(self) -> int:
        """What pairs of the same prompt share: 64 bits of a hash of its turns, without the space around them."""
        return _key([turn.strip() for turn in self.prompt])

    @cached_property
    def pair_key(self) -> int:
        """What pairs of the same prompt and the same two answers share, in either order."""
        answers = sorted([turn.strip() for turn in turns] for turns in (self.response_a, self.response_b))
        return _key([self.prompt_key, answers])

    def swapped(self) -> Pair:
        """The same comparison with its answers, and its target, the other way round."""
        target = None if self.target is None else (self.target[1], self.target[0], self.target[2])
        return replace(self, response_a=self.response_b, response_b=self.response_a, target=target)


def row_id_of(example_id: str) -> str:
    """The id that a row has in its file, from its `example_id`: what follows the third slash."""
    return example_id.split("/", 3)[-1]


def _key(content: object) -> int:
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def prompt_keys(pairs: Sequence[Pair]) -> NDArray[np.uint64]:
    """(N,) uint64, the prompt's key of each pair."""
    return np.array([pair.prompt_key for pair in pairs], dtype=np.uint64)


class PackedPair(NamedTuple):
    """A pair as the tokens that a model reads.

    Attributes:
        ids: (L,) int32.
        response_a: the positions of the first answer's tokens.
        response_b: likewise, of the second.
        cut: how many tokens were left out.
    """

    ids: NDArray[np.int32]
    response_a: Span
    response_b: Span
    cut: int = 0

    def swapped(self) -> PackedPair:
        """The same comparison with its answers exchanged: they have the same tokens in either place."""
        (a, b), ids = (self.response_a, self.response_b), self.ids
        between = ids[a.stop : b.start]
        parts = [ids[: a.start], ids[b.start : b.stop], between, ids[a.start : a.stop], ids[b.stop :]]
        first = Span(a.start, b.length)
        second = Span(first.stop + len(between), a.length)
        return PackedPair(np.concatenate(parts), first, second, self.cut)


@dataclass(frozen=True)
class SeenPrompts:
    """The prompts that a model learned from, and those that chose among its checkpoints; its base model's included.

    Attributes:
        trained: sorted keys of prompts whose rows moved the weights, uint64.
        selected: sorted keys of prompts whose rows chose a checkpoint, uint64.
    """

    trained: NDArray[np.uint64]
    selected: NDArray[np.uint64]

    @classmethod
    def of(
        cls, trained: Sequence[int] | NDArray[np.uint64], selected: Sequence[int] | NDArray[np.uint64] = ()
    ) -> SeenPrompts:
        """From keys in any order, repeated or not."""
        return cls(*(np.unique(np.asarray(keys, dtype=np.uint64)) for keys in (trained, selected)))

    @classmethod
    def read(cls, directory: Path) -> SeenPrompts | None:
        """What `write` wrote beside a model; None if there is no record.

        Raises:
            ConfigError: a file that cannot be read.
        """
        path = directory / SEEN_PROMPTS
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls.of(content["trained"], content["selected"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None

    def write(self, directory: Path) -> None:
        """Write `seen_prompts.npz` into a directory."""
        np.savez_compressed(directory / SEEN_PROMPTS, trained=self.trained, selected=self.selected)

    def union(self, other: SeenPrompts | None) -> SeenPrompts:
        """What either of two models saw."""
        if other is None:
            return self
        return SeenPrompts(np.union1d(self.trained, other.trained), np.union1d(self.selected, other.selected))
