"""launch/tpu_vm.sh against a stand-in for gcloud that notes how it is called."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "tpu_vm.sh"

GCLOUD = """#!/bin/bash
echo "$@" >> "$NOTES"
case "$*" in
    *describe*state*) [ "$STATE" ] && echo "$STATE" || exit 1 ;;
    *describe*networkEndpoints*) echo "$WORKERS" ;;
esac
"""

WORKER = """#!/bin/bash
echo "$@" >> "$NOTES"
case "$*" in
    *describe*state*) echo READY ;;
    *describe*networkEndpoints*) echo "$WORKERS" ;;
    *tar*) ;;
    *"tpu-vm ssh"*) cd "$WORKER" && command=${@: -1} &&
        exec bash -c "${command#--command=}" ;;
    "storage $FAILS "*) echo "ERROR: 403" >&2; exit 1 ;;
    "storage ls "*) ls "$3" 2>/dev/null || {
        echo "ERROR: One or more URLs matched no objects." >&2; exit 1; } ;;
    "storage rsync "*--delete*) mkdir -p "${@: -1}" && rm -rf "${@: -1}" &&
        cp -r "${@: -2:1}" "${@: -1}" ;;
    "storage rsync "*) cp -r "${@: -2:1}/." "${@: -1}" ;;
esac
"""
TRAINER = """#!/bin/bash
workdir=${@: -1}
workdir=${workdir#--workdir=}
mkdir -p "$workdir" && rm -f "$workdir/gone"
touch "$workdir/config.json"
echo trained >> "$workdir/metrics.jsonl"
"""
"""Stand-ins whose worker and bucket are folders; the trainer adds a line."""


@pytest.fixture
def launch(tmp_path):
    """Runs the script; gives the process and the calls of gcloud."""
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    git = tmp_path / "git"
    git.write_text("#!/bin/bash\n")
    git.chmod(0o755)

    def run(*arguments, **variables):
        notes = tmp_path / "notes"
        notes.write_text("")
        given = {
            "TPU_NAME": "ner",
            "ZONE": "z",
            "STATE": "READY",
            "WORKERS": "10.0.0.1",
        }
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "NOTES": str(notes),
            **given,
            **variables,
        }
        done = subprocess.run(
            ["bash", SCRIPT, *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )
        return done, notes.read_text()

    return run


def test_a_ready_tpu_is_used_and_trains_on_all_workers(launch):
    done, calls = launch("--config=configs/ner.py", "--config.task.labels=A B")
    assert done.returncode == 0, done.stderr
    assert "tpu-vm create" not in calls
    assert "--worker=all" in calls
    assert r"-m jaxlm.main --config=configs/ner.py --config.task.labels=A\ B" in calls
    assert "storage" not in calls


def test_a_missing_tpu_is_created(launch):
    done, calls = launch("--config=configs/ner.py", STATE="", SPOT="true")
    assert done.returncode == 0, done.stderr
    assert "tpu-vm create --zone=z ner --accelerator-type=v5litepod-8" in calls
    assert "--spot" in calls


def test_a_preempted_tpu_is_made_anew_and_takes_its_runs_from_the_bucket(launch):
    done, calls = launch(
        "--config=configs/ner.py", STATE="PREEMPTED", BUCKET="gs://b/r"
    )
    assert done.returncode == 0, done.stderr
    assert calls.index("tpu-vm delete") < calls.index("tpu-vm create")
    assert "gcloud storage rsync --recursive --quiet gs://b/r/ner runs/ner" in calls


@pytest.fixture
def tpu(launch, tmp_path):
    """Runs the script where the worker is a folder, and the bucket another."""
    worker, bucket = tmp_path / "worker", tmp_path / "bucket"
    python = worker / "jaxlm" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    bucket.mkdir()
    python.write_text(TRAINER)
    python.chmod(0o755)

    def run(*arguments, **variables):
        (tmp_path / "gcloud").write_text(WORKER)
        given = {"WORKER": str(worker), "BUCKET": str(bucket), **variables}
        return launch(*arguments, **given)[0], worker / "jaxlm" / "runs", bucket

    return run


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_new_run_is_pushed_to_its_own_folder_and_the_others_are_left(tpu, tmp_path):
    write(tmp_path / "bucket/other/config.json")
    done, runs, bucket = tpu("--config=configs/ner.py:tiny")
    assert done.returncode == 0, done.stderr
    assert (runs / "ner-tiny/metrics.jsonl").read_text() == "trained\n"
    assert (bucket / "ner-tiny/metrics.jsonl").read_text() == "trained\n"
    assert (bucket / "other/config.json").exists() and not (runs / "other").exists()


def test_a_new_vm_goes_on_from_the_bucket_and_deletes_only_in_its_run(tpu, tmp_path):
    for name in ("metrics.jsonl", "config.json", "gone"):
        write(tmp_path / f"bucket/ner/{name}", "before\n")
    write(tmp_path / "bucket/other/config.json")
    done, runs, bucket = tpu("--config", "configs/ner.py")
    assert done.returncode == 0, done.stderr
    assert (bucket / "ner/metrics.jsonl").read_text() == "before\ntrained\n"
    assert not (bucket / "ner/gone").exists()  # the trainer deleted it
    assert (bucket / "other/config.json").exists()
    assert [each.name for each in runs.iterdir()] == ["ner"]


@pytest.mark.parametrize("fails", ["ls", "rsync"])
def test_a_bucket_that_cannot_be_read_stops_before_training(tpu, tmp_path, fails):
    write(tmp_path / "bucket/ner/config.json")
    done, runs, bucket = tpu("--config=configs/ner.py", FAILS=fails)
    assert done.returncode != 0 and "403" in done.stderr
    assert not (runs / "ner").exists()
    assert (bucket / "ner/config.json").exists()


def test_a_run_that_could_not_be_pushed_fails_and_its_tpu_is_kept(tpu, tmp_path):
    done, runs, _ = tpu("--config=configs/ner.py", FAILS="rsync", DELETE="true")
    assert done.returncode != 0 and (runs / "ner/metrics.jsonl").exists()
    assert "tpu-vm delete" not in (tmp_path / "notes").read_text()


@pytest.mark.parametrize("workdir", ["runs", "runs/", "/data/ner", "runs/../ner"])
def test_a_workdir_that_the_bucket_would_not_see_is_refused(launch, workdir):
    done, calls = launch("--config=c.py", f"--workdir={workdir}", BUCKET="gs://b")
    assert done.returncode == 2 and "not below runs/" in done.stderr
    assert calls == ""


@pytest.mark.parametrize(
    ("arguments", "workdir"),
    [
        (["--config=configs/ner.py"], "runs/ner"),
        (["--config", "configs/ner.py:tiny"], "runs/ner-tiny"),
        (["--config=configs/ner.py", "--workdir", "runs/mine"], "runs/mine"),
        (["--workdir=runs/a/b/", "--config=configs/ner.py"], "runs/a/b"),
    ],
)
def test_the_workdir_is_the_one_that_the_trainer_would_take(launch, arguments, workdir):
    assert f" --workdir={workdir}; code=" in launch(*arguments)[1]


def test_a_slice_of_several_hosts_is_refused(launch):
    done, calls = launch("--config=configs/ner.py", WORKERS="10.0.0.1;10.0.0.2")
    assert done.returncode == 2
    assert "several hosts" in done.stderr
    assert "jaxlm.main" not in calls


@pytest.mark.parametrize("missing", ["TPU_NAME", "ZONE"])
def test_a_variable_that_is_not_set_is_named(launch, missing):
    done, calls = launch("--config=configs/ner.py", **{missing: ""})
    assert done.returncode != 0
    assert missing in done.stderr
    assert calls == ""
