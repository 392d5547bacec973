#!/usr/bin/env bash
# The whole study on one or several models: teacher caches, three students each, five conditions, tables.
#
#   scripts/xtreme.sh --output runs/xtreme --config qwen3-1.7b                    # the published setting
#   scripts/xtreme.sh --output runs/xtreme --config qwen3-1.7b llama-3.2-3b       # two models, one table
#   scripts/xtreme.sh --output runs/small --model PATH_OR_HUB_ID --train 200 --steps 60 --samples 20 \
#       data.mirror=DIR                                                           # another model, small
#
# Every stage goes on where it was stopped: shards that are written, students that are trained and cells
# that are evaluated are not done again. Trailing key=value pairs reach every command.
set -euo pipefail

source "$(dirname "$0")/common.sh"
train=5000 steps=1000 samples=500 numbers="--train --steps --samples --processes"
read_arguments "$@"
make_settings

study() { # NAME, then the arguments that choose the model
    local name=$1
    shift
    local work=$output/$name results=$output/results all=("$@" "${settings[@]}")
    stage "$name: teacher cache, few-shot and zero-shot"
    run_module logitbank build-teacher-cache --store "$work/store" --view fewshot --view zeroshot "${all[@]}"

    local condition view
    for condition in finetuned:none distilled:fewshot control:zeroshot; do
        view=${condition#*:} condition=${condition%:*}
        stage "$name: student $condition (view $view)"
        run_module logitbank train-student --store "$work/store" --view "$view" \
            --output "$work/$condition" --results "$results" --resume "${all[@]}"
    done

    for condition in base fewshot; do
        stage "$name: evaluate $condition"
        evaluate-model --condition "$condition" --results "$results" "${all[@]}"
    done
    for condition in finetuned distilled control; do
        stage "$name: evaluate $condition"
        evaluate-model --condition "$condition" --checkpoint "$work/$condition/final" \
            --results "$results" "${all[@]}"
    done
}

each_model study

stage "tables"
query-results --results "$output/results" tables
