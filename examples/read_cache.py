"""A cache in ten lines: where the teacher is sure, and where it would have answered something else.

python read_cache.py [STORE]
"""

import sys

from transformers import AutoTokenizer

import logitbank

store = logitbank.open_store(sys.argv[1] if len(sys.argv) > 1 else "runs/conversations/store")
texts = AutoTokenizer.from_pretrained(store.info.model).batch_decode
for number in range(min(3, len(store.examples))):
    example, rows = store.examples[number], store.read([number], view="zeroshot", top_k=3)
    print(f"\n{example.id}: {len(rows.entropy)} answer tokens; rank, entropy in nats, the teacher's best")
    for t, token in enumerate(texts(example.answer_ids[:, None])):
        print(f"{token!r:>14} {rows.gold_rank[t]:5} {rows.entropy[t]:6.2f}  {texts(rows.token_ids[t, :, None])}")
