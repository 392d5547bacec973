"""Makes a teacher and a student that a CPU trains in seconds, so that every example runs without a download.

    python tiny_models.py            # writes models/teacher and models/student

Both read the same tokens, byte pairs learned from the conversations, and have practised on them for some seconds. The
teacher is twice the size of the student. Their answers are poor. What the examples show is how a student comes nearer
to its teacher.
"""

import json
from pathlib import Path

import tokenizers
import torch
import transformers

CONVERSATIONS = Path("conversations/train.jsonl")
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with a chat template."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<|pad|>", "<|start|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE
    )


def make_model(tokenizer: transformers.PreTrainedTokenizerFast, width: int, layers: int) -> torch.nn.Module:
    """An untrained Qwen3."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=width // 4,
        initializer_range=0.05,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return transformers.Qwen3ForCausalLM(config)


def practise(model: torch.nn.Module, sequences: list[list[int]], steps: int) -> float:
    """Next-token training on whole conversations; returns the last loss in nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = [sequences[i] for i in torch.randint(len(sequences), (8,), generator=draw)]
        length = max(map(len, chosen))
        labels = torch.tensor([row + [-100] * (length - len(row)) for row in chosen])
        loss = model(input_ids=labels.clamp(min=0), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    """Tokenizer, teacher, student."""
    transformers.utils.logging.disable_progress_bar()  # of files that are written in no time
    rows = [json.loads(line)["messages"] for line in CONVERSATIONS.read_text(encoding="utf-8").splitlines()]
    tokenizer = make_tokenizer([message["content"] for messages in rows for message in messages])
    sequences = [tokenizer.apply_chat_template(messages, return_dict=False) for messages in rows]
    for name, width, layers, steps in (("teacher", 96, 2, 45), ("student", 64, 2, 40)):
        model = make_model(tokenizer, width, layers)
        loss = practise(model, sequences, steps)
        model.save_pretrained(f"models/{name}")
        tokenizer.save_pretrained(f"models/{name}")
        print(f"models/{name}: {model.num_parameters():,} parameters, {loss:.2f} nats per token")


if __name__ == "__main__":
    main()
