"""A cache in ten lines: where the teacher is sure, and where it would have answered something else.

python read_cache.py [STORE]
"""

import sys

from transformers import AutoTokenizer

import logitbank

store = logitbank.open_store(sys.argv[1] if len(sys.argv) > 1 else "runs/conversations/store")
decode = AutoTokenizer.from_pretrained(store.info.model).decode
for number in range(min(3, len(store.examples))):
    example, rows = store.examples[number], store.read([number], view="zeroshot", top_k=3)
    print(f"\n{example.id}: {len(rows.entropy)} answer tokens")
    for t, token in enumerate(example.answer_ids):
        best = [decode([i]) for i in rows.token_ids[t]]
        print(f"{decode([token])!r:>14}  rank {rows.gold_rank[t]:<4} entropy {rows.entropy[t]:.2f} nats  best {best}")
