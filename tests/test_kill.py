"""Runs that are killed, in real processes: what goes on gives the same bits."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.small_runs import ONE_LAYER
from tools import soak
from tools.soak import arrays, lines

NER, STEPS = "--config=configs/ner.py:tiny", 24
SMALL = {
    "model.pretrained": ONE_LAYER,
    "data.train": "sample:ner[:24]",
    "data.validation": "sample:ner[:8]",
    "data.test": "",
    "data.max_length": 32,
    "model.dropout": 0.1,
    "train.epochs": 3,
    "evaluate.every_epochs": 1,
    "checkpoint.every_steps": 3,
    "checkpoint.keep_last": 9,
    "train.log_every_steps": 2,
}


class Runs:
    """Starts ``jaxlm.main`` on one device, with one cache of compiled steps."""

    def __init__(self, cache):
        self.environment = soak.environment(1, cache)

    def start(self, workdir):
        return subprocess.Popen(
            soak.command(workdir, SMALL),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, workdir):
        process = self.start(workdir)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return output

    def signalled(self, workdir, number, moment):
        """Start, send a signal at a moment, and wait for the end."""
        process = self.start(workdir)
        while process.poll() is None and not moment(workdir):
            time.sleep(0.001)
        assert process.poll() is None, f"it ended first: {process.stdout.read()}"
        process.send_signal(number)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    runs.finish(workdir)
    return workdir


def entries(workdir):
    folder = workdir / "checkpoints"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def when_a_checkpoint_appears(count):
    """Right when the n-th name, whole or not, is seen under checkpoints/."""
    seen = set()

    def moment(workdir):
        seen.update(name.partition(".")[0] for name in entries(workdir))
        return len(seen) >= count

    return moment


def when_a_line_says(step, split="train"):
    def moment(workdir):
        path = workdir / "metrics.jsonl"
        line = f'{{"step": {step}, "split": "{split}"'
        return path.exists() and line in path.read_text()

    return moment


def when_it_began(workdir):
    path = workdir / "status.json"
    return path.exists() and json.loads(path.read_text())["state"] == "running"


def kill_at(moments, runs, whole, workdir):
    for moment in moments:
        code, _ = runs.signalled(workdir, signal.SIGKILL, moment)
        assert code == -signal.SIGKILL
    output = runs.finish(workdir)
    assert f"of {STEPS}" in output and "resuming from step" in output
    assert arrays(workdir, STEPS) == arrays(whole, STEPS)
    assert lines(workdir) == lines(whole)
    assert json.loads((workdir / "status.json").read_text())["state"] == "finished"


def test_a_run_killed_as_a_checkpoint_appears_and_between_two_ends_with_the_same_bits(
    runs, whole, tmp_path
):
    # The second time it goes on from checkpoints of a run that went on itself.
    moments = [when_a_checkpoint_appears(3), when_a_line_says(14)]
    kill_at(moments, runs, whole, tmp_path)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(runs, whole, tmp_path):
    moments = [
        when_it_began,
        when_a_checkpoint_appears(1),
        when_a_line_says(10),
        when_a_checkpoint_appears(6),
    ]
    kill_at(moments, runs, whole, tmp_path)


def test_a_run_that_is_told_to_stop_saves_and_goes_on_with_the_same_bits(
    runs, whole, tmp_path
):
    code, output = runs.signalled(tmp_path, signal.SIGTERM, when_a_line_says(4))
    assert code == 128 + signal.SIGTERM, output
    status = json.loads((tmp_path / "status.json").read_text())
    step = status["step"]
    assert status["state"] == "stopped" and 4 <= step < STEPS
    assert f"stopped and saved at step {step} of {STEPS}" in output
    assert str(step) in entries(tmp_path)
    assert "Traceback" not in output
    assert f"resuming from step {step} of {STEPS}" in runs.finish(tmp_path)
    assert arrays(tmp_path, STEPS) == arrays(whole, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "least"),
    [
        (when_a_line_says(0, "validation"), 0),  # then the step is compiled
        (when_a_line_says(8), 8),  # then it is scored
        (when_a_checkpoint_appears(2), 6),  # which is half there
    ],
    ids=["compile", "evaluation", "save"],
)
def test_ctrl_c_stops_as_sigterm_does_with_its_own_code(
    runs, whole, tmp_path, moment, least
):
    code, output = runs.signalled(tmp_path, signal.SIGINT, moment)
    assert code == 130, output
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "stopped" and least <= status["step"] < STEPS
    saved = f"stopped and saved at step {status['step']} of {STEPS}" in output
    assert saved == (status["step"] > 0)  # before the first, nothing is lost
    assert f"to go on: python -m jaxlm.main {NER} --workdir={tmp_path}" in output
    assert "Traceback" not in output
    runs.finish(tmp_path)
    assert arrays(tmp_path, STEPS) == arrays(whole, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_is_first_scored_ends_it_at_once(
    runs, tmp_path, number
):
    code, output = runs.signalled(tmp_path, number, when_it_began)
    assert code == 128 + number, output
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 0)
    assert "to go on: " in output and "Traceback" not in output


@pytest.mark.slow
def test_a_small_soak_finds_every_round_equal_and_goes_on_where_it_was(tmp_path):
    start = [sys.executable, "-m", "tools.soak", f"--workdir={tmp_path}"]
    for kills in (1, 2):
        done = subprocess.run(
            [*start, f"--kills={kills}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1].endswith("all equal"), done.stdout
        verdict = json.loads((tmp_path / "soak.json").read_text())["verdict"]
        assert verdict["kills"] == kills and verdict["leaves"] > 70


@pytest.mark.slow
def test_a_second_process_in_the_workdir_is_refused(runs, whole, tmp_path):
    first = runs.start(tmp_path)
    while first.poll() is None and not when_it_began(tmp_path):
        time.sleep(0.01)
    second = runs.start(tmp_path)
    output, _ = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert f"another process (pid {first.pid}) is training there" in output
