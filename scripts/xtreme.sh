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

usage() {
    sed -n '2,12p' "$0" | cut -c3-
    exit 2
}

output="" train=5000 steps=1000 samples=500 launcher=()
configs=() models=() overrides=()
while [ $# -gt 0 ]; do
    case "$1" in
        --output) output=$2; shift 2 ;;
        --train) train=$2; shift 2 ;;
        --steps) steps=$2; shift 2 ;;
        --samples) samples=$2; shift 2 ;;
        --processes) launcher=(accelerate launch --num_processes "$2"); shift 2 ;;
        --config) shift; while [ $# -gt 0 ] && [[ $1 != --* && $1 != *=* ]]; do configs+=("$1"); shift; done ;;
        --model) shift; while [ $# -gt 0 ] && [[ $1 != --* && $1 != *=* ]]; do models+=("$1"); shift; done ;;
        *=*) overrides+=("$1"); shift ;;
        *) usage ;;
    esac
done
[ -n "$output" ] || usage
[ ${#configs[@]} -gt 0 ] || [ ${#models[@]} -gt 0 ] || usage

run_command() { # with accelerate launch where --processes was given
    local module=$1
    shift
    if [ ${#launcher[@]} -gt 0 ]; then "${launcher[@]}" -m "$module" "$@"; else python -m "$module" "$@"; fi
}

stage() { printf '\n== %s\n' "$*"; }

study() { # NAME, then the arguments that choose the model
    local name=$1
    shift
    local work=$output/$name results=$output/results
    # Warm-up and checkpoints keep their share of the run (50 and 200 of 1,000 steps in the published setting).
    local settings=("$@" "data.max_train_per_task=$train" "training.max_steps=$steps"
        "training.warmup_steps=$((steps / 20))" "training.save_steps=$((steps > 5 ? steps / 5 : 1))"
        "evaluation.max_samples=$samples" ${overrides[@]+"${overrides[@]}"})

    stage "$name: teacher cache, few-shot and zero-shot"
    run_command teacher_cache --store "$work/store" --view fewshot --view zeroshot "${settings[@]}"

    local condition view
    for condition in finetuned:none distilled:fewshot control:zeroshot; do
        view=${condition#*:} condition=${condition%:*}
        stage "$name: student $condition (view $view)"
        run_command student_train.train_command --store "$work/store" --view "$view" \
            --output "$work/$condition" --results "$results" --resume "${settings[@]}"
    done

    for condition in base fewshot; do
        stage "$name: evaluate $condition"
        evaluate-model --condition "$condition" --results "$results" "${settings[@]}"
    done
    for condition in finetuned distilled control; do
        stage "$name: evaluate $condition"
        evaluate-model --condition "$condition" --checkpoint "$work/$condition/final" \
            --results "$results" "${settings[@]}"
    done
}

for config in ${configs[@]+"${configs[@]}"}; do study "$(basename "$config" .yaml)" --config "$config"; done
for model in ${models[@]+"${models[@]}"}; do study "$(basename "$model")" "model.name=$model"; done

stage "tables"
query-results --results "$output/results" tables
