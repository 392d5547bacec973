#!/usr/bin/env bash
# The whole path on a tiny model, with no download: a world, a teacher cache, three students, five
# conditions, tables. A few minutes on two CPU cores. Called by `make demo`; by hand:
#
#   scripts/demo.sh [DIRECTORY]      # default runs/demo
#
# What is finished is not done again; delete the directory to start anew.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${1:-runs/demo}
store=$work/store
results=$work/results
settings=(--config demo "model.name=$work/model" "data.mirror=$work/hub")

stage() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

stage "1/5  A world whose labelling scheme only demonstrations reveal, and a model that reads it in context"
python scripts/demo_world.py --output "$work"

stage "2/5  Run the teacher once: with demonstrations, and without"
build-teacher-cache "${settings[@]}" --store "$store" --view fewshot --view zeroshot

stage "3/5  Three students from the same 24 examples a task, a third of them mislabelled"
train-student "${settings[@]}" --store "$store" --view none --output "$work/finetuned" --results "$results" --resume
train-student "${settings[@]}" --store "$store" --view zeroshot --output "$work/control" --results "$results" --resume
train-student "${settings[@]}" --store "$store" --view fewshot --output "$work/distilled" --results "$results" --resume

stage "4/5  Evaluate: the model as it was, with demonstrations, and the students"
evaluate-model "${settings[@]}" --condition base --results "$results"
evaluate-model "${settings[@]}" --condition fewshot --results "$results"
for condition in finetuned control distilled; do
    evaluate-model "${settings[@]}" --condition "$condition" --checkpoint "$work/$condition/final" --results "$results"
done

stage "5/5  Tables"
query-results --results "$results" --store "$store" report --output "$work/report.md"
query-results --results "$results" --store "$store" tables
inspect-cache --store "$store"

stage "Done"
cat <<END
store    $store      (inspect-cache --store $store --verify)
results  $results    (query-results --results $results --store $store sql "SELECT * FROM cells")
report   $work/report.md

Next:
  inspect-cache --store $store --example nli/en/train/0       one example, token by token, both teachers side by side
  scripts/xtreme.sh --output runs/xtreme --config qwen3-1.7b  the same path on a real model
  docs/adding-a-task.md                                       your own task
END
