"""Runs that are killed, in real processes: what goes on gives the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

STEPS = 24
TIMES = ("seconds", "tokens_per_second", "input_wait")
SMALL = (
    "--config.data.train=sample:ner[:24]",
    "--config.data.validation=sample:ner[:8]",
    "--config.data.test=",
    "--config.data.max_length=32",
    "--config.model.dropout=0.1",
    "--config.train.epochs=3",
    "--config.evaluate.every_epochs=1",
    "--config.checkpoint.every_steps=3",
    "--config.checkpoint.keep_last=9",
    "--config.train.log_every_steps=2",
)


class Runs:
    """Starts ``jaxlm.main`` on one device, with one cache of compiled steps."""

    def __init__(self, cache):
        flags = os.environ["XLA_FLAGS"].replace(
            "--xla_force_host_platform_device_count=8", ""
        )
        self.environment = {
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }

    def start(self, workdir):
        command = [sys.executable, "-m", "jaxlm.main", "--config=configs/ner.py:tiny"]
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *SMALL],
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


def when_a_line_says(step):
    def moment(workdir):
        path = workdir / "metrics.jsonl"
        return (
            path.exists() and f'{{"step": {step}, "split": "train"' in path.read_text()
        )

    return moment


def when_it_began(workdir):
    path = workdir / "status.json"
    return path.exists() and json.loads(path.read_text())["state"] == "running"


def arrays(workdir):
    """Every array of the last checkpoint, as bytes by name."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.training.Checkpointer(str(workdir / "checkpoints")) as checkpoints:
        described = checkpoints.checkpointables_metadata(STEPS).metadata
        items = {name: described[name] for name in ("params", "training")}
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            items,
        )
        found = checkpoints.load_checkpointables(STEPS, abstract)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree.leaves_with_path(found)
    }


def lines(workdir):
    """metrics.jsonl by step and split, without times; no two of a kind."""
    found = {}
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        key = line["step"], line["split"]
        assert key not in found, f"{key} stands twice"
        found[key] = {name: line[name] for name in line if name not in TIMES}
    return found


def kill_at(moments, runs, whole, workdir):
    for moment in moments:
        code, _ = runs.signalled(workdir, signal.SIGKILL, moment)
        assert code == -signal.SIGKILL
    output = runs.finish(workdir)
    assert f"of {STEPS}" in output and "resuming from step" in output
    assert arrays(workdir) == arrays(whole)
    assert lines(workdir) == lines(whole)
    assert json.loads((workdir / "status.json").read_text())["state"] == "finished"


def test_a_run_killed_as_a_checkpoint_appears_ends_with_the_same_bits(
    runs, whole, tmp_path
):
    kill_at([when_a_checkpoint_appears(3)], runs, whole, tmp_path)


def test_a_run_killed_between_two_checkpoints_ends_with_the_same_bits(
    runs, whole, tmp_path
):
    kill_at([when_a_line_says(10)], runs, whole, tmp_path)


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
    assert arrays(tmp_path) == arrays(whole)


@pytest.mark.slow
def test_ctrl_c_stops_as_sigterm_does_with_its_own_code(runs, whole, tmp_path):
    code, output = runs.signalled(tmp_path, signal.SIGINT, when_a_line_says(2))
    assert code == 130, output
    assert "stopped and saved at step" in output
    assert "Traceback" not in output


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
