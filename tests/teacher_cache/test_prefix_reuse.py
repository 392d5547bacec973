"""Shared prompt beginnings: found where they pay, and the same numbers with them as without."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.configs import ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.sequences import AnsweredSequence
from logitbank.teacher_cache.engines.base import Sequenced
from logitbank.teacher_cache.engines.huggingface import HFTeacher
from logitbank.teacher_cache.prefixes.prompts import PromptFile
from logitbank.teacher_cache.prefixes.sharing import shared_prefixes
from logitbank.teacher_cache.scoring import Tally, score

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
MODELS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    # The window is shorter than the prefixes, about as long, and longer than prefix and suffix together.
    **{
        f"gemma3-window-{window}": lambda window=window: transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(
                **SMALL,
                sliding_window=window,
                layer_types=["sliding_attention", "full_attention"] * 2,
                query_pre_attn_scalar=8,
            )
        )
        for window in (8, 24, 200)
    },
}


def teacher(path: Path, *, prefix_reuse: bool) -> HFTeacher:
    return HFTeacher(
        ModelConfig(str(path)),
        dtype="float32",
        tokenizer_size=90,
        device=torch.device("cpu"),
        prefix_reuse=prefix_reuse,
    )


def sequences() -> list[Sequenced]:
    """Two groups of prompts that begin alike, and one that begins like none."""
    rng = np.random.default_rng(3)
    made = []
    for shared in (23, 40, 0):
        prefix = rng.integers(0, 90, shared)
        for prompt, answer in ((1, 1), (30, 7), (12, 3), (25, 5)):
            ids = np.concatenate([prefix, rng.integers(0, 90, prompt)])
            made.append(Sequenced(AnsweredSequence.answering(ids, rng.integers(0, 90, answer)), shared))
    return [made[i] for i in rng.permutation(len(made))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("budget", [1, 80, 8192])
def test_numbers_are_the_same_as_without(name: str, budget: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(tmp_path)
    items = sequences()
    plain, _ = score(items, teacher(tmp_path, prefix_reuse=False), 12, 8192, Tally())
    engine = teacher(tmp_path, prefix_reuse=True)
    for _ in range(2):  # the second time with kept prefixes
        tally = Tally()
        reused, _ = score(items, engine, 12, budget, tally)
        assert tally.reused_tokens == 4 * (23 + 40)
        for field in ("logits", "logsumexp", "entropy", "gold_logit"):
            np.testing.assert_allclose(getattr(reused, field), getattr(plain, field), atol=1e-4, err_msg=field)
        np.testing.assert_array_equal(reused.token_ids, plain.token_ids)
        np.testing.assert_array_equal(reused.gold_rank, plain.gold_rank)
    assert np.ptp(plain.logits) > 1  # the model says something


def test_kept_prefixes_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    MODELS["qwen3"]().save_pretrained(tmp_path)
    items = sequences()
    kept, _ = score(items, teacher(tmp_path, prefix_reuse=True), 12, 60, Tally())
    monkeypatch.setattr("logitbank.teacher_cache.prefixes.cache.PREFIX_TOKENS", 1)  # none is kept beside the last
    engine = teacher(tmp_path, prefix_reuse=True)
    score(items[::-1], engine, 12, 60, Tally())
    dropped, _ = score(items, engine, 12, 60, Tally())
    assert kept.logits.tobytes() == dropped.logits.tobytes()
    assert kept.logsumexp.tobytes() == dropped.logsumexp.tobytes()


def test_a_model_with_another_kind_of_state_is_refused(tmp_path: Path) -> None:
    config = transformers.Qwen3NextConfig(
        **{**SMALL, "num_hidden_layers": 2},
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
    )
    transformers.Qwen3NextForCausalLM(config).save_pretrained(tmp_path)
    teacher(tmp_path, prefix_reuse=False)
    with pytest.raises(ConfigError, match=r"LinearAttentionLayer\); set teacher.prefix_reuse=false"):
        teacher(tmp_path, prefix_reuse=True)


def asked(prompts: Sequence[np.ndarray]) -> PromptFile:
    return PromptFile(AnsweredSequence.answering(prompt, [0]) for prompt in prompts)


def saved(prompts: list[np.ndarray], units: np.ndarray, shared: np.ndarray) -> int:
    """Tokens not computed again, by counting: each group's prefix is computed once per unit."""
    seen = set()
    total = 0
    for prompt, unit, depth in zip(prompts, units.tolist(), shared.tolist(), strict=True):
        key = (unit, prompt[:depth].tobytes())
        total += depth if key in seen else 0
        seen.add(key)
    return total


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=4), st.integers(0, 1)), min_size=1, max_size=5)
)
def test_groups_save_as_much_as_any_choice_of_prefixes(drawn: list[tuple[list[int], int]]) -> None:
    prompts = [np.asarray(ids, dtype=np.int32) for ids, _ in drawn]
    units = np.asarray([unit for _, unit in drawn], dtype=np.int64)

    def takes_in_all(choice: Sequence[int]) -> bool:
        """Whether each prompt that has the prefix of a group is in it."""
        return all(
            depth == other_depth
            for prompt, depth in zip(prompts, choice, strict=True)
            for other, other_depth in zip(prompts, choice, strict=True)
            if depth and len(other) > depth and (other[:depth] == prompt[:depth]).all()
        )

    shared = shared_prefixes(asked(prompts), units, least_saved=0.0, group_cost=0)
    assert all(depth < len(prompt) for depth, prompt in zip(shared, prompts, strict=True))
    choices = filter(takes_in_all, itertools.product(*(range(len(prompt)) for prompt in prompts)))
    assert takes_in_all(shared.tolist())
    assert saved(prompts, units, shared) == max(saved(prompts, units, np.asarray(choice)) for choice in choices)


def test_nothing_is_shared_where_it_saves_little() -> None:
    rng = np.random.default_rng(0)
    system = rng.integers(0, 1000, 10)
    prompts = asked([np.concatenate([system, rng.integers(0, 1000, 90)]) for _ in range(50)])
    units = np.zeros(50, dtype=np.int64)
    assert not shared_prefixes(prompts, units).any()
    assert (shared_prefixes(prompts, units, least_saved=0.05) == 10).all()
    assert not shared_prefixes(prompts, units, least_saved=0.0, group_cost=490).any()
    # Each in a shard of its own: the prefix would be computed as often as used.
    assert not shared_prefixes(prompts, np.arange(50), least_saved=0.0, group_cost=0).any()


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(PROMPTS, st.sampled_from([0, 3, 20, 10_000]), st.data())
def test_prompts_are_sorted_whatever_fits_in_memory(
    drawn: list[list[int]], in_memory: int, data: st.DataObject
) -> None:
    common = data.draw(st.lists(st.integers(0, 2), max_size=150))  # longer than what is compared at a time
    prompts = [[*common, *ids, 7] for ids in drawn]
    order, shared = asked([np.asarray(ids) for ids in prompts]).in_order(in_memory)
    keys = [ids[:-1] for ids in prompts]
    assert order.tolist() == sorted(range(len(keys)), key=keys.__getitem__)
    ranked = [keys[i] for i in order]
    for first, second, length in zip(ranked, ranked[1:], shared[1:].tolist(), strict=False):
        assert first[:length] == second[:length]
        assert length == min(len(first), len(second)) or first[length] != second[length]


@settings(max_examples=80, deadline=None)
@given(PROMPTS, st.data())
def test_groups_do_not_depend_on_what_fits_in_memory(drawn: list[list[int]], data: st.DataObject) -> None:
    units = np.asarray(data.draw(st.lists(st.integers(0, 2), min_size=len(drawn), max_size=len(drawn))))
    prompts = [np.asarray(ids) for ids in drawn]
    costs = {"least_saved": data.draw(st.sampled_from([0.0, 0.3])), "group_cost": data.draw(st.integers(0, 4))}
    whole = shared_prefixes(asked(prompts), units, **costs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptFile, "in_order", lambda self, in_memory=5: IN_ORDER(self, 5))
        assert shared_prefixes(asked(prompts), units, **costs).tolist() == whole.tolist()


IN_ORDER = PromptFile.in_order
