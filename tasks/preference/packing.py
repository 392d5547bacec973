"""Comparisons as the tokens that a model reads, cut to a length of which each text has its share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from logitbank.errors import TaskError
from logitbank.preference import PackedPair, Pair, Turns
from logitbank.sequences import Span
from logitbank.tasks.preference.rows import has_text
from logitbank.tasks.prompts import PromptEncoder
from logitbank.tasks.texts import TextEncoder, around

SHARES = (1, 2, 2)  # of prompt, answer A and answer B in what the fixed text leaves: 20, 40 and 40 %
CUT = " [...]"  # marks where text was left out
EMPTY = "(empty)"  # stands for an answer without text
SYSTEM_PROMPT = "You compare two answers to the same prompt and say which of them people prefer."
HOLES = ("\ue000prompt\ue000", "\ue001answer\ue001", "\ue002answer\ue002")  # where the texts go, in private letters
LAYOUT = f"Prompt:\n{HOLES[0]}\n\nAnswer A:\n{HOLES[1]}\n\nAnswer B:\n{HOLES[2]}\n\n"
QUESTION = "Which answer is better? Reply with one letter: A, B, or C if they are equally good."
CLOSING = "Which answer is better?"
_BATCH = 256  # comparisons that are tokenised at a time

Ids = list[int]


class _Section(NamedTuple):
    """The prompt or an answer: what names each turn, if there are several, and the turn's own tokens."""

    labels: list[Ids]
    turns: list[Ids]

    @property
    def length(self) -> int:
        """Tokens of the whole."""
        return sum(map(len, self.labels)) + sum(map(len, self.turns))


class PairPacker:
    """Packs comparisons for one tokenizer and one length.

    Fixed text surrounds three sections: prompt, answer A, answer B. They share what it leaves of the length 1:2:2;
    what one does not need goes to those that do. A section that is cut keeps whole turns from its end, or from its
    beginning, then the beginning of the next, and a mark where something is missing. The texts are tokenised on their
    own, so the answers have the same tokens in either place.

    Attributes:
        max_tokens: the longest sequence.
        least_tokens: the smallest `max_tokens` that this tokenizer allows.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int, keep_turns: str = "last", head: str = "classifier") -> None:
        """Tokenise the fixed text.

        Args:
            tokenizer: of the model that is to read the pairs.
            max_tokens: the longest sequence allowed.
            keep_turns: whether the `last` or the `first` turns stay where not all fit.
            head: `classifier` for plain text that ends in a question; `letters` for the chat template of a language
                model, whose next token is then the letter of the better answer.

        Raises:
            TaskError: `max_tokens` leaves no room for the texts.
        """
        self._texts = TextEncoder(tokenizer)
        if head == "letters":
            self._fixed = PromptEncoder(tokenizer).encode_around(SYSTEM_PROMPT, LAYOUT + QUESTION, HOLES)
        else:
            first, *between, last = map(self._texts.own, around(LAYOUT + CLOSING, HOLES))
            self._fixed = [self._texts.opening + first, *between, last + self._texts.closing]
        self._cut, self._empty = self._texts.own(CUT), self._texts.own(EMPTY)
        self._labels: dict[int, Ids] = {}
        self._keep_last = keep_turns == "last"
        self.max_tokens = max_tokens
        fixed = sum(map(len, self._fixed))
        self._room = max_tokens - fixed
        self.least_tokens = fixed + sum(SHARES) * (len(self._cut) + 1)
        if max_tokens < self.least_tokens:
            raise TaskError(
                f"max_tokens: expected at least {self.least_tokens} with this tokenizer (the text around a comparison "
                f"takes {fixed}), got {max_tokens}"
            )

    def pack(self, pair: Pair) -> PackedPair:
        """The tokens of one comparison."""
        return next(self.pack_all([pair]))

    def pack_all(self, pairs: Iterable[Pair]) -> Iterator[PackedPair]:
        """The tokens of comparisons, in their order; many at a time are tokenised faster than one by one."""
        left = iter(pairs)
        while batch := list(islice(left, _BATCH)):
            texts = (turns for pair in batch for turns in (pair.prompt, pair.response_a, pair.response_b))
            sections = self._sections(list(texts))
            for start in range(0, len(sections), 3):
                yield self._packed(sections[start : start + 3])

    def _sections(self, texts: Sequence[Turns]) -> list[_Section]:
        ids = iter(self._texts.from_data([turn for turns in texts for turn in turns]))
        found = []
        for turns in texts:
            own = list(islice(ids, len(turns)))
            labels = [self._label(number) for number in range(1, len(turns) + 1)] if len(turns) > 1 else [[]]
            if not (has_text(turns) and any(own)):  # a tokenizer may drop what is text
                labels, own = [[]], [self._empty]
            found.append(_Section(labels, own))
        return found

    def _label(self, number: int) -> Ids:
        """What comes before a turn of several."""
        if number not in self._labels:
            text = f"Turn {number}:\n" if number == 1 else f"\n\nTurn {number}:\n"
            self._labels[number] = self._texts.own(text)
        return self._labels[number]

    def _packed(self, sections: Sequence[_Section]) -> PackedPair:
        room = _shares([section.length for section in sections], self._room)
        ids = list(self._fixed[0])
        spans, left_out = [], 0
        for section, share, behind in zip(sections, room, self._fixed[1:], strict=True):
            start = len(ids)
            left_out += self._write(section, share, ids)
            spans.append(Span(start, len(ids) - start))
            ids += behind
        return PackedPair(np.array(ids, dtype=np.int32), spans[1], spans[2], left_out)

    def _write(self, section: _Section, room: int, ids: Ids) -> int:
        """Append what fits of a section; how many of its tokens do not."""
        if section.length <= room:
            for label, turn in zip(section.labels, section.turns, strict=True):
                ids += label + turn
            return 0
        room -= len(self._cut)
        order = [position for position, turn in enumerate(section.turns) if turn]
        parts: list[Ids] = []
        kept = 0
        for position in reversed(order) if self._keep_last else order:
            label, turn = section.labels[position], section.turns[position]
            part = label + turn
            if len(part) <= room:
                parts.append(part)
                room -= len(part)
                kept += len(part)
                continue
            part = part[:room] if len(label) < room else turn[:room] if not parts else []
            parts.append(part + self._cut)
            kept += len(part)
            break
        else:  # only turns without text are missing
            parts.append(self._cut)
        for part in reversed(parts) if self._keep_last else parts:
            ids += part
        return section.length - kept


def _shares(needed: Sequence[int], room: int) -> list[int]:
    """The tokens that each section may have: what it needs, or its share of what the others leave.

    Answers of the same need have the same share. If all fit, each has what it needs.
    """
    given = [0] * len(needed)
    open_sections = list(range(len(needed)))
    while open_sections:
        weight = sum(SHARES[section] for section in open_sections)
        satisfied = [section for section in open_sections if needed[section] <= room * SHARES[section] // weight]
        if not satisfied:
            for section in open_sections:
                given[section] = room * SHARES[section] // weight
            break
        for section in satisfied:
            given[section] = needed[section]
            open_sections.remove(section)
        room -= sum(needed[section] for section in satisfied)
    return given
