#!/usr/bin/env bash
# GSM8K: the model without and with eight demonstrations, the baseline and the distilled student at every
# checkpoint, and the two ablations of the teacher (no demonstrations, demonstrations with shuffled answers).
#
#   scripts/gsm8k.sh --output runs/gsm8k --config qwen3-1.7b               # the published setting
#   scripts/gsm8k.sh --output runs/small --model PATH_OR_HUB_ID --train 200 --steps 60 --samples 20 \
#       data.mirror=DIR                                                    # another model, small
#
# Every stage goes on where it was stopped. Trailing key=value pairs reach every command.
set -euo pipefail

source "$(dirname "$0")/common.sh"
train=7473 steps=1000 samples=1319 numbers="--train --steps --samples --processes"
read_arguments "$@"
[ ${#models[@]} -le 1 ] || fail "--model: expected one, got ${models[*]}"
make_settings
settings=(--config ${configs[@]+"${configs[@]}"} gsm8k ${models[@]+"model.name=${models[0]}"} "${settings[@]}")
checkpoints=()
for ((step = every; step <= steps; step += every)); do checkpoints+=("$step"); done # five: 200 … 1000

stage "teacher cache: few-shot, zero-shot, shuffled answers"
run_module logitbank build-teacher-cache --store "$output/store" --view fewshot --view zeroshot --view shuffled_answers "${settings[@]}"

for condition in base fewshot; do
    stage "evaluate $condition"
    evaluate-model --condition "$condition" --results "$output/results" "${settings[@]}"
done
for condition in finetuned:none distilled:fewshot control:zeroshot shuffled_answers:shuffled_answers; do
    view=${condition#*:} condition=${condition%:*}
    stage "student $condition (view $view)"
    run_module logitbank train-student --store "$output/store" --view "$view" --output "$output/$condition" \
        --results "$output/results" --resume "${settings[@]}"
    stage "evaluate $condition at steps ${checkpoints[*]}"
    evaluate-model --condition "$condition" --checkpoint "$output/$condition" --steps "${checkpoints[@]}" \
        --results "$output/results" "${settings[@]}"
done

stage "report"
query-results --results "$output/results" report --output "$output/report.md"
