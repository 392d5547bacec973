"""Prompts of real tokenizers and chat templates, and the proxy model's own measure of the formats."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from logitbank.tasks import TASKS, DataSettings, Example
from logitbank.tasks.data import demonstration_pool, load_examples
from logitbank.tasks.demonstrations import draw_demonstrations
from logitbank.tasks.prompts import PromptEncoder

END_OF_TURN = {
    "Qwen-QwQ-32B": "<|im_end|>",
    "Qwen-Qwen2.5-7B-Instruct": "<|im_end|>",
    "Qwen-Qwen3-0.6B": "<|im_end|>",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "<｜end▁of▁sentence｜>",
    "google-gemma-2-2b-it": "<end_of_turn>",
    "meta-llama-Llama-3.1-8B-Instruct": "<|eot_id|>",
    "meta-llama-Llama-3.2-3B-Instruct": "<|eot_id|>",
    "microsoft-Phi-3.5-mini-instruct": "<|end|>",
    "mistralai-Mistral-Nemo-Instruct-2407": "</s>",
    "openai-gpt-oss-120b": "<|return|>",
}
PA = TASKS["pa"]
CONTROL = re.compile(r"<\|[a-z_]+\|>|<start_of_turn>|<end_of_turn>|<｜[^｜]+｜>|\[/?INST\]")


def pa(number: int, first: str, second: str, answer: str) -> Example:
    return Example(f"pa/de/train/{number}", "pa", "de", {"sentence1": first, "sentence2": second}, answer)


QUERY = pa(0, "Es regnet.", "Regen fällt.", "yes")
SHOWN = [pa(1, "Eins.", "Zwei.", "no")]
SHOWN_TEXT = "Sentence 1: Eins.\nSentence 2: Zwei."
QUERY_TEXT = "Sentence 1: Es regnet.\nSentence 2: Regen fällt."


SPACE_BEFORE_ANSWER = {
    "in the turn": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>{% else %}{{ raise_exception('no') }}{% endif %}"
        "{% endfor %}"
    ),
    "in the generation prompt": (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    ),
}


@pytest.fixture(scope="session")
def tokenizers(real_tokenizer: Callable[..., Any]) -> dict[str, Any]:
    return {name: real_tokenizer(name) for name in ("qwen3", "llama-3.2")}


@pytest.fixture(scope="session")
def speaks_all(shared: Path, tokenizers: dict[str, Any]) -> Any:
    """The real Qwen3 tokenizer with the control tokens of all real templates."""
    tokenizer = copy.deepcopy(tokenizers["qwen3"])
    texts = [file.read_text(encoding="utf-8") for file in (shared / "tokenizers" / "templates").glob("*.jinja")]
    tokenizer.add_tokens(sorted({token for text in texts for token in CONTROL.findall(text)}), special_tokens=True)
    return tokenizer


def encode(tokenizer: Any, demonstrations: list[Example]) -> str:
    prompt = PromptEncoder(tokenizer).encode_prompt(PA, QUERY, demonstrations, max_tokens=2048)
    assert prompt is not None
    assert prompt.demonstrations == len(demonstrations)
    return str(tokenizer.decode(prompt.ids))


def test_qwen3(tokenizers: dict[str, Any]) -> None:
    assert encode(tokenizers["qwen3"], SHOWN) == (
        f"<|im_start|>system\n{PA.system_prompt}<|im_end|>\n"
        f"<|im_start|>user\n{SHOWN_TEXT}<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
        f"<|im_start|>user\n{QUERY_TEXT}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    encoder = PromptEncoder(tokenizers["qwen3"])
    assert encoder.encode_answer("yes") == [9693, encoder.end_of_turn_id]
    assert encoder.stop_ids == [encoder.end_of_turn_id] == [151645]


def test_llama(tokenizers: dict[str, Any]) -> None:
    assert encode(tokenizers["llama-3.2"], SHOWN) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        f"{PA.system_prompt}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{SHOWN_TEXT}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nno<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{QUERY_TEXT}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    encoder = PromptEncoder(tokenizers["llama-3.2"])
    assert encoder.tokenizer.decode([encoder.end_of_turn_id]) == "<|eot_id|>"


@pytest.mark.parametrize("name", list(END_OF_TURN))
def test_every_template_shows_all_and_ends_where_the_answer_goes(
    shared: Path, make_tokenizer: Callable[..., Any], name: str
) -> None:
    template = (shared / "tokenizers" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = make_tokenizer(template, bos=True, control=tuple(sorted(set(CONTROL.findall(template)))))
    encoder = PromptEncoder(tokenizer)
    text = encode(tokenizer, SHOWN)
    for part in (PA.system_prompt, SHOWN_TEXT, QUERY_TEXT):
        assert text.count(part) == 1
    assert text.index(SHOWN_TEXT) < text.index(QUERY_TEXT)
    assert text.count("<s>") == ("bos_token" in template)
    # The demonstration's answer and the query's stand behind the same words, think blocks aside.
    after = text[text.index(QUERY_TEXT) + len(QUERY_TEXT) :]
    after_shown = text[text.index(SHOWN_TEXT) + len(SHOWN_TEXT) :]
    assert after_shown.startswith(re.sub(r"<think>\n+</think>\n\n", "", after) + "no")
    assert tokenizer.decode([encoder.end_of_turn_id]) == END_OF_TURN[name]


@pytest.fixture(scope="module")
def proxy(shared: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(shared / "models" / "proxy-qwen3", dtype=torch.float32).eval()


def test_the_proxy_has_the_tokenizer_of_qwen3(shared: Path, tokenizers: dict[str, Any]) -> None:
    proxy = PromptEncoder(AutoTokenizer.from_pretrained(shared / "models" / "proxy-qwen3"))
    assert proxy.tokenizer_hash == PromptEncoder(tokenizers["qwen3"]).tokenizer_hash
    assert proxy.tokenizer_hash != PromptEncoder(tokenizers["llama-3.2"]).tokenizer_hash


@pytest.mark.parametrize("template", [*END_OF_TURN, *SPACE_BEFORE_ANSWER.values()])
def test_answers_have_the_ids_of_the_template_s_own_rendering(shared: Path, speaks_all: Any, template: str) -> None:
    tokenizer = speaks_all
    file = shared / "tokenizers" / "templates" / f"{template}.jinja"
    tokenizer.chat_template = file.read_text(encoding="utf-8") if template in END_OF_TURN else template
    encoder = PromptEncoder(tokenizer)
    prompt = encoder.encode_prompt(PA, QUERY, SHOWN, max_tokens=2048)
    assert prompt is not None
    for answer in ("yes", "B-PER O", "12 pounds", "是"):
        turns = [{"role": "user", "content": QUERY_TEXT}, {"role": "assistant", "content": answer}]
        rendered = tokenizer.apply_chat_template(
            turns, sanitize_control_tokens=True, return_dict=False, enable_thinking=False
        )
        own = encoder.encode_answer(answer)
        stop = len(rendered) - rendered[::-1].index(encoder.end_of_turn_id)
        assert rendered[stop - len(own) : stop] == own
        text = re.sub(r"<think>\n+</think>\n\n", "", tokenizer.decode(prompt.ids + own))
        whole = re.sub(r"<think>\n+</think>\n\n", "", tokenizer.decode(rendered[:stop]))
        assert text.endswith(whole[whole.index(QUERY_TEXT) :])


def test_an_answer_behind_a_tokenizer_that_opens_texts_with_a_space() -> None:
    """As Llama 2's: on its own each text begins with a space; behind `[/INST]` it has the one that is written."""
    pieces = ["<unk>", "▁", *"[/INST]qno:abcdefghijklmprstuvwxyz", "▁yes", "yes", "▁no", "<turn>"]
    backend = Tokenizer(models.Unigram([(piece, -len(set(pieces)) / len(piece)) for piece in dict.fromkeys(pieces)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<turn>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<turn>", unk_token="<unk>")
    user = "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    turns = "{% for m in messages %}" + user + "{% else %}ANSWER{% endif %}{% endfor %}"
    for written, first in ((" {{ m.content }}<turn>", "▁yes"), ("{{ m.content }}<turn>", "yes")):
        tokenizer.chat_template = turns.replace("ANSWER", written)
        encoder = PromptEncoder(tokenizer)
        assert tokenizer.convert_ids_to_tokens(encoder.encode_answer("yes")) == [first, "<turn>"]
        assert tokenizer.convert_ids_to_tokens(encoder.encode_answer("a <turn>"))[-1] == "<turn>"


@pytest.mark.parametrize(
    ("name", "language", "zero_shot", "few_shot"), [("nli", "en", 0.91, 0.37), ("pa", "de", 0.71, 0.40)]
)
def test_the_proxy_knows_these_formats(
    shared: Path, proxy: Any, tokenizers: dict[str, Any], name: str, language: str, zero_shot: float, few_shot: float
) -> None:
    """Its published answer cross-entropy (25 validation rows, nats per token) comes out of these prompts."""
    mirror = str(shared / "hub")
    encoder, task = PromptEncoder(tokenizers["qwen3"]), TASKS[name]
    pool = demonstration_pool(name, language, DataSettings(mirror=mirror), stage="train")

    def cross_entropy(query: Example, count: int) -> float:
        shown = draw_demonstrations(pool, query, count, seed=42)
        prompt = encoder.encode_prompt(task, query, shown, max_tokens=2048)
        assert prompt is not None
        answer = encoder.encode_answer(query.answer)
        with torch.inference_mode():
            logits = proxy(torch.tensor([prompt.ids + answer]), logits_to_keep=len(answer) + 1).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))

    queries = load_examples(name, "validation", language, DataSettings(mirror=mirror))[:25]
    for count, published in ((0, zero_shot), (task.num_demonstrations, few_shot)):
        measured = sum(cross_entropy(query, count) for query in queries) / len(queries)
        assert measured == pytest.approx(published, abs=0.02)
