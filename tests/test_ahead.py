"""What is compiled ahead is what the run then calls, and nothing is compiled twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import jax
import pytest

from jaxlm.experiment.ahead import Compiler
from jaxlm.experiment.training import train
from jaxlm.train.checkpoints import Checkpoints
from tests.small_runs import ONE_LAYER, quietly
from tests.small_runs import config as small
from tests.test_signals import signal_at

pytestmark = pytest.mark.usefixtures("compiled_once")

COMPILED = "/jax/core/compile/backend_compile_duration"
SCORED = {"data__validation": "sample:ner[:8]", "evaluate__at_start": True}


def config(**changes):
    return small(model__pretrained=ONE_LAYER, **changes)


@pytest.fixture
def compiled():
    """How often each program was compiled, or read from jax's cache, and where."""
    programs = Counter()

    def listen(event, seconds, fun_name="", **_):
        if event == COMPILED:
            thread = threading.current_thread()
            ahead = thread is not threading.main_thread()
            programs[fun_name, ahead] += 1

    jax.clear_caches()  # of the tests before, which may have had the same program
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield programs
    jax.monitoring.unregister_event_duration_listener(listen)


def of_the_run(programs):
    """Those that a run waits for."""
    wanted = ("jit(step)", "jit(run)")
    return {key: count for key, count in programs.items() if key[0] in wanted}


def stop_at_first_save(made, workdir):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        signal_at(patch, Checkpoints, "save", 1, signal.SIGTERM)
        train(made, workdir, say=quietly)


def test_step_and_scores_are_compiled_ahead_once(compiled, tmp_path):
    train(config(train__steps=4, **SCORED), tmp_path, say=quietly)
    assert of_the_run(compiled) == {
        ("jit(step)", True): 1,
        ("jit(run)", True): 1,
    }


def test_a_run_that_goes_on_compiles_its_step_ahead(compiled, tmp_path):
    made = config(train__steps=4, checkpoint__every_steps=2)
    stop_at_first_save(made, tmp_path)
    compiled.clear()
    train(made, tmp_path, say=quietly)
    assert of_the_run(compiled)["jit(step)", True] == 1
    assert ("jit(step)", False) not in compiled


@pytest.mark.slow
def test_the_step_of_a_phase_that_is_not_known_yet_is_compiled_when_it_is(
    compiled, tmp_path
):
    phases = {"model__scan": True, "train__phases": "head@1step,all"}
    made = config(train__steps=4, checkpoint__every_steps=2, **phases)
    stop_at_first_save(made, tmp_path)
    compiled.clear()
    train(made, tmp_path, say=quietly)
    assert of_the_run(compiled) == {("jit(step)", True): 1}


def test_the_step_of_each_phase_is_compiled_once_and_no_call_compiles(
    compiled, tmp_path
):
    phases = {"model__scan": True, "train__phases": "head@1step,all"}
    train(config(train__steps=2, **phases), tmp_path, say=quietly)
    assert compiled["jit(step)", True] == 2
    assert ("jit(step)", False) not in compiled


@pytest.mark.slow
def test_a_run_that_goes_on_unpacked_does_not_compile_rows_of_another_length(
    tmp_path, monkeypatch
):
    made = config(train__steps=4, checkpoint__every_steps=2, data__packing=False)
    stop_at_first_save(made, tmp_path)
    begun, needed = [], []
    for names, name in ((begun, "begin"), (needed, "need")):
        original = getattr(Compiler, name)
        monkeypatch.setattr(Compiler, name, noting(names, original))
    train(made, tmp_path, say=quietly)
    assert set(begun) == set(needed) and begun


def noting(keys, original):
    """A method of ``Compiler`` that notes the keys that it is called with."""

    def noted(self, key, lower):
        keys.append(key)
        return original(self, key, lower)

    return noted


def test_what_fails_while_compiling_ahead_is_left_to_the_call(tmp_path, monkeypatch):
    calls = []

    def fail(self, **options):
        if threading.current_thread() is not threading.main_thread():
            calls.append(self)
            raise RuntimeError("no compiler today")
        return original(self, **options)

    original = jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    assert train(config(train__steps=4), tmp_path, say=quietly)["step"] == 4
    assert calls


def test_weights_that_are_refused_end_the_process_while_it_compiles(tmp_path, minilm):
    broken = tmp_path / "model"
    shutil.copytree(minilm, broken)
    spoil(broken / "model.safetensors", "embeddings.LayerNorm.weight")
    flags = ["--config=configs/ner.py", f"--config.model.pretrained={broken}"]
    command = [sys.executable, "-u", "-m", "jaxlm.main", *flags]
    cache = tmp_path / "cache"
    with subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'run'}"],
        env=os.environ | {"JAXLM_CACHE": str(cache)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as door:  # fmt: skip
        said = next(line for line in door.stderr if line.startswith("error:"))
        began = time.monotonic()
        assert door.wait() == 2
    assert "embeddings.LayerNorm.weight" in said
    # Compiling, into an empty cache, takes several seconds more.
    assert time.monotonic() - began < 2
    assert not (tmp_path / "run").exists()


def spoil(weights, name):
    """Make a number of a tensor NaN."""
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    header = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + header])[name]["data_offsets"][0] + 8 + header
    data[begin : begin + 4] = b"\x00\x00\xc0\x7f"
    weights.write_bytes(data)
