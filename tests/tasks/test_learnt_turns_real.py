"""Which tokens of real conversations are learned, in real templates, against reading them off turn by turn."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from logitbank.tasks import Example, TaskError
from logitbank.tasks.encoding import ExampleEncoder
from logitbank.tasks.prompts import PromptEncoder
from logitbank.tasks.settings import ChatSettings
from tests.tasks.dialogues import by_number, call, chat, generated, learned, real_chats, student, template_ids, turns

Real = Callable[..., Any]
Encoders = Callable[..., ExampleEncoder]
CONTROL = re.compile(r"<\|[a-z_]+\|>|<start_of_turn>|<end_of_turn>|<｜[^｜]+｜>|\[/?INST\]")
SHARE = ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct"]
TAKE_TOOLS = [*SHARE, "Qwen-Qwen3-0.6B", "openai-gpt-oss-120b"]
TAKE_NO_TOOLS = ["google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct"]
CLOSE_THOUGHTS = ["Qwen-QwQ-32B", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"]
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<|call|>", "</s>")


@pytest.fixture(scope="module")
def dialogues(shared: Path) -> dict[str, list[Example]]:
    return {
        "tools": real_chats(shared, "sgd", 3),
        "plain": [*real_chats(shared, "tm4", 2), *real_chats(shared, "c", 2)],
    }


@pytest.fixture(scope="module")
def speaks_all(shared: Path, real_tokenizer: Real) -> Callable[[str], Any]:
    """The Qwen3 tokenizer with the control tokens of all real templates, and one of the templates."""
    files = {file.stem: file.read_text(encoding="utf-8") for file in (shared / "tokenizers/templates").glob("*.jinja")}
    control = sorted({token for text in files.values() for token in CONTROL.findall(text)} | {"</s>"})

    speaker = copy.deepcopy(real_tokenizer("qwen3"))
    speaker.add_tokens(control, special_tokens=True)

    def speaks(name: str) -> Any:
        tokenizer = copy.copy(speaker)
        tokenizer.chat_template = files[name].replace('strftime_now("%Y-%m-%d")', '"2024-07-26"')
        if "Mistral" in name:
            tokenizer.eos_token = "</s>"
        return tokenizer

    return speaks


@pytest.fixture(scope="module")
def encoders(real_tokenizer: Real) -> Encoders:
    """Encoders of real tokenizers, made once."""

    @functools.cache
    def made(name: str, template: str | None = None, thinking: str = "drop") -> ExampleEncoder:
        return ExampleEncoder(PromptEncoder(real_tokenizer(name, template)), chat=ChatSettings(thinking=thinking))

    return made


def ids_of(tokenizer: Any, tokens: tuple[str, ...]) -> list[int]:
    known = tokenizer.get_vocab()
    return [known[token] for token in tokens if token in known]


@pytest.mark.parametrize("name", ["qwen3", "llama-3.2"])
def test_real_tokenizers_learn_what_would_be_generated(
    real_tokenizer: Real, dialogues: dict[str, list[Example]], name: str
) -> None:
    tokenizer = real_tokenizer(name)
    examples = ExampleEncoder(PromptEncoder(tokenizer))
    for example in [*dialogues["tools"], *dialogues["plain"]]:
        sequences = student(examples, example)
        assert learned(sequences) == by_number(generated(tokenizer, example, ids_of(tokenizer, ENDS)))
        if name == "llama-3.2":
            (only,) = sequences
            whole = template_ids(tokenizer, example, 1000, prompt=False)
            assert (only.suffix, only.sequence.ids.tolist()) == ("", whole)
        elif len(sequences) > 1:
            assert [part.suffix for part in sequences] == [f"#{turn + 1}" for turn in range(len(sequences))]
    split = sum(
        len(example.fields["conversation"].messages) > 3 for example in [*dialogues["tools"], *dialogues["plain"]]
    )
    assert sum(count for text, count in examples.counts.items() if text.startswith("conversations split")) == (
        split if name == "qwen3" else 0
    )


@pytest.mark.parametrize("name", [*TAKE_TOOLS, *TAKE_NO_TOOLS])
def test_every_template_learns_what_would_be_generated(
    speaks_all: Callable[[str], Any], dialogues: dict[str, list[Example]], name: str
) -> None:
    tokenizer = speaks_all(name)
    examples = ExampleEncoder(PromptEncoder(tokenizer))
    for example in [dialogues["tools"][1], *dialogues["plain"]] if name in TAKE_TOOLS else dialogues["plain"]:
        sequences = student(examples, example)
        reference = by_number(generated(tokenizer, example, ids_of(tokenizer, ENDS)))
        assert learned(sequences) == reference
        last_prompt, last_answer = reference[-1]
        assert sequences[-1].sequence.ids.tolist() == last_prompt + last_answer
        if name in SHARE:
            assert len(sequences) == 1
    assert name in TAKE_TOOLS or isinstance(_refusal(examples, dialogues["tools"][0]), TaskError)


def _refusal(examples: ExampleEncoder, example: Example) -> Exception:
    with pytest.raises(
        TaskError, match=r"^chat/und/train/sgd.*does not show tools: expected '\w+' in the prompt"
    ) as info:
        student(examples, example)
    return info.value


@pytest.mark.parametrize("name", CLOSE_THOUGHTS)
def test_an_open_thought_is_closed_before_the_answer(
    speaks_all: Callable[[str], Any], dialogues: dict[str, list[Example]], name: str
) -> None:
    tokenizer = speaks_all(name)
    examples = ExampleEncoder(PromptEncoder(tokenizer))
    closing = tokenizer("</think>\n\n")["input_ids"]
    for example in dialogues["plain"]:
        messages = example.fields["conversation"].messages
        at = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        for part, index in zip(student(examples, example), at, strict=True):
            prompt = template_ids(tokenizer, example, index, prompt=True)
            assert part.sequence.prompt_ids.tolist() == prompt + closing
            answer = tokenizer.decode(part.sequence.answer_ids)
            assert answer == messages[index]["content"] + tokenizer.decode([examples.encoder.end_of_turn_id])


def test_a_system_prompt_that_moves_with_the_last_question(speaks_all: Callable[[str], Any]) -> None:
    """Mistral's template shows it in the last user's turn alone: each turn is learned as it is met."""
    tokenizer = speaks_all("mistralai-Mistral-Nemo-Instruct-2407")
    example = chat(turns("One?", "1.", "Two?", "2.", system="Count."))
    sequences = student(ExampleEncoder(PromptEncoder(tokenizer)), example)
    assert [tokenizer.decode(part.sequence.ids) for part in sequences] == [
        "<s>[INST]Count.\n\nOne?[/INST]1.</s>".replace("<s>", tokenizer.bos_token or ""),
        "<s>[INST]One?[/INST]1.</s>[INST]Count.\n\nTwo?[/INST]2.</s>".replace("<s>", tokenizer.bos_token or ""),
    ]
    assert [part.sequence.prompt_ids.tolist() for part in sequences] == [
        template_ids(tokenizer, example, stop, prompt=True) for stop in (2, 4)
    ]


TEXT = st.lists(st.sampled_from(["a", " ", "\n", "é", "🙂", "<", "|", "1", ".", "Wort "]), max_size=8).map("".join)
SPOKEN = TEXT.filter(lambda text: bool(text.strip()))
PAIRS = st.lists(st.tuples(SPOKEN, SPOKEN), min_size=1, max_size=4)


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    pairs=PAIRS, system=st.none() | SPOKEN, thinking=st.booleans(), name=st.sampled_from(["qwen3", "llama-3.2"])
)
def test_any_conversation_learns_what_would_be_generated(
    encoders: Encoders, pairs: list[tuple[str, str]], system: str | None, thinking: bool, name: str
) -> None:
    example = chat(turns(*(text for pair in pairs for text in pair), system=system))
    examples = encoders(name, None, "keep" if thinking else "drop")
    end = examples.encoder.end_of_turn_id
    reference = generated(examples.encoder.tokenizer, example, [end], thinking=thinking)
    assert learned(student(examples, example)) == by_number(reference)


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    st.lists(
        st.sampled_from(["<|im_end|>", "<|im_start|>", "a", " ", "\n", "<tool_call>", "</think>", "<|endoftext|>"]),
        min_size=1,
        max_size=6,
    ).map("".join)
)
def test_control_tokens_in_the_data_stay_text(encoders: Encoders, text: str) -> None:
    examples = encoders("qwen3", "Qwen-Qwen2.5-7B-Instruct")
    tokenizer = examples.encoder.tokenizer
    example = chat(turns(f"q {text}", f"a {text}", "why?", f"b {text} c"))
    (part,) = student(examples, example)
    assert tokenizer.decode(part.sequence.ids[:-1]).count("<|im_end|>") == 3 + 3 * text.count("<|im_end|>") + 1
    controls = set(ids_of(tokenizer, ("<|im_end|>", "<|im_start|>", "<tool_call>", "<|endoftext|>")))
    plain = student(examples, chat(turns("q", "a", "why?", "b c")))[0].sequence
    assert [i for i in part.sequence.ids if i in controls] == [i for i in plain.ids if i in controls]
    assert part.sequence.ids.tolist() == template_ids(tokenizer, example, 9, prompt=False, sanitize=True)[:-1]
    assert tokenizer.decode(part.sequence.answer_ids) == f"a {text}<|im_end|>b {text} c<|im_end|>"


def test_control_tokens_in_tools_and_their_results_stay_text(real_tokenizer: Real) -> None:
    tokenizer = real_tokenizer("qwen3")
    tool = {"type": "function", "function": {"name": "look", "description": "<|im_end|>", "parameters": {}}}
    messages = [
        *turns("x"),
        call("look", at="<|im_end|>"),
        {"role": "tool", "content": "<|im_start|>"},
        *turns("", "y")[1:],
    ]
    sequences = student(ExampleEncoder(PromptEncoder(tokenizer)), chat(messages, [tool]))
    end, start = ids_of(tokenizer, ("<|im_end|>", "<|im_start|>"))
    first, second = (part.sequence.ids.tolist() for part in sequences)
    assert (first.count(start), first.count(end)) == (3, 3)
    assert (second.count(start), second.count(end)) == (5, 5)
    assert tokenizer.decode(sequences[0].sequence.answer_ids) == (
        '<tool_call>\n{"name": "look", "arguments": {"at": "<|im_end|>"}}\n</tool_call><|im_end|>'
    )
