"""Teacher rows from a model's last hidden states, or from its logits where no `lm_head` can be told apart.

Logits of all answer tokens never exist at once: some rows at a time, and of these the columns block by block, each read
while the processor's cache holds it. A GPU takes all columns of a block of rows in one piece.

Shape letters: T answer tokens, V rows of the `lm_head`, D width of the hidden states, C columns of one block, K ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from logitbank.models.head import Head
from logitbank.storage import TeacherRows, concatenate
from logitbank.teacher_cache.sampling import Sampling, add_samples
from logitbank.teacher_cache.sampling import joined as joined_sampling
from logitbank.teacher_cache.signal import Columns, Signal, joined, read_blocks, read_signal, rows_at_once, to_rows

# On a CPU: rows enough for a fast product with weights that are read anew for each, and blocks that its cache holds.
CPU_ROWS = 256
CPU_BLOCK_ELEMENTS = 1 << 19


class Unread(NamedTuple):
    """Answer tokens whose rows are not read yet.

    Attributes:
        hidden_TD: (T, D), what the head is given, on the head's device.
        gold_T: (T,) int64, gold answer tokens, on any device.
        sampling: what to draw, T uniform numbers; None for nothing.
    """

    hidden_TD: torch.Tensor
    gold_T: torch.Tensor
    sampling: Sampling | None = None


class AnswerReader:
    """Reads the rows of answer tokens from one model's hidden states, in memory that is kept from call to call.

    Args:
        head: what makes logits of hidden states.
        vocab_size: V.
        tokenizer_size: ids at and above this are padding and never enter the top K.
        excluded: ids below it that never do either.
    """

    def __init__(self, head: Head, vocab_size: int, tokenizer_size: int, excluded: Sequence[int] = ()) -> None:
        self._head = head
        self._vocab_size = vocab_size
        self._tokenizer_size = tokenizer_size
        self._excluded = tuple(excluded)
        self._memory = torch.empty(0)
        self._columns = functools.lru_cache(maxsize=32)(Columns)

    def enough(self, device: torch.device) -> int:
        """How many answer tokens to collect before they are read.

        On a CPU, until parts are about as large as they may be. Elsewhere each batch is read at once: logits then take
        no more memory than its own, so that a smaller token budget helps where memory runs out.
        """
        return 4 * CPU_ROWS if device.type == "cpu" else 1

    def read_all(self, parts: Sequence[Unread], top_k: int) -> Iterator[TeacherRows]:
        """The rows of each part, read together."""
        if not parts:
            return
        hidden_TD = torch.cat([part.hidden_TD for part in parts])
        gold_T = torch.cat([part.gold_T for part in parts])
        rows = self.read(Unread(hidden_TD, gold_T, joined_sampling([part.sampling for part in parts])), top_k)
        start = 0
        for part in parts:
            stop = start + len(part.gold_T)
            yield rows.take(slice(start, stop))
            start = stop

    @torch.no_grad()
    def read(self, unread: Unread, top_k: int) -> TeacherRows:
        """Top K, exact scalars, and draws if they are asked for.

        Args:
            unread: T answer tokens.
            top_k: K, at most `tokenizer_size` less the excluded ids.
        """
        hidden_TD, gold_T, sampling = unread
        device = hidden_TD.device
        gold_T = gold_T.to(device, non_blocking=True)
        excluded = torch.tensor(self._excluded, device=device) if self._excluded else None
        most = self._most(device)
        step = -(-len(gold_T) // -(-len(gold_T) // most))  # parts of one size: a small last one would be slow
        signals, rows = [], []
        for start in range(0, len(gold_T), step):
            part = slice(start, start + step)
            if self._head.weight_VD is None:
                logits_TV = self._head.logits(hidden_TD[part])
                found = read_signal(logits_TV, gold_T[part], top_k, self._tokenizer_size, excluded)
            else:
                logits_TV, found = self._read_blocks(hidden_TD[part], gold_T[part], top_k, excluded)
            if sampling is None:
                signals.append(found)
            else:
                rows.append(sampled(found, logits_TV, sampling.take(part), self._tokenizer_size, excluded))
        return concatenate(rows) if rows else to_rows(joined(signals))

    def _most(self, device: torch.device) -> int:
        """Answer tokens of one part."""
        return CPU_ROWS if device.type == "cpu" else rows_at_once(device, self._vocab_size)

    def _read_blocks(
        self, hidden_TD: torch.Tensor, gold_T: torch.Tensor, top_k: int, excluded: torch.Tensor | None
    ) -> tuple[torch.Tensor, Signal]:
        """Float32 logits (T, V), valid until the next call, and what was read from them."""
        tokens, device = len(hidden_TD), hidden_TD.device
        width = self._vocab_size
        if device.type == "cpu":
            width = min(width, max(1, CPU_BLOCK_ELEMENTS // tokens // 16) * 16)
        logits, scratch = self._buffers(device, tokens * self._vocab_size, tokens * width)
        logits_TV = logits.view(tokens, self._vocab_size)
        columns = self._columns(self._vocab_size, width, self._tokenizer_size, device)

        def blocks() -> Iterator[tuple[int, torch.Tensor]]:
            for start, stop in columns.blocks:
                block_TC = logits_TV[:, start:stop]
                self._head.columns(hidden_TD, start, block_TC)
                yield start, block_TC

        return logits_TV, read_blocks(logits_TV, blocks(), columns, gold_T, top_k, excluded, scratch)

    def _buffers(self, device: torch.device, logits: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 memory for so many logits, and twice for a block of them: touching new memory costs a CPU much."""
        needed = logits + 2 * block
        if device.type != "cpu":  # its allocator keeps memory by itself
            memory = torch.empty(needed, device=device)
        else:
            if len(self._memory) < needed:
                self._memory = torch.empty(needed)
            memory = self._memory
        return memory[:logits], memory[logits:needed].view(2, block)


def rows_of_logits(
    logits_TV: torch.Tensor,
    gold_T: torch.Tensor,
    top_k: int,
    tokenizer_size: int,
    excluded: torch.Tensor | None,
    sampling: Sampling | None,
) -> TeacherRows:
    """`AnswerReader.read` of logits that are there, in any float dtype."""
    found = read_signal(logits_TV, gold_T, top_k, tokenizer_size, excluded)
    return to_rows(found) if sampling is None else sampled(found, logits_TV, sampling, tokenizer_size, excluded)


def sampled(
    found: Signal, logits_TV: torch.Tensor, sampling: Sampling, tokenizer_size: int, excluded: torch.Tensor | None
) -> TeacherRows:
    """A signal and the logits it was read from as rows with draws."""
    rows, parts = to_rows(found), []
    step = rows_at_once(logits_TV.device, logits_TV.shape[1])
    for start in range(0, len(logits_TV), step):
        part = slice(start, start + step)
        own = rows.take(np.arange(len(logits_TV))[part])
        parts.append(add_samples(own, logits_TV[part], sampling.take(part), tokenizer_size, excluded))
    return concatenate(parts)
