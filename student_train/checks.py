"""What must fit together before a run starts: store, view, tokenizer, model, output directory."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from logitbank.authorship import Learner, remarks_on_answers
from logitbank.configs import Config, ConfigError
from logitbank.configs.schema import ModelConfig
from logitbank.models.huggingface import context_tokens
from logitbank.models.weights import adapted_weights_hash, weights_hash
from logitbank.registry import LOSSES, STRATEGIES
from logitbank.storage import StoreError, TeacherStore
from logitbank.student_train.losses.base import make_loss
from logitbank.student_train.strategies.gate import GATE_NEEDS
from logitbank.student_train.student import initial_weights
from logitbank.student_train.tokens import check_tokens
from logitbank.tasks.prompts import PromptEncoder

logger = logging.getLogger(__name__)


def check_output(output: Path) -> None:
    """Raise `ConfigError` where `--output` is a file."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output: expected a directory, got the file {output}")


def check_store_fits(store: TeacherStore, config: Config, view: str | None, encoder: PromptEncoder) -> None:
    """Refuse a store that this student cannot be trained from.

    Raises:
        StoreError: it holds another split than the training split, the view is absent or half-built, the chat
            templates differ, or an id of the store is another token for this student.
        ConfigError: more teacher logits asked for than stored, a task that the store lacks, or an example longer
            than the model reads.
    """
    info, top_k = store.info, config.distillation.n_top_logits
    if info.split != "train":
        raise StoreError(
            f"--store: expected a store of the training split, but {store.url} holds the {info.split} split; use "
            "that store with evaluate-model"
        )
    if view is not None:
        store.require_view(view)
        store.require_examples(view)
        if top_k is not None and top_k > info.top_k:
            raise ConfigError(
                f"distillation.n_top_logits: expected at most {info.top_k} (what the store at {store.url} "
                f"holds), got {top_k}"
            )
        _check_signal(store, config)
        _check_bounded(store, config, view)
    if view is not None and config.distillation.gate == "fewshot_gain":
        if view == "zeroshot":
            raise ConfigError(
                "distillation.gate: fewshot_gain compares a view with zeroshot; expected a different --view, got "
                "zeroshot"
            )
        store.require_view("zeroshot")
        store.require_examples("zeroshot")
        _check_bounded(store, config, "zeroshot")
    for task in config.tasks:
        if task not in info.tasks or not (np.asarray(store.examples.task) == info.tasks.index(task)).any():
            raise ConfigError(
                f"tasks: the store at {store.url} has no examples of {task} (it has {', '.join(info.tasks)})"
            )
    template = info.template_hash
    if template is not None and encoder.template_hash != template:
        raise StoreError(
            f"model.name: the chat template of {config.model.name} is not the template that wrote the prompts in the "
            f"store at {store.url} (hash {encoder.template_hash[:12]} instead of {template[:12]}); use the model "
            "that the store was built for, or build a store for this one"
        )
    check_tokens(store, config.model, encoder, view, top_k)
    most, longest = context_tokens(config.model), int(store.examples.input_length.max(initial=0))
    if most is not None and longest - 1 > most:  # nothing is predicted from the last token
        raise ConfigError(
            f"model.name: {config.model.name} reads at most {most:,} tokens, but the store at {store.url} has an "
            f"example of {longest:,}; build a store for this model, or with data.max_student_tokens={most}"
        )


def warn_of_answers(store: TeacherStore, config: Config) -> None:
    """Say where another model than this student wrote a store's answers, or another teacher taught their writer."""
    if store.info.answers is None:
        return
    for remark in remarks_on_answers(store.info.answers, store.info.teacher_model, _learner(config)):
        logger.warning("warning: %s: %s", store.url, remark)


def _learner(config: Config) -> Learner:
    """What a run begins with."""
    initial = initial_weights(config)
    if initial is None:
        return Learner(config.model.name, weights_hash(config.model))
    own = weights_hash(ModelConfig(name=str(initial)))
    if config.training.use_lora:
        own = adapted_weights_hash(weights_hash(config.model), own)
    return Learner(str(initial), own)


def _check_signal(store: TeacherStore, config: Config) -> None:
    """Refuse what draws cannot tell without bias."""
    info, distillation = store.info, config.distillation
    if info.signal == "topk":
        return
    from_draws = LOSSES[distillation.loss].from_draws
    if from_draws is None:
        able = ", ".join(name for name, loss in LOSSES.items() if loss.from_draws is not None)
        raise ConfigError(
            f"distillation.loss: the store at {store.url} holds draws (teacher.signal={info.signal}), from which "
            f"{distillation.loss} cannot be estimated; expected {able}, got {distillation.loss}"
        )
    if distillation.temperature != 1 and not from_draws.takes_temperature:
        raise ConfigError(
            f"distillation.temperature: expected 1, the temperature of the draws in the store at {store.url}, got "
            f"{distillation.temperature:g}"
        )
    if distillation.n_top_logits is not None:
        raise ConfigError(
            f"distillation.n_top_logits: expected null because the draws in the store at {store.url} require all "
            f"ranks, got {distillation.n_top_logits}"
        )


def _check_bounded(store: TeacherStore, config: Config, view: str) -> None:
    """Refuse a view that another program made and that knows as a bound alone what must be exact."""
    bounded, distillation = store.bounded(view), config.distillation
    asking = {
        f"distillation.loss: {distillation.loss}": make_loss(distillation, 0, store.info.signal).needs,
        f"distillation.gate: {distillation.gate}": GATE_NEEDS.get(distillation.gate, ()),
        **{f"distillation.strategy: {n}": STRATEGIES[n].needs for n in distillation.strategy.split("*")},
    }
    for who, needs in asking.items():
        for name in needs:
            if name in bounded:
                raise ConfigError(
                    f"{who} needs the exact {name}, but the view {view} of {store.url} only has a bound (bounded: "
                    f"{', '.join(bounded)}); choose another"
                )
