"""What an evaluation asks: which demonstrations it shows with each query."""

from __future__ import annotations

from collections.abc import Callable

from logitbank.configs import Config
from logitbank.evaluation.questions import draw_questions


def test_demonstrations_follow_the_seed_and_the_queries_do_not(config: Callable[..., Config]) -> None:
    def shown(seed: int) -> dict[str, list[str]]:
        asked = config("tasks=[nli]", "languages=[en]", f"seed={seed}", "fewshot.num_demonstrations={nli: 4}")
        return {
            question.example.example_id: [example.example_id for example in question.demonstrations]
            for question in draw_questions(asked, "fewshot", "nli", "en")
        }

    first, again, other = shown(1), shown(1), shown(2)
    assert first == again
    assert first.keys() == other.keys()
    # 4 of 12 in order: 11,880 draws, so two seeds agree about one query in 11,880
    assert all(first[query] != other[query] for query in first)
    assert all(len(set(demonstrations)) == 4 for demonstrations in first.values())
