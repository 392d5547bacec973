"""Texts as token ids without a chat template: our own, and those from data, in which nothing is a control token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from logitbank.errors import TaskError
from logitbank.tasks.control_tokens import any_of


class TextEncoder:
    """Tokenises for one tokenizer, of a language model or of an encoder such as BERT.

    Attributes:
        tokenizer: the tokenizer.
        opening: what it puts before every text by itself, such as a beginning-of-sequence or `[CLS]` token.
        closing: likewise, after every text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._added_token = any_of(
            str(token) for token in tokenizer.added_tokens_decoder.values() if not str(token).isspace()
        )
        whole = tokenizer("a", return_special_tokens_mask=True)
        ids, special = list(whole["input_ids"]), [bool(mark) for mark in whole["special_tokens_mask"]]
        first = special.index(False)
        last = len(special) - special[::-1].index(False)
        self.opening, self.closing = ids[:first], ids[last:]

    def own(self, text: str) -> list[int]:
        """Ids of a text that we write ourselves: control tokens count, nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def from_data(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts from data, each on its own: what looks like a control token stays text, nothing is added."""
        found: list[list[int]] = [[] for _ in texts]
        spelled = [bool(self._added_token.search(text)) for text in texts]
        for spells, options in ((False, {}), (True, {"split_special_tokens": True})):
            chosen = [place for place, text in enumerate(texts) if text and spelled[place] == spells]
            if not chosen:
                continue
            encoded = self.tokenizer(
                [texts[place] for place in chosen],
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,  # it warns of texts longer than the model's limit, which are cut later
                **options,
            )
            for place, ids in zip(chosen, encoded["input_ids"], strict=True):
                found[place] = list(ids)
        return found


def around(text: str, holes: Sequence[str]) -> list[str]:
    """What comes before, between and after the holes of a text.

    Args:
        text: with holes.
        holes: texts that occur in it once each, in this order.

    Raises:
        TaskError: they do not.
    """
    pieces = []
    for hole in holes:
        piece, found, text = text.partition(hole)
        if not found or hole in text:
            raise TaskError("tokenizer: its chat template does not show a question exactly once and unchanged")
        pieces.append(piece)
    return [*pieces, text]
