"""A small world of preferences: people prefer the answer of better words, and many of them are misheard.

Every word has a hidden value, and the answer whose words are worth more on average is preferred; answers of about the
same worth are a tie. Three tenths of the training labels are wrong. The external comparisons are right and there are
many of them: teachers read both, students the training comparisons alone. So a student can only learn what its
labels do not say from its teachers.

    python -m logitbank.scripts.preference_world --output runs/demo/preference    # writes data and model below it

`data` has CSV files in the arena's layout; `model` is an untrained causal language model with its tokenizer. Same seed,
same bytes.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from logitbank.command import CommandParser, make_directory, run_command
from logitbank.preference import CLASSES, LETTERS
from logitbank.scripts.demo_world import ASSISTANT, END, LEXICON, PAD, SYSTEM, TEMPLATE, USER
from logitbank.scripts.made import is_made, mark_made

logger = logging.getLogger("preference_world")

WORDS = LEXICON[:24]
FILES = ("train", "validation", "test", "external")
UNKNOWN = "<|unk|>"
SPECIAL = (PAD, UNKNOWN, END, SYSTEM, USER, ASSISTANT, *LETTERS)


@dataclasses.dataclass(frozen=True)
class PreferenceWorld:
    """What the comparisons say.

    Attributes:
        seed: of the words' values and of every draw.
        train, validation, test, external: comparisons of each file.
        label_noise: share of the training labels that are wrong.
        prompt_words, answer_words: length of each text.
        margin: difference of worth, in standard deviations of a word's value, up to which two answers tie.
    """

    seed: int = 0
    train: int = 300
    validation: int = 250
    test: int = 400
    external: int = 2000
    label_noise: float = 0.3
    prompt_words: int = 4
    answer_words: int = 8
    margin: float = 0.15


@dataclasses.dataclass(frozen=True)
class Shape:
    """The tiny model: width and layers, and the seed of its weights."""

    width: int = 64
    layers: int = 1
    seed: int = 0


def comparisons(world: PreferenceWorld, file: str) -> list[dict[str, str]]:
    """The rows of one file: `id`, `prompt`, `response_a`, `response_b`, `winner`."""
    rng = random.Random(f"values/{world.seed}")
    values = {word: rng.gauss(0, 1) for word in WORDS}
    rng, mishearing = random.Random(f"{world.seed}/{file}"), random.Random(f"{world.seed}/{file}/labels")
    noise = world.label_noise if file == "train" else 0.0
    rows = []
    for number in range(getattr(world, file)):
        prompt = rng.choices(WORDS, k=world.prompt_words)
        a, b = (rng.choices(WORDS, k=world.answer_words) for _ in range(2))
        gain = sum(values[word] for word in a) - sum(values[word] for word in b)
        right = 2 if abs(gain) <= world.margin * world.answer_words else int(gain < 0)
        wrong = mishearing.choice([other for other in range(len(CLASSES)) if other != right])
        said = wrong if mishearing.random() < noise else right
        rows.append(
            {
                "id": f"{file}-{number}",
                "prompt": " ".join(prompt),
                "response_a": " ".join(a),
                "response_b": " ".join(b),
                "winner": CLASSES[said],
            }
        )
    return rows


def make_preferences(folder: Path, world: PreferenceWorld) -> None:
    """Write the world's files to `folder`, unless they are there, made by the same world."""
    if is_made(folder, world):
        return
    folder.mkdir(parents=True)
    for file in FILES:
        rows = comparisons(world, file)
        with (folder / f"{file}.csv").open("w", encoding="utf-8", newline="") as output:
            writer = csv.DictWriter(output, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    mark_made(folder, world)
    logger.info("%s: %d comparisons, %.0f%% of the training labels wrong", folder, world.train, 100 * world.label_noise)


def make_untrained(folder: Path, shape: Shape) -> None:
    """Write an untrained Qwen3 model of the world's words, with its tokenizer, unless it is there."""
    if is_made(folder, shape):
        return
    tokenizer = build_tokenizer()
    torch.manual_seed(shape.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=shape.width // 2,
        initializer_range=0.05,  # of a narrow model, whose states 0.02 leaves too small to learn from
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mark_made(folder, shape)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template; every other word is unknown to it."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=TEMPLATE,
        model_max_length=512,
    )


def make_world(output: Path, world: PreferenceWorld, shape: Shape) -> list[str]:
    """Make `output/data` and `output/model`, and return the `key=value` pairs that name them."""
    data, model = output / "data", output / "model"
    make_preferences(data, world)
    make_untrained(model, shape)
    files = [f"preference.{file}={data / f'{file}.csv'}" for file in FILES if file != "external"]
    return [f"model.name={model}", *files, f"preference.external=[{data / 'external.csv'}]"]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = CommandParser(description="Make a small synthetic preference data set and an untrained model.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--seed", type=int, default=PreferenceWorld.seed, help="seed of the words' values and of all draws"
    )
    arguments = parser.parse_args(argv)

    def body() -> None:
        make_directory("--output", arguments.output)
        make_world(arguments.output, PreferenceWorld(seed=arguments.seed), Shape())

    run_command(body)


if __name__ == "__main__":
    main()
