"""The demo's world: six small tasks under a hidden labelling scheme, and a tiny model that reads it in context.

Every word of the lexicon belongs to one of four classes, for good. A *scheme* says which labels the classes
get: other parts of speech, another entity type, other prices … A question alone leaves the scheme open;
demonstrations give it away. The tiny model is pretrained on conversations under every scheme, so it knows
them all and picks one up from demonstrations. The data that this script writes follow one scheme, and
their few training labels are partly wrong: a student has to find the scheme, and not to learn the mistakes.

    python -m logitbank.scripts.demo_world --output runs/demo      # writes runs/demo/hub and runs/demo/model

`hub` is laid out like local clones of the tasks' hub data sets, for `data.mirror`; `model` holds a causal
language model with its tokenizer, for `model.name`. Same seed, same bytes of data.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from logitbank.command import CommandParser, make_directory, run_command
from logitbank.scripts.made import is_made, mark_made
from logitbank.tasks import LANGUAGES, TASKS
from logitbank.tasks.common import Example, HubSource
from logitbank.tasks.ner import TAGS as NER_TAGS
from logitbank.tasks.nli import LABELS as NLI_LABELS
from logitbank.tasks.pos import TAGS as POS_TAGS
from logitbank.tasks.pos import UPOS

logger = logging.getLogger("demo_world")

LEXICON = tuple(a + b for a in ("ba", "de", "ki", "lo", "mu", "sa") for b in ("do", "fe", "gi", "ru", "to", "ni"))
LANGUAGE_WORDS = 24  # each language knows a window of the lexicon, the next one begins 6 words later
SENTENCE_WORDS = 5  # of pos and ner, where every word has a label
QUESTION_WORDS = 2  # of the others, where the first word decides
CLASSES = 4
SCHEMES = 3
# Labels of the four classes under each scheme. The schemes of most tasks use labels of their own, so that one
# demonstration tells them apart; those of nli and pa share theirs and are harder to read.
LABELS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "pos": (("NOUN", "VERB", "ADJ", "ADV"), ("PRON", "DET", "ADP", "NUM"), ("CCONJ", "PART", "PUNCT", "X")),
    "ner": (("B-PER", "B-PER", "O", "O"), ("B-ORG", "B-ORG", "O", "O"), ("B-LOC", "B-LOC", "O", "O")),
    "nli": tuple((NLI_LABELS[a], NLI_LABELS[a], NLI_LABELS[b], NLI_LABELS[b]) for a, b in ((0, 1), (1, 2), (2, 0))),
    "pa": ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)),
    "qa": (("north", "north", "south", "south"), ("red", "red", "blue", "blue"), ("one", "one", "two", "two")),
    "gsm8k": ((2, 3, 5, 7), (11, 13, 17, 19), (23, 29, 31, 37)),
}
PLACES = tuple(dict.fromkeys(label for labels in LABELS["qa"] for label in labels))

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@dataclasses.dataclass(frozen=True)
class World:
    """What the data say.

    Attributes:
        seed: of every draw.
        scheme: the hidden scheme of the written data, below `SCHEMES`.
        train_rows: rows per training split.
        eval_rows: rows of each validation and test split.
        label_noise: share of training labels (of tags, where an answer has several) that are wrong.
    """

    seed: int = 0
    scheme: int = 2
    train_rows: int = 24
    eval_rows: int = 200
    label_noise: float = 0.3


def words_of(language: str) -> tuple[str, ...]:
    """The words of a language: two thirds of the lexicon, so each has words that English lacks."""
    start = 6 * LANGUAGES.index(language)
    return tuple(LEXICON[(start + offset) % len(LEXICON)] for offset in range(LANGUAGE_WORDS))


def word_class(word: str) -> int:
    """The class of a word: the same in every language and scheme."""
    return LEXICON.index(word) % CLASSES


class Draw:
    """Draws rows, in the hub's columns, of tasks under one scheme and one share of wrong labels."""

    def __init__(self, words: Sequence[str], scheme: int, noise: float, rng: random.Random) -> None:
        self.words, self.scheme, self.noise, self.rng = words, scheme, noise, rng

    def row(self, task: str) -> dict[str, Any]:
        """One row of a task, as its hub data set has them."""
        draw: Callable[[], dict[str, Any]] = getattr(self, f"_{task}")
        return draw()

    def _label(self, task: str, word: str) -> Any:
        """The scheme's label of the word, or at times another label of the same scheme."""
        labels = LABELS[task][self.scheme]
        right = labels[word_class(word)]
        if self.rng.random() >= self.noise:
            return right
        return self.rng.choice([label for label in dict.fromkeys(labels) if label != right])

    def _words(self, count: int) -> list[str]:
        return self.rng.choices(self.words, k=count)

    def _pos(self) -> dict[str, Any]:
        tokens = self._words(SENTENCE_WORDS)
        return {"tokens": tokens, "pos_tags": [UPOS.index(self._label("pos", word)) for word in tokens]}

    def _ner(self) -> dict[str, Any]:
        tokens = self._words(SENTENCE_WORDS)
        return {"tokens": tokens, "ner_tags": [NER_TAGS.index(self._label("ner", word)) for word in tokens]}

    def _nli(self) -> dict[str, Any]:
        """Decided by the first word of the hypothesis."""
        hypothesis, premise = self._words(QUESTION_WORDS), self.rng.choice(self.words)
        label = NLI_LABELS.index(self._label("nli", hypothesis[0]))
        return {"premise": premise, "hypothesis": " ".join(hypothesis), "label": label}

    def _pa(self) -> dict[str, Any]:
        """Decided by the first word of the second sentence."""
        second, first = self._words(QUESTION_WORDS), self.rng.choice(self.words)
        return {"id": 0, "sentence1": first, "sentence2": " ".join(second), "label": self._label("pa", second[0])}

    def _qa(self) -> dict[str, Any]:
        """Decided by the first word of the question."""
        question, context = self._words(QUESTION_WORDS), " ".join(PLACES)
        answer = self._label("qa", question[0])
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
        return {"id": "", "title": "", "context": context, "question": " ".join(question), "answers": answers}

    def _gsm8k(self) -> dict[str, Any]:
        """The price of the first word."""
        words = self._words(QUESTION_WORDS)
        price = self._label("gsm8k", words[0])
        return {"question": " ".join(words), "answer": f"{price} #### {price}"}


def write_mirror(folder: Path, world: World) -> None:
    """Write every data set that the tasks can ask for, in all languages, as local hub clones.

    Training rows carry `world.label_noise`; validation and test rows are right. GSM8K has no validation
    split on the hub: its tasks file takes the last twentieth of the training split.
    """
    for (path, config, split), (task, language) in _splits().items():
        training = split == "train"
        rng = random.Random(f"{world.seed}/{path}/{config}/{split}")
        draw = Draw(words_of(language), world.scheme, world.label_noise if training else 0.0, rng)
        rows = [draw.row(task) for _ in range(world.train_rows if training else world.eval_rows)]
        target = folder / path / config / f"{split}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), target)
    for path in {path for path, _, _ in _splits()}:
        (folder / path / "README.md").write_text(_data_card(path), encoding="utf-8")


def drawn_tasks() -> list[str]:
    """The tasks that this world has rows for: our own, but those that read files of the user's."""
    return [name for name in TASKS.shipped if TASKS[name].sources]


def _splits() -> dict[tuple[str, str, str], tuple[str, str]]:
    """(repository, configuration, split) of every file that some task reads: a task and language that read it."""
    files: dict[tuple[str, str, str], tuple[str, str]] = {}
    for name in drawn_tasks():
        for source in TASKS[name].sources.values():
            for split in ("train", "validation", "test"):
                for language in source.train_languages if split == "train" else source.eval_languages:
                    hub = source.hub(split, language)
                    assert isinstance(hub, HubSource)  # our own tasks read no files here
                    files.setdefault((hub.path, hub.config or "default", hub.split.partition("[")[0]), (name, language))
    return files


def _data_card(path: str) -> str:
    configs: dict[str, list[str]] = {}
    for repository, config, split in sorted(_splits()):
        if repository == path:
            configs.setdefault(config, []).append(split)
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    return "\n".join([*lines, "---", f"Synthetic rows in the columns of {path}; see scripts/demo_world.py.", ""])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template over all words that the demo's prompts and answers hold."""
    texts = [TASKS[name].system_prompt for name in drawn_tasks()]
    draw = Draw(LEXICON, 0, 0.0, random.Random(0))
    for name in drawn_tasks():
        example = to_example(name, draw.row(name))
        texts += [TASKS[name].user_message(example), example.answer]
    labels = [*UPOS, *POS_TAGS, *NER_TAGS, *NLI_LABELS, "yes", "no", *PLACES]
    labels += [str(price) for prices in LABELS["gsm8k"] for price in prices]
    words = dict.fromkeys([*LEXICON, *labels, *" ".join(texts).split()])
    special = [PAD, "<|unk|>", END, SYSTEM, USER, ASSISTANT]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token="<|unk|>",
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=TEMPLATE,
        model_max_length=1024,
    )


def to_example(task: str, row: Mapping[str, Any]) -> Example:
    """The task's own reading of a row."""
    example = TASKS[task].to_example(row, "en", f"{task}/en/drawn/0")
    if example is None:
        raise ValueError(f"{task}: generated a row that the task cannot use: {row}")
    return example


# ---- the model, and how it learns to read a scheme off demonstrations ----


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How the tiny model is made.

    Labels are right at first, since a model that cannot yet read a scheme learns nothing from wrong ones;
    later they are wrong at times, so that it learns to outvote single mistakes.
    """

    layers: int = 4
    width: int = 128
    steps: int = 600
    batch: int = 8  # many small steps: batches of 32 took three times as long to learn as much
    learning_rate: float = 1e-3
    initializer_range: float = 0.05  # of a narrow model; 0.02, made for wide ones, is slow to leave the start
    warmup: int = 40
    noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)  # shares of wrong labels, one drawn for a conversation
    noisy_from: float = 0.7  # before this share of the steps every label is right
    seed: int = 0


TURNS = {"pos": 6, "ner": 6, "nli": 8, "pa": 8, "qa": 8, "gsm8k": 8}  # of a conversation


class Conversations:
    """Draws training conversations: token ids and the weight of each in the loss, none but on answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, plan: Pretraining) -> None:
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.plan = plan
        self.rng = random.Random(f"conversations/{plan.seed}")

    def draw(self, noises: Sequence[float]) -> tuple[list[int], list[float]]:
        """One conversation about one of the tasks."""
        task = self.rng.choice(list(TURNS))
        rows = Draw(LEXICON, self.rng.randrange(SCHEMES), self.rng.choice(noises), self.rng)
        return self.render(task, [to_example(task, rows.row(task)) for _ in range(TURNS[task])])

    def render(self, task: str, turns: Sequence[Example]) -> tuple[list[int], list[float]]:
        """The ids of a conversation, the same as `PromptEncoder` gives, and weights: every answer counts 1."""
        ids = self._ids(f"{SYSTEM} {TASKS[task].system_prompt} {END}")
        weights = [0.0] * len(ids)
        for example in turns:
            question = self._ids(f"{USER} {TASKS[example.task].user_message(example)} {END} {ASSISTANT}")
            answer = self._ids(f"{example.answer} {END}")
            ids += question + answer
            weights += [0.0] * len(question) + [1 / len(answer)] * len(answer)
        return ids, weights

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`plan.steps` batches: ids (B, L) int64, padded at the end, and weights (B, L) float32."""
        for step in range(self.plan.steps):
            noises = self.plan.noises if step >= self.plan.noisy_from * self.plan.steps else (0.0,)
            drawn = [self.draw(noises) for _ in range(self.plan.batch)]
            length = max(len(ids) for ids, _ in drawn)
            padded = [ids + [0] * (length - len(ids)) for ids, _ in drawn]
            weights = [weight + [0.0] * (length - len(weight)) for _, weight in drawn]
            yield torch.tensor(padded), torch.tensor(weights)

    def _ids(self, text: str) -> list[int]:
        return [self.vocabulary[word] for word in text.split()]


def build_model(tokenizer: PreTrainedTokenizerFast, plan: Pretraining) -> Qwen3ForCausalLM:
    """An untrained Qwen3 model; its `lm_head` has rows beyond the tokenizer, as real ones do."""
    torch.manual_seed(plan.seed)
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=plan.width,
        intermediate_size=3 * plan.width,
        num_hidden_layers=plan.layers,
        initializer_range=plan.initializer_range,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=plan.width // 4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def pretrain(model: Qwen3ForCausalLM, conversations: Conversations, plan: Pretraining) -> list[float]:
    """Train on the answers of all turns; returns the loss of each step, nats per token averaged over answers."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / plan.warmup) * max(0.05, 1 - step / plan.steps)
    )
    losses = []
    progress = tqdm(conversations.batches(), total=plan.steps, desc="pretrain", disable=None, mininterval=1.0)
    model.train()
    for ids, weights in progress:
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        predicts = weights[:, 1:] > 0
        token_losses = torch.nn.functional.cross_entropy(
            model.lm_head(hidden[predicts]), ids[:, 1:][predicts], reduction="none"
        )
        token_weights = weights[:, 1:][predicts]
        loss = (token_losses * token_weights).sum() / token_weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}", refresh=False)
    model.eval()
    return losses


def make_model(folder: Path, plan: Pretraining) -> None:
    """Write model and tokenizer to `folder`, unless they are there, made by the same plan."""
    if is_made(folder, plan):
        return
    started = time.monotonic()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, plan)
    transformers_logging.disable_progress_bar()  # of a file that is written in no time
    losses = pretrain(model, Conversations(tokenizer, plan), plan)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    mark_made(folder, plan)
    logger.info(
        "%s: %d parameters, vocabulary of %d words, loss %.2f -> %.2f nats per token in %d steps and %.0f s",
        folder,
        sum(parameter.numel() for parameter in model.parameters()),
        len(tokenizer),
        losses[0],
        sum(losses[-50:]) / len(losses[-50:]),
        plan.steps,
        time.monotonic() - started,
    )


def make_mirror(folder: Path, world: World) -> None:
    """Write the world's data sets to `folder`, unless they are there."""
    if is_made(folder, world):
        return
    write_mirror(folder, world)
    mark_made(folder, world)
    logger.info("%s: %d files of synthetic rows in hub layout", folder, len(_splits()))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = CommandParser(description="Make the demo's data, tokenizer and model.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=World.seed, help="directory for the data")
    parser.add_argument(
        "--scheme", type=int, choices=range(SCHEMES), default=World.scheme, help="hidden scheme of the labels"
    )
    parser.add_argument("--train-rows", type=int, default=World.train_rows, help="rows per training split")
    parser.add_argument(
        "--label-noise", type=float, default=World.label_noise, help="fraction of wrong training labels"
    )
    arguments = parser.parse_args(argv)
    world = World(
        seed=arguments.seed,
        scheme=arguments.scheme,
        train_rows=arguments.train_rows,
        label_noise=arguments.label_noise,
    )

    def body() -> None:
        make_directory("--output", arguments.output)
        make_mirror(arguments.output / "hub", world)
        make_model(arguments.output / "model", Pretraining())

    run_command(body)


if __name__ == "__main__":
    main()
