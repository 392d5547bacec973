"""The head that turns hidden states into the logits of three classes, and the file that says how its pairs are packed.

Shape letters: B pairs, L padded length, D hidden size, F features of a pair, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from logitbank.configs.schema import Config, ConfigError
from logitbank.models.pair_batch import PairBatch
from logitbank.preference import CLASSES, TASK
from logitbank.registry import TASKS

HEAD_WEIGHTS = "classifier_head.safetensors"
HEAD_SETTINGS = "classifier.json"


@dataclass(frozen=True)
class HeadSettings:
    """What a classifier ends in, and how pairs must be packed for it.

    Attributes:
        head: `classifier`, or `letters` for the rows A, B and C of the `lm_head`.
        pooling: `last`, `mean` or `pair`; see `POOLINGS`. Letters are read at the last token.
        hidden_size: D.
        max_tokens: most tokens of a packed pair.
        keep_turns: which turns stay where not all fit, `last` or `first`.
        classes: what the logits stand for, in this order.
    """

    head: str
    pooling: str
    hidden_size: int
    max_tokens: int
    keep_turns: str
    classes: tuple[str, ...] = CLASSES

    @classmethod
    def of(cls, config: Config, hidden_size: int) -> HeadSettings:
        """Of a new head."""
        return cls(
            head=config.head,
            pooling="last" if config.head == "letters" else config.model.pooling,
            hidden_size=hidden_size,
            max_tokens=most_tokens(config),
            keep_turns=config.data.keep_turns,
        )


def most_tokens(config: Config) -> int:
    """Most tokens of a packed pair, where no `classifier.json` says it: `data.max_student_tokens`, or its default."""
    return config.data.max_student_tokens or int(TASKS[TASK].max_student_tokens)


def read_head_settings(directory: Path) -> HeadSettings | None:
    """The settings that training or export wrote beside a model; None if there are none.

    Raises:
        ConfigError: a file that cannot be read, or classes in another order.
    """
    path = directory / HEAD_SETTINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(HeadSettings)}
        settings = HeadSettings(**{name: value for name, value in content.items() if name in known})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if tuple(settings.classes) != CLASSES:
        raise ConfigError(f"{path}: expected the classes {', '.join(CLASSES)}, got {', '.join(settings.classes)}")
    return HeadSettings(**{**asdict(settings), "classes": CLASSES})


def write_head_settings(directory: Path, settings: HeadSettings) -> None:
    """Write `classifier.json` into a directory."""
    text = json.dumps(asdict(settings), indent=2) + "\n"
    (directory / HEAD_SETTINGS).write_text(text, encoding="utf-8")


def pool_last(hidden_BLD: torch.Tensor, batch: PairBatch) -> torch.Tensor:
    """The last token's, (B, D)."""
    rows_B = torch.arange(len(batch), device=hidden_BLD.device)
    return hidden_BLD[rows_B, batch.last_B].float()


def pool_mean(hidden_BLD: torch.Tensor, batch: PairBatch) -> torch.Tensor:
    """The mean over all real tokens, (B, D)."""
    return _mean(hidden_BLD, batch.attention_mask_BL)


def pool_pair(hidden_BLD: torch.Tensor, batch: PairBatch) -> torch.Tensor:
    """The last token's, mean of A − mean of B, and the absolute value of that difference, (B, 3D)."""
    difference_BD = _mean(hidden_BLD, batch.answer_a_BL) - _mean(hidden_BLD, batch.answer_b_BL)
    return torch.cat([pool_last(hidden_BLD, batch), difference_BD, difference_BD.abs()], dim=1)


POOLINGS: dict[str, tuple[Callable[[torch.Tensor, PairBatch], torch.Tensor], int]] = {
    "last": (pool_last, 1),  # and how many D wide it is
    "mean": (pool_mean, 1),
    "pair": (pool_pair, 3),
}


def _mean(hidden_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Mean over the masked positions, float32, (B, D)."""
    weights_BL = mask_BL.float() / mask_BL.sum(dim=1, keepdim=True)
    return torch.bmm(weights_BL[:, None], hidden_BLD.float())[:, 0]


class ClassifierHead(nn.Module):
    """Pooling and one linear layer, in float32 whatever the backbone computes in.

    A new one is zero: all classes are equally likely until it has learned something.
    """

    def __init__(self, hidden_size: int, pooling: str) -> None:
        super().__init__()
        self._pool, width = POOLINGS[pooling]
        self.linear = nn.Linear(width * hidden_size, len(CLASSES), dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_BLD: torch.Tensor, batch: PairBatch) -> torch.Tensor:
        """(B, C) float32 logits."""
        with torch.autocast(hidden_BLD.device.type, enabled=False):
            logits_BC: torch.Tensor = self.linear(self._pool(hidden_BLD, batch))
        return logits_BC


def load_head(directory: Path, settings: HeadSettings) -> ClassifierHead:
    """The head whose weights are in a directory.

    Raises:
        ConfigError: no weights there, or weights of another shape than the settings say.
    """
    path = directory / HEAD_WEIGHTS
    head = ClassifierHead(settings.hidden_size, settings.pooling)
    try:
        head.linear.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ConfigError(
            f"--checkpoint: {directory} has no {HEAD_WEIGHTS} with the trained weights of its head"
        ) from None
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"--checkpoint: {path} does not fit its {HEAD_SETTINGS}: {_line(error)}") from None
    return head


def write_head(directory: Path, head: ClassifierHead) -> None:
    """Write `classifier_head.safetensors` into a directory."""
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in head.linear.state_dict().items()},
        directory / HEAD_WEIGHTS,
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
