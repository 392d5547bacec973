"""Prompts as token ids: chat template over system prompt, demonstrations and query; answers on their own.

Two things make a prompt reproducible. Its ids depend on no clock: templates that write today's date get
`PROMPT_DATE` instead. And its answer is tokenised apart from it, so that every prompt of an example is
followed by the same answer ids: those that the template's own rendering has, a space before the answer included.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from logitbank.tasks.common import Example, Task, TaskError
from logitbank.tasks.control_tokens import ControlTokens, any_of
from logitbank.tasks.texts import around

PROMPT_DATE = "26 Jul 2024"  # what Llama 3's template writes where it cannot ask the clock

# A template's `strftime_now` with a standing date. It fails on a format that it does not know, rather
# than writing a time of day into a prompt. Ends in a newline, which Jinja drops, so that a template's
# own first characters stay.
_STANDING_CLOCK = """\
{%- macro strftime_now(format) -%}
{%- set text = format | replace("%Y", "2024") | replace("%m", "07") | replace("%d", "26")
    | replace("%b", "Jul") | replace("%B", "July") | replace("%y", "24") | replace("%A", "Friday")
    | replace("%a", "Fri") | replace("%H", "00") | replace("%M", "00") | replace("%S", "00") -%}
{%- if "%" in text %}{{ raise_exception("unsupported date format " + format) }}{% endif -%}
{{- text -}}
{%- endmacro %}
"""
TEMPLATE_ARGUMENTS = {"enable_thinking": False, "date_string": PROMPT_DATE}
_PROBE_TEXTS = ("yes", "Probe answer", "B-PER O", "12", "#### 7", "是", "हाँ")
_PROBE_SYSTEM, _PROBE_USER, _PROBE_ANSWER = "Probe of the system role.", "Probe question?", "Probeanswer"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's token ids and how many demonstrations it kept."""

    ids: list[int]
    demonstrations: int


class PromptEncoder:
    """Turns examples into token ids for one tokenizer, with or without a chat template.

    Attributes:
        tokenizer: the tokenizer.
        has_template: whether prompts go through its chat template; otherwise they are plain text.
        system_role: whether the template takes a system message and shows it.
        answer_space: spaces between the generation prompt and an answer's first letter.
        end_of_turn_id: the token that ends an answer.
        stop_ids: tokens at which generation ends: end of turn and end of sequence.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Study the tokenizer and its chat template.

        Raises:
            TaskError: a template that renders no question or answer, or no token that could end a turn.
        """
        self.tokenizer = tokenizer
        self.has_template = tokenizer.chat_template is not None
        self._added_token = any_of(
            str(token) for token in tokenizer.added_tokens_decoder.values() if not str(token).isspace()
        )
        self._template = ""
        self.system_role = True
        self._answer_header = ""
        self.answer_space = ""
        self._answer_anchor = ""
        end_of_turn: int | None = tokenizer.eos_token_id
        if end_of_turn is None:
            end_of_turn = tokenizer.sep_token_id  # of an encoder such as BERT, whose texts end in it
        if self.has_template:
            self._template = without_clock(tokenizer.get_chat_template())
            self._controls = ControlTokens(tokenizer, self._template)
            self.system_role = self._accepts_system_role()
            self._answer_header, written = self._study_answer_turn()
            self.answer_space, self._answer_anchor = self._study_first_token()
            end_of_turn = end_of_turn if written is None else written
        if end_of_turn is None:
            raise TaskError("tokenizer: expected an end-of-turn or end-of-sequence token, found neither")
        self.end_of_turn_id = end_of_turn
        self.stop_ids: list[int] = sorted({end_of_turn, tokenizer.eos_token_id} - {None})

    def encode_prompt(
        self, task: Task, query: Example, demonstrations: Sequence[Example], *, max_tokens: int
    ) -> EncodedPrompt | None:
        """The prompt up to where the answer begins.

        Args:
            task: whose system prompt and wording to use.
            query: the example that is asked.
            demonstrations: examples shown with their answers, in this order, before the query.
            max_tokens: the longest prompt allowed, in tokens, the answer not counted.

        Returns:
            The prompt with as many demonstrations as fit, dropped from the front; None if
            even the query does not fit.
        """
        for start in range(len(demonstrations) + 1):
            ids = self._encode(task, query, demonstrations[start:])
            if len(ids) <= max_tokens:
                return EncodedPrompt(ids, len(demonstrations) - start)
        return None

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer and its end of turn, the same after every prompt.

        Tokenised on its own, no special tokens added; or as it is after the template's generation prompt,
        where that gives other ids: a space before it (Mistral, Llama 2) belongs to its first token.
        """
        return [*self._answer_text_ids(text), self.end_of_turn_id]

    def encode_around(self, system_prompt: str, message: str, holes: Sequence[str]) -> list[list[int]]:
        """A prompt in pieces: what comes before, between and after the holes in its question.

        Args:
            system_prompt: opens the prompt.
            message: the question, with holes.
            holes: texts that occur in the message once each, in this order.
        """
        if not self.has_template:
            first, *rest = map(self._ids, around(f"{system_prompt}\n\n{message}\n", holes))
            return [self._beginning_ids() + first, *rest]
        own_space = "" if self._answer_header else self.answer_space  # of the generation prompt
        messages = self._with_system(system_prompt, [{"role": "user", "content": message}])
        *before, last = map(self._ids, around(self._render(messages).removesuffix(own_space), holes))
        header = self._ids(self._answer_header.removesuffix(self.answer_space)) if self._answer_header else []
        return [*before, last + header]

    def answers_like(self, other: PromptEncoder) -> bool:
        """Whether answers have the same ids as with another encoder, ends of turn aside."""
        return all(self._answer_text_ids(text) == other._answer_text_ids(text) for text in _PROBE_TEXTS)

    @property
    def opens_with(self) -> str:
        """What the tokenizer puts before every text by itself: the beginning-of-sequence token, or nothing."""
        return str(self.tokenizer.bos_token) if self._beginning_ids() else ""

    @functools.cached_property
    def tokenizer_hash(self) -> str:
        """Hash of all that decides which ids a text gets: equal for tokenizers that always agree."""
        return tokenizer_hash(self.tokenizer)

    @functools.cached_property
    def template_hash(self) -> str:
        """Hash of the chat template as used here, the standing date included."""
        opening = [[self._answer_anchor, self.answer_space]] if self._answer_anchor or self.answer_space else []
        return _hash([self._template, TEMPLATE_ARGUMENTS, self.system_role, self._answer_header, *opening])

    def _encode(self, task: Task, query: Example, demonstrations: Sequence[Example]) -> list[int]:
        if not self.has_template:
            return self._encode_plain(task, query, demonstrations)
        messages = self._messages(task, query, demonstrations)
        header = self._ids(self._answer_header.removesuffix(self.answer_space)) if self._answer_header else []
        own_space = "" if self._answer_header else self.answer_space  # of the generation prompt
        if any(self._added_token.search(message["content"]) for message in messages):
            # The text spells out a control token (`<|im_end|>`): it must stay text. Slower, so only here.
            ids = self._controls.ids(self._render(self._controls.mark(messages)))
            spaces = len(self._ids(f"a{own_space}")) - len(self._ids("a"))
            return [*ids[: len(ids) - spaces], *header]
        return [*self._ids(self._render(messages).removesuffix(own_space)), *header]

    def _encode_plain(self, task: Task, query: Example, demonstrations: Sequence[Example]) -> list[int]:
        """System prompt, blank line, then question, newline, answer, end of sequence, blank line …"""
        ids = self._beginning_ids()
        before = f"{task.system_prompt}\n\n"
        for example in demonstrations:
            ids += self._encode_text(f"{before}{task.user_message(example)}\n")
            ids += self.encode_answer(example.answer)
            before = "\n\n"
        return ids + self._encode_text(f"{before}{task.user_message(query)}\n")

    def _messages(self, task: Task, query: Example, demonstrations: Sequence[Example]) -> list[dict[str, str]]:
        turns = []
        for example in demonstrations:
            turns.append({"role": "user", "content": task.user_message(example)})
            turns.append({"role": "assistant", "content": example.answer})
        turns.append({"role": "user", "content": task.user_message(query)})
        return self._with_system(task.system_prompt, turns)

    def _with_system(self, system_prompt: str, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        if self.system_role:
            return [{"role": "system", "content": system_prompt}, *turns]
        first = {"role": "user", "content": f"{system_prompt}\n\n{turns[0]['content']}"}
        return [first, *turns[1:]]

    def _render(self, messages: list[dict[str, str]], *, generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **TEMPLATE_ARGUMENTS,
            )
        )

    def _ids(self, text: str) -> list[int]:
        """Ids of rendered template text: control tokens count, nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_text(self, text: str) -> list[int]:
        """Ids of text from data: what looks like a control token stays text, nothing is added."""
        if self._added_token.search(text):
            return self._split_ids(text)
        return self._ids(text)

    def _split_ids(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a control token."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _answer_text_ids(self, text: str) -> list[int]:
        """Ids of an answer's text; see `encode_answer`."""
        if not self._answer_anchor:
            return self._encode_text(self.answer_space + text)
        return self._ids_behind(self._answer_anchor, self.answer_space + text)

    def _ids_behind(self, anchor: str, text: str) -> list[int]:
        """Ids of text as it is after an anchor; on its own where the two would share a token."""
        ids = self._split_ids if self._added_token.search(text) else self._ids
        before, whole = ids(anchor), ids(anchor + text)
        return whole[len(before) :] if whole[: len(before)] == before else self._encode_text(text)

    def _beginning_ids(self) -> list[int]:
        """`[bos]` where the tokenizer puts one before a text by itself, else nothing."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer("a")["input_ids"]
        return [bos] if bos is not None and ids[:1] == [bos] else []

    def _accepts_system_role(self) -> bool:
        """Whether the template takes a system message and shows it; some refuse it, some lose it."""
        try:
            rendered = self._render(_turns(("system", _PROBE_SYSTEM), ("user", _PROBE_USER)))
        except Exception as error:  # a template may raise anything; one that always does is told below
            self._check_renders(error)
            return False
        return _PROBE_SYSTEM in rendered

    def _check_renders(self, system_error: Exception) -> None:
        try:
            self._render(_turns(("user", _PROBE_USER)))
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise TaskError(f"tokenizer: its chat template cannot be rendered: {reason[0]}") from system_error

    def _study_answer_turn(self) -> tuple[str, int | None]:
        """What the template writes between generation prompt and answer, and the token after the answer.

        The first is empty for most. It is not where the generation prompt stops short of the answer's
        place: gpt-oss leaves the channel to the model, and reasoning models open a `<think>` block,
        which is closed at once, as Qwen3's template does it.
        """
        question = _turns(("user", _PROBE_USER))
        prompt = self._render(question)
        turn = self._render([*question, *_turns(("assistant", _PROBE_ANSWER))], generation_prompt=False)
        before, found, after = turn.rpartition(_PROBE_ANSWER)
        if not found or _PROBE_USER not in prompt:
            raise TaskError("tokenizer: its chat template does not show the question and the answer")
        header = before.removeprefix(prompt) if before.startswith(prompt) else ""
        generation_prompt = prompt[prompt.rindex(_PROBE_USER) :]
        if generation_prompt.rfind("<think>") > generation_prompt.rfind("</think>"):
            header = "</think>\n\n"
        match = self._added_token.search(after.lstrip())
        token = match.group() if match and match.start() == 0 else None
        return header, None if token is None else self.tokenizer.convert_tokens_to_ids(token)

    def _study_first_token(self) -> tuple[str, str]:
        """The spaces before an answer, and the text to tokenise it after.

        The text is empty where answers have the same ids on their own. Otherwise it is what the template
        writes between question and answer: some tokenizers begin every text with a space of their own.
        """
        prompt = self._render(_turns(("user", _PROBE_USER))) + self._answer_header
        opening = prompt[prompt.rindex(_PROBE_USER) + len(_PROBE_USER) :]
        anchor = opening.rstrip(" ")
        space = opening[len(anchor) :]
        same = all(self._ids_behind(anchor, space + text) == self._ids(space + text) for text in _PROBE_TEXTS)
        return space, "" if same else anchor


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of vocabulary, merges, normaliser, splitting and added tokens, as hexadecimal text.

    Not of what leaves ids as they are: which token pads, names of roles, template, maximum length.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _hash([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    state = json.loads(backend.to_str())
    model = dict(state["model"])
    vocabulary = model.pop("vocab", None)
    entries = sorted(vocabulary.items()) if isinstance(vocabulary, dict) else vocabulary or []
    # Merges are written as "a b" by older versions, as ["a", "b"] by newer ones.
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model.pop("merges", None) or []]
    added = sorted((token["id"], token["content"]) for token in state["added_tokens"])
    rules = [model, added, state["normalizer"], state["pre_tokenizer"]]
    # Joined, not serialised: JSON of some 150,000 entries each would take seconds.
    return _hash([_digest(map(repr, entries)), _digest(map(repr, merges)), rules])


def _digest(items: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(items).encode(errors="surrogatepass")).hexdigest()


def without_clock(template: str) -> str:
    """A chat template whose `strftime_now` gives a standing date."""
    return _STANDING_CLOCK + template if "strftime_now" in template else template


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _turns(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]
