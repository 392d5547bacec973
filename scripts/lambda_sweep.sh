#!/usr/bin/env bash
# λ sweep from one teacher cache: build the cache where it is missing, then many students, then one table.
#
#   scripts/lambda_sweep.sh --output runs/ner-sweep --config llama-3.2-3b sweep-ner
#   scripts/lambda_sweep.sh --output runs/pos-sweep --config llama-3.2-3b sweep-pos
#   scripts/lambda_sweep.sh --output runs/warmup --config llama-3.2-3b warmup-then-sft --lambda 0 0.05
#   scripts/lambda_sweep.sh --output runs/small --config qwen3-1.7b --lambda 0 0.5 --strategy fixed entropy \
#       --seed 42 43 -- training.max_steps=100
#
# Finished shards, students and cells are skipped: the same command goes on where it was stopped.
set -euo pipefail

output="" config=() sweep=() overrides=()
while [ $# -gt 0 ]; do
    case "$1" in
        --output) output=$2; shift 2 ;;
        --config) shift; while [ $# -gt 0 ] && [[ $1 != --* && $1 != *=* ]]; do config+=("$1"); shift; done ;;
        --) shift ;;
        *=*) overrides+=("$1"); shift ;;
        *) sweep+=("$1"); shift ;;
    esac
done
if [ -z "$output" ] || [ ${#config[@]} -eq 0 ]; then
    sed -n '2,10p' "$0" | cut -c3-
    exit 2
fi

build-teacher-cache --store "$output/store" --view fewshot --view zeroshot \
    --config "${config[@]}" ${overrides[@]+"${overrides[@]}"}
python "$(dirname "$0")/lambda_sweep.py" --store "$output/store" --output "$output" \
    --config "${config[@]}" ${sweep[@]+"${sweep[@]}"} ${overrides[@]+"${overrides[@]}"}
