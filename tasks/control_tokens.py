"""Control tokens that data spell out stay text: `<|im_end|>` in a user's message, say.

Data are marked before they are rendered: a mark before and after each control token in them. What was rendered is
tokenised piece by piece: a marked token as text, everything else as usual. The ids are those of transformers'
`sanitize_control_tokens`, which its older versions lack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_MARK, _UNMARK = "\ufdd0", "\ufdd1"  # no text holds them: Unicode keeps them for use inside programs


class ControlTokens:
    """The control tokens of a tokenizer under one chat template: its special tokens, and those that the template names.

    Attributes:
        special: special tokens, spelled out.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer = tokenizer
        tokens = [token for token in tokenizer.added_tokens_decoder.values() if not str(token).isspace()]
        self.special = [str(token) for token in tokens if token.special]
        self._pattern = any_of(str(token) for token in tokens if token.special or str(token) in template)
        self._marked = re.compile(f"{_MARK}({self._pattern.pattern}){_UNMARK}|[{_MARK}{_UNMARK}]")
        # Text is cut before these: what is on either side of them is tokenised on its own anyway.
        cuts = [str(token) for token in tokens if token.special and not (token.lstrip or token.normalized)]
        self._cut = re.compile(f"(?<!{_MARK})(?={any_of(cuts).pattern})")

    def mark(self, value: Any) -> Any:
        """A text, or the texts inside lists and mappings, with its control tokens marked; keys stay as they are."""
        if isinstance(value, str):
            return self._pattern.sub(f"{_MARK}\\g<0>{_UNMARK}", without_marks(value))
        if isinstance(value, Mapping):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value

    def pieces(self, text: str) -> list[str]:
        """A rendered text cut before control tokens, such that its ids are those of the pieces."""
        return [piece for piece in self._cut.split(text) if piece]

    def ids(self, text: str) -> list[int]:
        """Ids of a rendered text, nothing added; its marks are taken out."""
        if _MARK not in text and _UNMARK not in text:
            return self._encode(text)
        first, *rest = self._marked.split(text)
        ids = self._encode(first)
        for index, piece in enumerate(rest):
            if piece:
                ids += self._continue(piece, as_text=index % 2 == 0)
        return ids

    def _continue(self, piece: str, *, as_text: bool) -> list[int]:
        """Ids of a piece from the middle of a text, where no tokenizer puts a space of its own."""
        encode = self._encode_as_text if as_text else self._encode
        newline, ids = self._encode("\n"), encode(f"\n{piece}")
        return ids[len(newline) :] if ids[: len(newline)] == newline else encode(piece)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _encode_as_text(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a control token, not even those that are not special."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]


def without_marks(text: str) -> str:
    """A rendered text, to read."""
    return text.replace(_MARK, "").replace(_UNMARK, "")


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first; nothing if there is none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    if not longest_first:
        return re.compile("(?!)")
    starts = "".join(sorted({re.escape(token[0]) for token in longest_first}))
    return re.compile(f"(?=[{starts}])(?:{'|'.join(map(re.escape, longest_first))})")
