"""What is compiled ahead is what the run then calls, and nothing is compiled twice."""

import shutil
import signal
import threading
from collections import Counter

import jax
import pytest

from jaxlm.core.errors import UserError
from jaxlm.experiment.training import train
from jaxlm.train.checkpoints import Checkpoints
from tests.small_runs import config, quietly
from tests.test_signals import signal_at

pytestmark = pytest.mark.usefixtures("compiled_once")

COMPILED = "/jax/core/compile/backend_compile_duration"
SCORED = {"data__validation": "sample:ner[:8]", "evaluate__at_start": True}


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


def test_the_step_of_a_phase_that_is_not_known_yet_is_compiled_when_it_is(
    compiled, tmp_path
):
    phases = {"model__scan": True, "train__phases": "head@1step,all"}
    made = config(train__steps=4, checkpoint__every_steps=2, **phases)
    stop_at_first_save(made, tmp_path)
    compiled.clear()
    train(made, tmp_path, say=quietly)
    assert ("jit(step)", True) not in compiled
    assert compiled["jit(step)", False] == 1


def test_weights_that_are_refused_end_a_run_while_it_compiles(tmp_path, minilm):
    broken = tmp_path / "model"
    shutil.copytree(minilm, broken)
    weights = broken / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="model.safetensors"):
        train(config(model__pretrained=str(broken)), tmp_path / "run", say=quietly)
    assert not (tmp_path / "run").exists()
