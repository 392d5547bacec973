#!/usr/bin/env bash
# The study on a Slurm cluster: teacher, students, evaluation, report, each waiting for what it needs.
#
#   PARTITION=gpu ACCOUNT=me GPUS=1 scripts/slurm/submit.sh --output runs/xtreme --config qwen3-1.7b
#   scripts/slurm/submit.sh --output runs/xtreme --config qwen3-1.7b llama-3.2-3b --teacher-jobs 16
#   scripts/slurm/submit.sh --output runs/xtreme --config qwen3-1.7b --dry-run \
#       --teacher-rate 20000 --student-rate 1.5 --evaluation-rate 30
#
# --dry-run submits nothing: it prints the jobs and, from measured rates of one GPU (teacher tokens per second,
# student steps per second, evaluated examples per second), what they cost. Each stage may be submitted again:
# what is done is not done twice. PARTITION, ACCOUNT, GPUS (per job), TIME (per job) come from the environment;
# SBATCH_* variables reach sbatch as ever. Trailing key=value pairs reach every command.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source "$here/../common.sh"
train=5000 steps=1000 samples=500 teacher_jobs=4 dry_run="" teacher_rate="" student_rate="" evaluation_rate=""
numbers="--train --steps --samples --teacher-jobs --teacher-rate --student-rate --evaluation-rate" flags=--dry-run
read_arguments "$@"
make_settings
export GPUS=${GPUS:-1}

options=(--parsable --time="${TIME:-24:00:00}" --output="$output/logs/%x-%A_%a.out")
[ -z "${PARTITION:-}" ] || options+=(--partition="$PARTITION")
[ -z "${ACCOUNT:-}" ] || options+=(--account="$ACCOUNT")

job_id="" planned=0
submit() { # SCRIPT ARRAY DEPENDENCY GPUS ARGUMENTS…; leaves the job's id in job_id
    local script=$1 array=$2 dependency=$3 gpus=$4
    shift 4
    local command=(sbatch "${options[@]}")
    [ -z "$array" ] || command+=(--array="$array")
    [ -z "$dependency" ] || command+=(--dependency="afterok:$dependency" --kill-on-invalid-dep=yes)
    [ "$gpus" -eq 0 ] || command+=(--gres="gpu:$gpus")
    command+=("$here/$script" "$@")
    if [ -n "$dry_run" ]; then
        planned=$((planned + 1)) && job_id=job$planned
        printf '%s: %s\n' "$job_id" "${command[*]}"
    else
        job_id=$("${command[@]}")
        job_id=${job_id%%;*} # a federation appends its cluster
        printf '%s: %s\n' "$job_id" "$(basename "$script") ${array:+tasks $array}"
    fi
}

teacher_tokens=0 megabytes=0 examples=0
estimate() { # adds a model's teacher tokens, store size and evaluated examples to the totals
    local plan numbers
    plan=$(build-teacher-cache --store "$output/none" --dry-run "$@")
    numbers=$(sed -nE 's/.*views: ([0-9,]+) teacher tokens, about ([0-9.,]+) MB.*/\1 \2/p' <<<"$plan" | tr -d ,)
    [ -n "$numbers" ] || { printf 'error: build-teacher-cache --dry-run printed no plan\n' >&2; exit 1; }
    teacher_tokens=$((teacher_tokens + ${numbers% *}))
    megabytes=$(awk "BEGIN { print $megabytes + ${numbers#* } }")
}

evaluations=()
study() { # NAME, then the arguments that choose the model
    local name=$1
    shift
    local work=$output/$name results=$output/results all=("$@" "${settings[@]}")
    submit teacher.sbatch "0-$((teacher_jobs - 1))" "" "$GPUS" \
        --store "$work/store" --view fewshot --view zeroshot "${all[@]}"
    submit students.sbatch 0-2 "$job_id" "$GPUS" "$work" "$results" "${all[@]}"
    submit evaluation.sbatch 2-4 "$job_id" 1 "$work" "$results" "${all[@]}"
    evaluations+=("$job_id")
    submit evaluation.sbatch 0-1 "" 1 "$work" "$results" "${all[@]}" # needs no student
    evaluations+=("$job_id")
    [ -z "$dry_run" ] || estimate "${all[@]}"
}

hours() { awk "BEGIN { printf \"%.1f\", $1 / $2 / 3600 }"; }

[ -n "$dry_run" ] || mkdir -p "$output/logs"
each_model study
submit report.sbatch "" "$(IFS=:; printf '%s' "${evaluations[*]}")" 0 "$output/results" "$output/report.md"

if [ -n "$dry_run" ]; then
    count=$((${#configs[@]} + ${#models[@]}))
    printf '\n%d models: %d teacher tokens, stores of about %s MB, %d student steps, at most %d examples a cell\n' \
        "$count" "$teacher_tokens" "$megabytes" "$((3 * steps * count))" "$samples"
    [ -z "$teacher_rate" ] || printf 'teacher:    %s GPU-hours at %s tokens/s\n' \
        "$(hours "$teacher_tokens" "$teacher_rate")" "$teacher_rate"
    [ -z "$student_rate" ] || printf 'students:   %s GPU-hours at %s steps/s\n' \
        "$(hours "$((3 * steps * count))" "$student_rate")" "$student_rate"
    # Five conditions over at most 28 cells of task and language.
    [ -z "$evaluation_rate" ] || printf 'evaluation: at most %s GPU-hours at %s examples/s\n' \
        "$(hours "$((5 * 28 * samples * count))" "$evaluation_rate")" "$evaluation_rate"
fi
