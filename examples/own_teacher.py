"""A cache of your own teacher loop: any program that has logits can write one.

    python own_teacher.py [--teacher MODEL] [--student MODEL] [--train FILE] [--output STORE]

Here the loop is a forward pass of transformers, one conversation at a time. Run it again to resume.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers

import logitbank

parser = argparse.ArgumentParser()
parser.add_argument("--teacher", default="Qwen/Qwen3-4B")
parser.add_argument("--student", default="Qwen/Qwen3-0.6B")
parser.add_argument("--train", default="conversations/train.jsonl")
parser.add_argument("--output", default="runs/own/store")
arguments = parser.parse_args()

tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.student)
teacher = transformers.AutoModelForCausalLM.from_pretrained(arguments.teacher, device_map="auto").eval()

examples = []
for line in Path(arguments.train).read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    *before, answer = row["messages"]  # the last turn is learned
    prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    answer_ids = [*tokenizer.encode(answer["content"], add_special_tokens=False), tokenizer.eos_token_id]
    labels = [-100] * len(prompt) + answer_ids  # as trainers have them: -100 where nothing is learned
    examples.append(logitbank.ExampleRecord.from_labels(row["id"], prompt + answer_ids, labels))

with logitbank.StoreWriter(
    arguments.output,
    examples,
    tokenizer=tokenizer,
    model=arguments.student,
    teacher={"model": arguments.teacher},
    view="zeroshot",
    top_k=32,
    vocab_size=teacher.config.vocab_size,
) as writer:
    for i in writer.missing():
        with torch.no_grad():
            logits = teacher(torch.tensor(examples[i].input_ids[None], device=teacher.device)).logits[0]
        writer.write(i, logits[examples[i].answer_positions - 1])  # the logits before a token predict it

rows = logitbank.open_store(arguments.output).read(range(len(examples)), view="zeroshot")
print(f"{len(examples)} examples, {len(rows.entropy)} answer tokens; entropy {rows.entropy.mean():.2f} nats on average")
