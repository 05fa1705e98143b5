"""Runs of several real processes on this machine: CPU devices, joined by gloo.

Processes take long to start, so that the tests look at few runs. One, of 2 processes,
is told to stop in the middle, loses a process later, and goes on both times.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxlm.core.files import read_json
from jaxlm.experiment.training import train
from launch import local
from tests.damages import flipped
from tests.small_runs import (
    NER,
    ONE_LAYER,
    STEPS,
    config,
    lines,
    losses,
    quietly,
)
from tools.soak import arrays

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("compiled_once")]
SMALL = {
    "model__pretrained": ONE_LAYER,
    "data__train": "sample:ner[:60]",
    "data__validation": "sample:ner[:16]",
    "data__test": "sample:ner[:9]",  # does not divide over the processes
    "evaluate__batch_size": 8,
    "checkpoint__every_steps": 4,
    "checkpoint__keep_last": 9,
}
TOLERANCE = 1e-5
"""Sums of f32 in another order; the loss is about 1."""
OWN = ("seconds", "tokens_per_second", "checksum")
"""What differs between two evaluations of the same parameters."""
LOST_SECONDS = 15


def overrides(**changes):
    whole = {**config_of({}), **config_of(changes)}
    return [f"--config.{key}={value}" for key, value in whole.items()]


def config_of(changes):
    from tests.small_runs import SMALL as usual

    named = {**SMALL, **changes}
    return usual | {key.replace("__", "."): named[key] for key in named}


class Started:
    """A run of several processes, by launch/local.py."""

    def __init__(
        self, cache, workdir, processes, door, arguments, stderr=subprocess.STDOUT
    ):
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        self.workdir = workdir
        self.launcher = subprocess.Popen(
            [
                *(sys.executable, local.__file__, f"--processes={processes}"),
                *(f"--devices={8 // processes}", f"--door={door}", "--"),
                *(f"--workdir={workdir}", f"--lost-seconds={LOST_SECONDS}"),
                *arguments,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def pid(self, process):
        """Of one of the processes, once they are started."""
        path = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        return int(path.read_text().split()[process])

    def signalled(self, process, number, step):
        """Send one process a signal after a step was written down; code and output."""
        while self.launcher.poll() is None and self.reached() < step:
            time.sleep(0.01)
        assert self.launcher.poll() is None, self.launcher.stdout.read()
        os.kill(self.pid(process), number)
        return self.end()

    def reached(self):
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return 0
        text = path.read_text().splitlines()[-1:]
        try:
            line = json.loads(text[0]) if text else {"step": 0, "split": ""}
        except ValueError:  # half written
            return 0
        return line["step"] if line["split"] == "train" else 0

    def end(self):
        """Exit code and output, that of process 0, at the end."""
        output, _ = self.launcher.communicate(timeout=600)
        return self.launcher.returncode, output


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts processes that share what they compile."""
    cache = tmp_path_factory.mktemp("cache")

    def start(workdir, processes=2, **changes):
        own = [f"--config={NER}", *overrides(**changes)]
        return Started(cache, workdir, processes, "main", own)

    start.door = lambda workdir, processes, door, *arguments, **options: Started(
        cache, workdir, processes, door, arguments, **options
    )
    return start


def finish(started):
    code, output = started.end()
    assert code == 0, output + log_of(started.workdir)
    return output


def log_of(workdir, process=1, prefix=""):
    return (workdir / "logs" / f"{prefix}process-{process}.log").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("whole")
    train(config(**SMALL), workdir, say=quietly)
    return workdir


@pytest.fixture(scope="module")
def history(start, tmp_path_factory):
    """The run of two processes: folders and what was said, as it stopped and died."""
    workdir = tmp_path_factory.mktemp("several")
    found = {"workdir": workdir}
    found["stopped"] = start(workdir).signalled(1, signal.SIGTERM, 6)
    found["at the stop"] = shutil.copytree(
        workdir, tmp_path_factory.mktemp("stopped") / "run"
    )
    step = read_json(workdir / "status.json")["step"]
    began = time.monotonic()
    found["died"] = start(workdir).signalled(1, signal.SIGKILL, step + 5)
    found["seconds"] = time.monotonic() - began
    found["at the death"] = read_json(workdir / "status.json")
    found["finished"] = finish(start(workdir))
    return found


def assert_same_run(workdir, whole):
    """Every step's loss, every score and every predicted label."""
    assert [line["step"] for line in lines(workdir)] == [*range(1, STEPS + 1)]
    assert np.allclose(losses(workdir), losses(whole), rtol=0, atol=TOLERANCE)
    assert_same_scores(workdir, whole)


def assert_same_scores(workdir, whole, of="*"):
    names = {path.name for path in (whole / "results").glob(f"{of}.json")}
    assert names and names == {
        path.name for path in (workdir / "results").glob(f"{of}.json")
    }
    for name in names:
        mine, other = (read_json(each / "results" / name) for each in (workdir, whole))
        for key, value in other.items():
            if isinstance(value, float):
                value = pytest.approx(value, abs=TOLERANCE)
            assert key in OWN or mine[key] == value, (name, key)
    for path in (whole / "predictions").glob(f"{of}.jsonl"):
        mine = predicted((workdir / "predictions" / path.name).read_text())
        assert mine == predicted(path.read_text())


def predicted(text):
    return [json.loads(line)["predicted"] for line in text.splitlines()]


def test_a_run_of_two_processes_is_that_of_one(history, whole):
    assert_same_run(history["workdir"], whole)


def test_only_the_first_process_prints(history):
    code, output = history["stopped"]
    where = history["workdir"] / "logs" / "process-N.log"
    assert f"process 0 of 2; the others write to {where}" in output
    assert output.count(f"model  {ONE_LAYER}") == 1
    log = log_of(history["workdir"])
    assert log.count(f"model  {ONE_LAYER}") == 3  # one for each start
    assert "Traceback" not in output + log


def test_a_signal_to_one_stops_all_at_one_step_and_saved(history):
    code, output = history["stopped"]
    assert code == 128 + signal.SIGTERM, output
    step = read_json(history["at the stop"] / "status.json")["step"]
    assert 6 < step < STEPS
    said = f"stopped and saved at step {step} of {STEPS}; started again, it goes on"
    assert said in output and said in log_of(history["at the stop"])
    assert (history["at the stop"] / "checkpoints" / str(step)).is_dir()


@pytest.mark.slow
def test_a_signal_to_one_is_heard_while_all_compile_the_step_of_a_phase(
    start, tmp_path
):
    phases = {"train__phases": "head@6steps,all", "model__scan": True}
    code, output = start(tmp_path, **phases).signalled(1, signal.SIGTERM, 6)
    assert code == 128 + signal.SIGTERM, output
    said = f"stopped and saved at step 6 of {STEPS}; started again, it goes on"
    assert said in output and said in log_of(tmp_path)
    assert "resuming from step 6" in finish(start(tmp_path, **phases))


def test_a_process_that_dies_ends_the_others_with_a_line(history):
    code, output = history["died"]
    assert code == 128 + signal.SIGKILL
    assert "error: process 1 of 2 (host " in output
    assert "is gone: nothing was heard of it for" in output
    assert "process 1 of 2 ended first: SIGKILL" in output
    status = history["at the death"]
    assert status["state"] == "failed" and "process 1 of 2" in status["reason"]
    assert "resuming from step" in history["finished"]


def test_what_two_processes_saved_goes_on_in_one(history, whole, tmp_path):
    workdir = shutil.copytree(history["at the stop"], tmp_path / "run")
    said = []
    train(config(**SMALL), workdir, say=said.append)
    step = read_json(history["at the stop"] / "status.json")["step"]
    assert f"resuming from step {step} of {STEPS}" in said
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(start, whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "results")
    shutil.rmtree(workdir / "predictions")
    output = finish(start.door(workdir, 2, "evaluate", f"--step={STEPS}"))
    assert f"written: {workdir}/results/test-{STEPS}.json" in output
    assert "written" not in log_of(workdir, prefix="evaluate-")
    alone = tmp_path / "alone"
    shutil.copytree(whole, alone)
    from jaxlm import api

    api.evaluate(alone, step=STEPS)
    assert_same_scores(workdir, alone, f"test-{STEPS}")


@pytest.mark.slow
def test_what_one_process_saved_goes_on_in_four(start, whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    back_to(workdir, 8)
    output = finish(start(workdir, processes=4))
    assert f"resuming from step 8 of {STEPS}" in output
    assert_same_run(workdir, whole)
    back_to(workdir, 12)  # and what four saved, in two
    assert f"resuming from step 12 of {STEPS}" in finish(start(workdir))
    assert_same_run(workdir, whole)


def back_to(workdir, step):
    """As if the run had been stopped there."""
    for path in (workdir / "checkpoints").iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)
    status = read_json(workdir / "status.json")
    del status["checksum"]
    status |= {"state": "stopped", "step": step}
    (workdir / "status.json").write_text(json.dumps(status))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(
    start, tmp_path, processes
):
    one, other = tmp_path / "one", tmp_path / "other"
    finish(start(one, processes))
    start(other, processes).signalled(processes - 1, signal.SIGKILL, 10)
    finish(start(other, processes))
    assert arrays(one, STEPS) == arrays(other, STEPS)
    assert (losses(one) == losses(other)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh__data": 1, "mesh__tensor": 2, "mesh__context": 4},  # rows in both
        {"mesh__data": 1, "mesh__fsdp": 8},
        {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
        {"mesh__data": 6, "train__batch_size": 6},  # of which one process has two
    ],
)
def test_every_mesh_across_processes_is_that_of_one(start, tmp_path, mesh):
    several, alone = tmp_path / "several", tmp_path / "alone"
    finish(start(several, **mesh))
    train(config(**SMALL | mesh), alone, say=quietly)
    assert_same_run(several, alone)


@pytest.mark.slow
def test_damage_that_one_process_meets_is_damage_for_all(start, whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    back_to(workdir, 12)
    sharded = {"mesh__data": 1, "mesh__fsdp": 8}
    finish(start(workdir, **sharded))  # saves 16, of which each process has half
    back_to(workdir, 16)
    (largest, *_) = sorted(
        (workdir / "checkpoints" / "16" / "params").rglob("d/*"),
        key=lambda path: -path.stat().st_size,
    )
    flipped(largest)
    output = finish(start(workdir, **sharded))
    assert "checkpoint 16 is damaged (process " in output
    assert f"resuming from step 12 of {STEPS}" in output
    assert f"resuming from step 12 of {STEPS}" in log_of(workdir)
    assert (workdir / "damaged" / "16").is_dir()
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_two_processes_predict_as_one_does(start, whole, tmp_path):
    texts = tmp_path / "texts"
    texts.write_text("Ada left Paris .\nNothing here .\n" * 5)
    workdir = shutil.copytree(whole, tmp_path / "run")
    arguments = (workdir, 2, "predict", f"--input={texts}")
    output = finish(start.door(*arguments, stderr=subprocess.DEVNULL))
    found = [json.loads(line) for line in output.splitlines()]
    from jaxlm import api

    expected = api.predict(whole, texts.read_text().splitlines())
    assert [each["predicted"] for each in found] == [
        each["predicted"] for each in expected
    ]


@pytest.mark.slow
def test_what_one_process_lacks_ends_all_with_its_line(start, tmp_path):
    """A file of data that is another one where process 1 looks."""
    for process in (0, 1):
        folder = tmp_path / str(process)
        folder.mkdir()
        text = "Ada B-PER\nleft O\nParis B-LOC\n\n" * (60 + process)
        (folder / "data.conll").write_text(text)
    link = tmp_path / "data.conll"  # by the id of the process that opens it
    link.symlink_to("/proc/self/cwd/data.conll")
    code = (
        "import os, runpy, sys;"
        f"os.chdir({str(tmp_path)!r} + '/' + os.environ['JAX_PROCESS_ID']);"
        f"sys.path.insert(0, {str(Path.cwd())!r});"
        "runpy.run_module('jaxlm.main', run_name='__main__')"
    )
    arguments = [
        *(f"--config={Path(NER.partition(':')[0]).resolve()}:tiny",),
        *overrides(data__train=str(link), data__validation="", data__test=""),
        f"--workdir={tmp_path / 'run'}",
    ]
    port = local.free_port()
    known = local.parse(["--processes=2", "--"])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | local.variables(known, port, process),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in (0, 1)
    ]
    output, _ = running[0].communicate(timeout=300)
    running[1].communicate(timeout=60)
    assert [each.returncode for each in running] == [2, 2], output
    assert "process 1 of 2 has another content than process 0" in output
    assert "Traceback" not in output


def test_processes_of_unlike_configs_end_with_the_key(tmp_path):
    """They would train apart, and then wait for one another for ever."""
    port, known = local.free_port(), local.parse(["--processes=2", "--"])
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "jaxlm.main", f"--config={NER}"),
                *(f"--workdir={tmp_path}", f"--config.train.batch_size={4 + process}"),
            ],
            env=os.environ | local.variables(known, port, process),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in (0, 1)
    ]
    output, _ = running[0].communicate(timeout=300)
    running[1].communicate(timeout=60)
    assert [each.returncode for each in running] == [2, 2], output
    line = "config.train.batch_size: process 1 of 2 has 5, process 0 4"
    assert line in output and line in log_of(tmp_path)
    assert not (tmp_path / "config.json").exists()
