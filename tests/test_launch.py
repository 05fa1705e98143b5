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
    assert "gcloud storage rsync --recursive --quiet gs://b/r runs" in calls


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
