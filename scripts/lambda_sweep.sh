#!/usr/bin/env bash
# λ sweep from one teacher cache: build the cache where it is missing, then many students, then one table.
#
#   scripts/lambda_sweep.sh --output runs/ner-sweep --config llama-3.2-3b sweep-ner
#   scripts/lambda_sweep.sh --output runs/pos-sweep --config llama-3.2-3b sweep-pos
#   scripts/lambda_sweep.sh --output runs/warmup --config llama-3.2-3b warmup-then-sft --lambda 0 0.05
#   scripts/lambda_sweep.sh --output runs/small --config qwen3-1.7b --lambda 0 0.5 --strategy fixed entropy \
#       --seed 42 43 training.max_steps=100
#
# Finished shards, students and cells are skipped: the same command goes on where it was stopped.
set -euo pipefail

source "$(dirname "$0")/common.sh"
lists="--view --lambda --strategy --seed"
read_arguments "$@"
[ ${#models[@]} -eq 0 ] || fail "--model: expected model.name=NAME after a --config"
arguments=(--config "${configs[@]}" ${overrides[@]+"${overrides[@]}"})
sweep=(python "$(dirname "$0")/lambda_sweep.py" --store "$output/store" --output "$output"
    ${passed[@]+"${passed[@]}"} "${arguments[@]}")

"${sweep[@]}" --dry-run # a wrong grid is said before the teacher runs
build-teacher-cache --store "$output/store" --view fewshot --view zeroshot "${arguments[@]}"
"${sweep[@]}"
