"""`logitbank slurm` under a stand-in for `sbatch` that runs each job at once, if what it waits for succeeded."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from logitbank.__main__ import main
from logitbank.configs import load_config
from logitbank.scripts.slurm.plan import Rates, Work, describe
from logitbank.storage import TeacherStore
from logitbank.teacher_cache import build_command
from logitbank.teacher_cache.build import build_store

SBATCH = r"""#!/usr/bin/env bash
# Like a cluster: array tasks with their variables; a job whose dependency failed never starts.
array="" dependency="" name=""
echo "${PATH##*:}" >"$CLUSTER/commands"
while [[ $1 == --* ]]; do
    case $1 in
        --account=nobody) echo "sbatch: error: Invalid account" >&2; exit 1 ;;
        --array=*) array=${1#*=} ;;
        --dependency=afterok:*) dependency=${1#*afterok:} ;;
        --nodes=*) export SLURM_JOB_NODELIST="node[1-${1#*=}]" SLURM_JOB_NUM_NODES=${1#*=} ;;
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
[ -z "$FAIL" ] || [[ $line != *$FAIL* ]]
"""
SRUN = r"""#!/usr/bin/env bash
# Runs the command on one node for all.
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = r"""#!/usr/bin/env bash
# A line at a time, and slowly: a reader that takes only the first would end it with SIGPIPE.
[ "$*" = "show hostnames node[1-3]" ] && for node in node1 node2 node3; do echo $node; sleep 0.1; done
"""
COMMANDS = ("build-teacher-cache", "train-student", "evaluate-model", "query-results", "accelerate", "ray")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "bin").mkdir()
    for name, text in [
        ("sbatch", SBATCH),
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        *((command, COMMAND) for command in COMMANDS),
    ]:
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(tmp_path))
    monkeypatch.setenv("FAIL", "")
    return tmp_path


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Files of two models, a and b."""
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file in files:
        file.write_text(f"model: {{name: org/{file.stem}}}")
    return [str(file) for file in files]


def submit(cluster: Path, *arguments: str) -> None:
    main(["slurm", "--output", str(cluster / "run"), *arguments])


def calls(cluster: Path) -> list[str]:
    path = cluster / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_every_stage_runs_once_what_it_needs_is_done(cluster: Path) -> None:
    submit(cluster, "--config", "qwen3-1.7b", "--teacher-jobs", "3", "--steps", "100", "data.mirror=/m")
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
    evaluated = by_name["evaluate-model"]
    named = {call[call.index("--condition") + 1] for call in evaluated if "--condition" in call}
    assert named == {"base", "fewshot"}, "a student's own record says its condition"
    checkpoints = {call[call.index("--checkpoint") + 1] for call in evaluated if "--checkpoint" in call}
    assert checkpoints == {f"{run}/qwen3-1.7b/{name}/final" for name in ("finetuned", "distilled", "control")}
    assert len(evaluated) == 5
    assert all(f"{run}/results" in call for call in evaluated)
    assert [call[3] for call in by_name["query-results"]] == ["tables", "report"]
    stages = by_name["build-teacher-cache"] + by_name["train-student"] + by_name["evaluate-model"]
    assert all({"--config", "qwen3-1.7b", "training.max_steps=100", "data.mirror=/m"} <= set(call) for call in stages)
    assert made[-1][0] == "query-results"
    # Jobs find the commands of this very environment, be it active or not.
    assert (cluster / "commands").read_text().strip() == str(Path(sys.executable).parent)


def test_a_failed_stage_stops_what_depends_on_it_and_nothing_else(
    cluster: Path, two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "b/store --view fewshot")
    submit(cluster, "--config", *two)
    made = calls(cluster)
    assert sum(call.startswith("train-student") for call in made) == 3  # of model a alone
    assert not any("b/store --view none" in call for call in made)
    assert sum(call.startswith("evaluate-model") for call in made) == 5 + 2  # base and few-shot need no student
    assert not any(call.startswith("query-results") for call in made)
    # Submitted again, what failed runs, and then the report.
    monkeypatch.setenv("FAIL", "")
    submit(cluster, "--config", *two)
    assert calls(cluster)[-1].startswith("query-results")


def test_partition_account_time_and_gpus_reach_every_job(cluster: Path) -> None:
    options = ("--partition", "gpu", "--account", "me", "--time", "1:00:00", "--gpus", "4")
    submit(cluster, "--model", "org/name", *options)
    submitted = {line.split()[-1]: line for line in (cluster / "options").read_text().splitlines()}
    assert set(submitted) == {"teacher.sbatch", "students.sbatch", "evaluation.sbatch", "report.sbatch"}
    for line in submitted.values():
        assert {"--partition=gpu", "--account=me", "--time=1:00:00"} <= set(line.split())
    assert "--gres=gpu:4" in submitted["teacher.sbatch"]
    assert "--gres=gpu:4" in submitted["students.sbatch"]
    assert "--gres" not in submitted["report.sbatch"]
    launched = [call for call in calls(cluster) if call.startswith("accelerate")]
    assert sum("-m logitbank build-teacher-cache" in call for call in launched) == 4
    assert sum("-m logitbank train-student" in call for call in launched) == 3
    assert all("--num_processes 4" in call and "model.name=org/name" in call for call in launched)


def test_a_teacher_on_ray_is_one_job_over_its_nodes(cluster: Path) -> None:
    submit(cluster, "--model", "org/name", "--ray-nodes", "3", "--gpus", "8", "data.mirror=/m")
    submitted = {line.split()[-1]: line.split() for line in (cluster / "options").read_text().splitlines()}
    assert {"--nodes=3", "--gres=gpu:8"} <= set(submitted["ray.sbatch"])
    assert not any(option.startswith("--array") for option in submitted["ray.sbatch"])
    assert "teacher.sbatch" not in submitted
    ray = next(shlex.split(call) for call in calls(cluster) if call.startswith("ray "))
    start, command = ray[: ray.index("--")], ray[ray.index("--") + 1 :]
    address = start[start.index("--address") + 1]
    assert re.fullmatch(r"node1:2\d{4}", address)
    assert start[:2] == ["ray", "symmetric-run"]
    assert start[start.index("--min-nodes") + 1] == "3"
    assert start[start.index("--num-gpus") + 1] == "8"
    parsed = build_command.make_parser().parse_intermixed_args(command[1:-1])  # the last word is the stand-in's
    assert command[0] == "build-teacher-cache"
    assert (parsed.ray, parsed.ray_address, parsed.worker) == (True, address, None)
    assert parsed.store == str(cluster / "run" / "name" / "store")
    assert {"model.name=org/name", "data.mirror=/m"} <= set(parsed.overrides)


def test_a_job_that_is_refused_says_what_was_submitted(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        submit(cluster, "--model", "org/name", "--account", "nobody")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: sbatch rejected teacher.sbatch: sbatch: error: Invalid account\n"


def test_a_dry_run_submits_nothing_and_says_what_it_would_cost(
    cluster: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher's tokens are those that a build of the same configuration reads."""
    files = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.yaml"
        path.write_text("{}")
        files.append(str(path))
    size = ["--train", "6", "--steps", "600", "--samples", "100"]
    rates = ("--teacher-rate", "20", "--student-rate", "0.5", "--evaluation-rate", "14")
    submit(cluster, "--config", *files, *size, "--dry-run", *rates, *settings)
    printed = capsys.readouterr().out
    assert not (cluster / "options").exists()
    assert not (cluster / "run").exists()
    assert calls(cluster) == []
    jobs = [line for line in printed.splitlines() if line.startswith("job")]
    assert len(jobs) == 2 * 4 + 1
    assert "--dependency=afterok:job3:job4:job7:job8" in jobs[-1]
    tally = build_store(load_config([], [*settings, "data.max_train_per_task=6"]), str(tmp_path / "store"))
    examples = TeacherStore.open(str(tmp_path / "store")).examples
    assert len(examples) == 12
    found = re.search(
        r"^2 models: ([\d,]+) teacher tokens, stores of about ([\d.]+) MB, 3,600 student steps", printed, re.M
    )
    assert found is not None
    assert int(found[1].replace(",", "")) == 2 * tally.tokens
    # By hand: 3 students of 600 steps and 2 models, at 0.5 a second; 5 conditions × 4 cells × 100 answers × 2 at 14.
    assert f"teacher:    {2 * tally.tokens / 20 / 3600:.1f} GPU-hours at 20 tokens/s" in printed
    assert "students:   2.0 GPU-hours at 0.5 steps/s" in printed
    assert "at most 4,000 answers" in printed
    assert "evaluation: at most 0.1 GPU-hours at 14 answers/s" in printed


def test_work_and_gpu_hours_by_hand() -> None:
    work = Work(models=1, teacher_tokens=2_880_000, store_bytes=13.5e6, student_steps=3600, evaluated=14_000)
    lines = describe(work, Rates(teacher=20_000, evaluation=14))
    assert lines == [
        "1 model: 2,880,000 teacher tokens, stores of about 13.5 MB, 3,600 student steps, at most 14,000 answers",
        "teacher:    0.0 GPU-hours at 20000 tokens/s",
        "evaluation: at most 0.3 GPU-hours at 14 answers/s",
    ]
