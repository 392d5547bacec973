"""The Slurm scripts under a stand-in for `sbatch` that runs each job at once, if what it waits for succeeded."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "scripts/slurm"

SBATCH = r"""#!/usr/bin/env bash
# Like a cluster: array tasks with their variables; a job whose dependency failed never starts.
array="" dependency="" name=""
while [[ $1 == --* ]]; do
    case $1 in
        --array=*) array=${1#*=} ;;
        --dependency=afterok:*) dependency=${1#*afterok:} ;;
        --parsable|--time=*|--output=*|--partition=*|--account=*|--gres=*|--kill-on-invalid-dep=yes) ;;
        *) echo "sbatch: unrecognized option $1" >&2; exit 1 ;;
    esac
    printf '%s ' "$1" >>"$CLUSTER/options"
    shift
done
echo "$(basename "$1")" >>"$CLUSTER/options"
id=$((1000 + $(ls "$CLUSTER/jobs" | wc -l)))
state=ok
IFS=: read -ra needed <<<"$dependency"
for other in "${needed[@]}"; do
    [ -f "$CLUSTER/jobs/$other" ] || { echo "sbatch: no job $other" >&2; exit 1; }
    [ "$(cat "$CLUSTER/jobs/$other")" = ok ] || state=never
done
if [ $state = ok ]; then
    export SLURM_JOB_ID=$id
    cp "$1" "$CLUSTER/spooled" && shift # Slurm runs a copy, from elsewhere
    if [ -n "$array" ]; then
        export SLURM_ARRAY_TASK_MIN=${array%-*} SLURM_ARRAY_TASK_COUNT=$((${array#*-} - ${array%-*} + 1))
        for task in $(seq "${array%-*}" "${array#*-}"); do
            SLURM_ARRAY_TASK_ID=$task bash "$CLUSTER/spooled" "$@" >>"$CLUSTER/out" 2>&1 || state=failed
        done
    else
        bash "$CLUSTER/spooled" "$@" >>"$CLUSTER/out" 2>&1 || state=failed
    fi
fi
echo $state >"$CLUSTER/jobs/$id"
echo "$id;cluster"
"""
COMMAND = r"""#!/usr/bin/env bash
# Writes down how it was called; fails where the test says so.
line="$(basename "$0") $* task=${SLURM_ARRAY_TASK_ID:-none}/${SLURM_ARRAY_TASK_COUNT:-none}"
echo "$line" >>"$CLUSTER/calls"
if [[ " $* " == *" --dry-run "* ]]; then
    echo "1,998 examples, 24,048 answer tokens, 2 views: 1,440,000 teacher tokens, about 13.5 MB at K=256 (compact)"
fi
[ -z "$FAIL" ] || [[ $line != *$FAIL* ]]
"""
COMMANDS = ("build-teacher-cache", "train-student", "evaluate-model", "query-results", "accelerate")


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "bin").mkdir()
    for name, text in [("sbatch", SBATCH), *((command, COMMAND) for command in COMMANDS)]:
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def submit(cluster: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SLURM / "submit.sh", "--output", str(cluster / "run"), *arguments],
        env={
            "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}",
            "CLUSTER": str(cluster),
            "FAIL": "",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def calls(cluster: Path) -> list[str]:
    path = cluster / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_every_stage_runs_once_what_it_needs_is_done(cluster: Path) -> None:
    done = submit(cluster, "--config", "qwen3-1.7b", "--teacher-jobs", "3", "--steps", "100", "data.mirror=/m")
    assert done.returncode == 0, done.stderr
    made = [shlex.split(line) for line in calls(cluster)]
    by_name = {name: [call for call in made if call[0] == name] for name in COMMANDS}
    run = cluster / "run"
    assert [call[-1] for call in by_name["build-teacher-cache"]] == ["task=0/3", "task=1/3", "task=2/3"]
    assert all(call[1:3] == ["--store", f"{run}/qwen3-1.7b/store"] for call in by_name["build-teacher-cache"])
    students = {(call[call.index("--view") + 1], call[call.index("--output") + 1]) for call in by_name["train-student"]}
    assert students == {
        ("none", f"{run}/qwen3-1.7b/finetuned"),
        ("fewshot", f"{run}/qwen3-1.7b/distilled"),
        ("zeroshot", f"{run}/qwen3-1.7b/control"),
    }
    conditions = {call[call.index("--condition") + 1]: call for call in by_name["evaluate-model"]}
    assert set(conditions) == {"base", "fewshot", "finetuned", "distilled", "control"}
    for name, call in conditions.items():
        trained = name not in ("base", "fewshot")
        assert ("--checkpoint" in call) == trained
        assert not trained or f"{run}/qwen3-1.7b/{name}/final" in call
        assert f"{run}/results" in call
    assert [call[3] for call in by_name["query-results"]] == ["tables", "report"]
    stages = by_name["build-teacher-cache"] + by_name["train-student"] + by_name["evaluate-model"]
    assert all({"--config", "qwen3-1.7b", "training.max_steps=100", "data.mirror=/m"} <= set(call) for call in stages)
    assert made[-1][0] == "query-results"


def test_a_failed_stage_stops_what_depends_on_it_and_nothing_else(cluster: Path) -> None:
    assert submit(cluster, "--config", "a", "b", FAIL="b/store --view fewshot").returncode == 0
    made = calls(cluster)
    assert sum(call.startswith("train-student") for call in made) == 3  # of model a alone
    assert not any("b/store --view none" in call for call in made)
    assert sum(call.startswith("evaluate-model") for call in made) == 5 + 2  # base and few-shot need no student
    assert not any(call.startswith("query-results") for call in made)
    # Submitted again, what failed runs, and then the report.
    assert submit(cluster, "--config", "a", "b").returncode == 0
    assert calls(cluster)[-1].startswith("query-results")


def test_partition_account_time_and_gpus_reach_every_job(cluster: Path) -> None:
    environment = {"PARTITION": "gpu", "ACCOUNT": "me", "TIME": "1:00:00", "GPUS": "4"}
    assert submit(cluster, "--model", "org/name", **environment).returncode == 0
    options = {line.split()[-1]: line for line in (cluster / "options").read_text().splitlines()}
    assert set(options) == {"teacher.sbatch", "students.sbatch", "evaluation.sbatch", "report.sbatch"}
    for line in options.values():
        assert {"--partition=gpu", "--account=me", "--time=1:00:00"} <= set(line.split())
    assert "--gres=gpu:4" in options["teacher.sbatch"]
    assert "--gres=gpu:4" in options["students.sbatch"]
    assert "--gres" not in options["report.sbatch"]
    launched = [call for call in calls(cluster) if call.startswith("accelerate")]
    assert sum("-m teacher_cache" in call for call in launched) == 4
    assert sum("-m student_train.train_command" in call for call in launched) == 3
    assert all("--num_processes 4" in call and "model.name=org/name" in call for call in launched)


def test_a_dry_run_submits_nothing_and_says_what_it_would_cost(cluster: Path) -> None:
    rates = ("--teacher-rate", "20000", "--student-rate", "0.5", "--evaluation-rate", "14")
    done = submit(cluster, "--config", "a", "b", "--steps", "600", "--samples", "100", "--dry-run", *rates)
    assert done.returncode == 0, done.stderr
    assert not (cluster / "options").exists()
    assert not (cluster / "run").exists()
    assert all("--dry-run" in call for call in calls(cluster))
    assert sum(line.startswith("job") for line in done.stdout.splitlines()) == 2 * 4 + 1
    assert "2880000 teacher tokens, stores of about 27 MB, 3600 student steps" in done.stdout
    # By hand: 2,880,000 / 20,000 s; 3,600 / 0.5 s; 2 models × 5 conditions × 28 cells × 100 / 14 s.
    assert "teacher:    0.0 GPU-hours" in done.stdout
    assert "students:   2.0 GPU-hours" in done.stdout
    assert "evaluation: at most 0.6 GPU-hours" in done.stdout
