"""Demonstrations: deterministic in every process, never the query, evenly drawn; permuted answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitbank.tasks import Example, TaskError
from logitbank.tasks.demonstrations import draw_demonstrations, shuffle_answers


def question(number: int, answer: str = "yes", text: str | None = None) -> Example:
    fields = {"sentence1": text or f"sentence {number}", "sentence2": "b"}
    return Example(f"pa/en/train/{number}", "pa", "en", fields, answer)


POOL = [question(number) for number in range(40)]


@given(st.integers(0, 39), st.integers(0, 39), st.integers(0, 5), st.sampled_from(["per_example", "fixed"]))
def test_never_the_query_never_twice_always_the_same(index: int, count: int, seed: int, selection: str) -> None:
    drawn = draw_demonstrations(POOL, POOL[index], count, seed=seed, selection=selection)
    ids = [example.example_id for example in drawn]
    assert len(ids) == count == len(set(ids))
    assert POOL[index].example_id not in ids
    assert drawn == draw_demonstrations(POOL, POOL[index], count, seed=seed, selection=selection)


def test_the_same_question_under_another_id_is_not_shown() -> None:
    pool = [question(number, text="twin") for number in range(5)] + POOL[5:8]
    query = question(99, answer="no", text="twin")
    assert {e.example_id for e in draw_demonstrations(pool, query, 3, seed=0)} == {
        "pa/en/train/5",
        "pa/en/train/6",
        "pa/en/train/7",
    }


def test_fixed_replaces_only_the_query_itself() -> None:
    outside = question(100)
    fixed = draw_demonstrations(POOL, outside, 5, seed=1, selection="fixed")
    assert draw_demonstrations(POOL, question(101), 5, seed=1, selection="fixed") == fixed
    inside = draw_demonstrations(POOL, fixed[2], 5, seed=1, selection="fixed")
    assert inside[:4] == [*fixed[:2], *fixed[3:]]
    assert inside[4] not in fixed
    assert draw_demonstrations(POOL, outside, 5, seed=2, selection="fixed") != fixed


def test_draws_depend_on_seed_and_example_and_are_even() -> None:
    counts: Counter[str] = Counter()
    for number in range(1000, 3000):
        counts.update(e.example_id for e in draw_demonstrations(POOL, question(number), 4, seed=0))
    assert len(counts) == 40
    assert 140 < min(counts.values()) <= max(counts.values()) < 265  # expected 200, five deviations


def test_too_small_a_pool_and_unknown_selections_are_refused() -> None:
    with pytest.raises(TaskError, match="at least 3 demonstrations other than the query, found 2"):
        draw_demonstrations(POOL[:3], POOL[0], 3, seed=0)
    with pytest.raises(TaskError, match="expected one of per_example, fixed, got 'random'"):
        draw_demonstrations(POOL, POOL[0], 3, seed=0, selection="random")


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.integers(0, 3))
def test_shuffled_answers_move_as_many_as_can_move(answers: list[str], seed: int) -> None:
    shown = [question(number, answer) for number, answer in enumerate(answers)]
    shuffled = shuffle_answers(shown, seed=seed, query=question(99))
    assert Counter(e.answer for e in shuffled) == Counter(answers)
    assert [(e.example_id, e.fields) for e in shuffled] == [(e.example_id, e.fields) for e in shown]
    kept = sum(before.answer == after.answer for before, after in zip(shown, shuffled, strict=True))
    assert kept == max([0, *(2 * count - len(answers) for count in Counter(answers).values())])
    assert shuffled == shuffle_answers(shown, seed=seed, query=question(99))


def test_shuffles_differ_between_queries() -> None:
    shown = [question(number, answer) for number, answer in enumerate("abcde")]
    orders = {"".join(e.answer for e in shuffle_answers(shown, seed=0, query=question(number))) for number in range(50)}
    assert len(orders) > 10


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    program = (
        "from logitbank.tasks import Example\n"
        "from logitbank.tasks.demonstrations import draw_demonstrations, shuffle_answers\n"
        "pool = [Example(f'pa/en/train/{n}', 'pa', 'en', {'s': str(n)}, 'ab'[n % 2]) for n in range(50)]\n"
        "for query in pool[:9]:\n"
        "    shown = draw_demonstrations(pool, query, 5, seed=3)\n"
        "    print([e.example_id for e in shown])\n"
        "    print([e.answer for e in shuffle_answers(shown, seed=3, query=query)])\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(printed) == 1
    # Written down: a change of the draw changes every prompt and thereby every published number.
    first = ["pa/en/train/48", "pa/en/train/27", "pa/en/train/41", "pa/en/train/28", "pa/en/train/25"]
    assert printed.pop().splitlines()[0] == str(first)
