"""launch/worker.sh, the real one, with a stand-in for the trainer."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launching import ROOT, stand_in
from tests.slices import slice_in, until


@pytest.fixture
def cloud(tmp_path):
    """A folder with the stand-ins, in which launchers run."""
    with slice_in(tmp_path) as folder:
        yield folder


@pytest.fixture
def worker(cloud):
    """Runs a verb of worker.sh in a home, with the stand-in for the trainer."""
    home = cloud / "worker-0"
    (home / "jaxlm/launch").mkdir(parents=True)
    script = home / "jaxlm/launch/worker.sh"
    script.write_text((ROOT / "launch/worker.sh").read_text())
    bin = home / ".jaxlm/venv/bin"
    bin.mkdir(parents=True)
    for each in (cloud / "venv").iterdir():
        stand_in(bin, each.name, each.read_text())

    def run(*words, plan=()):
        if plan:
            (cloud / "plan").write_text("".join(f"{each}\n" for each in plan))
        return subprocess.run(
            ["bash", script, *words],
            env={
                **os.environ,
                "PATH": f"{cloud}:{os.environ['PATH']}",
                "HOME": str(home),
                "NOTES": str(cloud / "notes"),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_a_trainer_outlives_its_start_and_is_stopped_by_a_signal_that_it_sees(worker):
    assert worker("state").stdout == "none\n"
    assert worker("start", "--x", plan=["waits"]).returncode == 0
    assert worker("state").stdout == "running\n"
    assert "already running" in worker("start", "--x").stdout
    until(lambda: "event" in worker("status").stdout)
    assert worker("stop", "20").stdout.endswith(": stopped 143\n")
    assert "saved" in worker("status").stdout


def test_logs_end_with_the_trainer_and_give_its_exit_code(worker):
    worker("start", plan=["7"])
    done = worker("logs")
    assert done.returncode == 7
    assert "event 7" in done.stdout and done.stdout.endswith(": ended 7\n")


def test_a_trainer_that_vanished_is_lost_and_can_be_started_again(worker, cloud):
    worker("start", plan=["waits", "0"])
    until(lambda: "event" in worker("status").stdout)
    kept = cloud / "worker-0/.jaxlm"
    pid = int((kept / "pid").read_text())
    parent = int(Path(f"/proc/{pid}/stat").read_text().split(") ")[1].split()[1])
    for each in (parent, pid):  # as when the machine is restarted
        os.kill(each, signal.SIGKILL)
    until(lambda: worker("state").stdout == "lost\n")
    assert worker("start").returncode == 0
    assert worker("logs").returncode == 0


def test_a_python_that_the_image_has_not_is_fetched_by_uv(worker, cloud):
    python = '#!/bin/bash\necho "$*" >>"$NOTES"\n'
    stand_in(cloud, "python3", python)
    kept = cloud / "worker-0/.jaxlm"
    (kept / "venv").rename(kept / "before")
    done = worker("install", "python3.19")
    assert done.returncode != 0  # the stand-in for uv makes no environment
    assert (cloud / "notes").read_text().splitlines() == [
        "-m pip install --user --quiet uv",
        f"-m uv venv --quiet --seed --python 3.19 {kept}/venv",
    ]


@pytest.mark.parametrize("words", [(), ("destroy",)])
def test_a_verb_that_is_not_known_is_refused(worker, words):
    done = worker(*words)
    assert done.returncode == 2 and "allowed are install, start" in done.stderr


def test_runs_of_a_worker_are_not_hidden_by_the_bucket(worker, cloud):
    run = cloud / "worker-0/jaxlm/runs/old"
    run.mkdir(parents=True)
    done = worker("install", "python3", "mine/runs")
    assert done.returncode == 2 and "not empty" in done.stderr
    assert run.exists()
