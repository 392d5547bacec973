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

usage() {
    sed -n '2,9p' "$0" | cut -c3-
    exit 2
}

output="" config="" model="" train=7473 steps=1000 samples=1319 launcher=() overrides=()
while [ $# -gt 0 ]; do
    case "$1" in
        --output) output=$2; shift 2 ;;
        --config) config=$2; shift 2 ;;
        --model) model=$2; shift 2 ;;
        --train) train=$2; shift 2 ;;
        --steps) steps=$2; shift 2 ;;
        --samples) samples=$2; shift 2 ;;
        --processes) launcher=(accelerate launch --num_processes "$2"); shift 2 ;;
        *=*) overrides+=("$1"); shift ;;
        *) usage ;;
    esac
done
[ -n "$output" ] || usage
[ -n "$config$model" ] || usage

train_student() { # with accelerate launch where --processes was given
    if [ ${#launcher[@]} -gt 0 ]; then
        "${launcher[@]}" -m student_train.train_command "$@"
    else
        python -m student_train.train_command "$@"
    fi
}

stage() { printf '\n== %s\n' "$*"; }

every=$((steps > 5 ? steps / 5 : 1)) # five checkpoints: 200 … 1000 in the published setting
settings=(--config ${config:+"$config"} gsm8k ${model:+"model.name=$model"}
    "data.max_train_per_task=$train" "training.max_steps=$steps" "training.warmup_steps=$((steps / 20))"
    "training.save_steps=$every" "evaluation.max_samples=$samples"
    ${overrides[@]+"${overrides[@]}"})
checkpoints=()
for ((step = every; step <= steps; step += every)); do checkpoints+=("$step"); done

stage "teacher cache: few-shot, zero-shot, shuffled answers"
build-teacher-cache --store "$output/store" --view fewshot --view zeroshot --view shuffled_answers "${settings[@]}"

for condition in base fewshot; do
    stage "evaluate $condition"
    evaluate-model --condition "$condition" --results "$output/results" "${settings[@]}"
done
for condition in finetuned:none distilled:fewshot control:zeroshot shuffled_answers:shuffled_answers; do
    view=${condition#*:} condition=${condition%:*}
    stage "student $condition (view $view)"
    train_student --store "$output/store" --view "$view" --output "$output/$condition" \
        --results "$output/results" --resume "${settings[@]}"
    stage "evaluate $condition at steps ${checkpoints[*]}"
    evaluate-model --condition "$condition" --checkpoint "$output/$condition" --steps "${checkpoints[@]}" \
        --results "$output/results" "${settings[@]}"
done

stage "report"
query-results --results "$output/results" report --output "$output/report.md"
