#!/bin/sh
# From a file of conversations to a table. What follows the script's name goes to every command:
#
#   sh conversations.sh                                              # the models of conversations.yaml
#   sh conversations.sh tiny.yaml                                    # those of tiny_models.py
#   sh conversations.sh model.name=DIR teacher.model=DIR chat.train=mine.jsonl
#
# Run it again to resume.
set -eu
OUT=runs/conversations

# 1. The teacher, once: its top 64 logits for every answer token, in training and test conversations.
build-teacher-cache --store $OUT/store --view zeroshot --config conversations.yaml "$@"
build-teacher-cache --store $OUT/test --view zeroshot --split test --config conversations.yaml "$@"
inspect-cache --store $OUT/store --verify

# 2. Two students with the same steps and batches. The first sees no teacher.
train-student --store $OUT/store --view none --output $OUT/finetuned --resume --config conversations.yaml "$@"
train-student --store $OUT/store --view zeroshot --output $OUT/distilled --resume --config conversations.yaml "$@"

# 3. How near each is to the teacher on the test conversations: `kl`, in nats per answer token.
evaluate-model --condition base --store $OUT/test --results $OUT/results --config conversations.yaml "$@"
for student in finetuned distilled; do
    evaluate-model --checkpoint $OUT/$student/final --store $OUT/test --results $OUT/results \
        --config conversations.yaml "$@"
done
query-results --results $OUT/results tables
