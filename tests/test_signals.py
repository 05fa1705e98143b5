"""SIGTERM and Ctrl-C at every kind of moment: the run stops in order, and goes on."""

import json
import signal
import threading
from contextlib import contextmanager

import pytest

from jaxlm import main
from jaxlm.experiment import ending, training
from jaxlm.experiment.ahead import Compiler
from jaxlm.experiment.training import train
from jaxlm.train.checkpoints import Checkpoints
from jaxlm.train.evaluator import Evaluator
from tests.small_runs import NER, ONE_LAYER, config, quietly
from tools.soak import arrays, lines

pytestmark = pytest.mark.usefixtures("compiled_once")
STEPS = 6
SMALL = {
    "model__pretrained": ONE_LAYER,
    "data__train": "sample:ner[:24]",
    "data__validation": "sample:ner[:8]",
    "train__steps": STEPS,
    "train__batch_size": 4,
    "evaluate__every_steps": 3,
    "checkpoint__every_steps": 2,
    "mesh__data": 1,
}
ENDS = {
    signal.SIGTERM: (SystemExit, 128 + signal.SIGTERM),
    signal.SIGINT: (KeyboardInterrupt, None),
}


def other(*values):
    """A case beside one like it, which is tried in every run of the tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    train(config(**SMALL), workdir, say=quietly)
    return workdir


def signal_at(patch, owner, name, call, *numbers):
    """Get signals while the n-th call of a function is made."""
    original, calls = getattr(owner, name), []

    def called(*given, **named):
        calls.append(name)
        if len(calls) == call:
            for number in numbers:
                signal.raise_signal(number)
        return original(*given, **named)

    patch.setattr(owner, name, called)


def stopped(workdir, said, number, *moment):
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, *moment)
        with pytest.raises(ENDS[number][0]) as caught:
            train(config(**SMALL), workdir, say=said.append)
    assert getattr(caught.value, "code", None) == ENDS[number][1]
    status = json.loads((workdir / "status.json").read_text())
    assert status["state"] == "stopped"
    return status["step"]


def assert_goes_on(workdir, whole, step):
    said = []
    train(config(**SMALL), workdir, say=said.append)
    assert (f"resuming from step {step} of {STEPS}" in said) == (step > 0)
    assert arrays(workdir, STEPS) == arrays(whole, STEPS)
    assert lines(workdir) == lines(whole)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("owner", "name", "call", "saved", "number"),
    [
        (Evaluator, "evaluate", 2, 3, signal.SIGINT),  # made anew when it goes on
        (Checkpoints, "save", 1, 3, signal.SIGTERM),  # of step 2
        other(Evaluator, "evaluate", 2, 3, signal.SIGTERM),
        other(Checkpoints, "save", 1, 3, signal.SIGINT),
    ],
)
def test_a_signal_during_training_stops_it_after_the_step_and_saved(
    whole, tmp_path, number, owner, name, call, saved
):
    said = []
    step = stopped(tmp_path, said, number, owner, name, call, number)
    assert step == saved
    assert f"stopped and saved at step {saved} of {STEPS}; started again" in said[-1]
    assert_goes_on(tmp_path, whole, saved)


@pytest.mark.parametrize(
    ("owner", "name", "saved", "number"),
    [
        (training, "score_before", 0, signal.SIGTERM),
        (training, "turns", 0, signal.SIGTERM),  # before the first step
        (ending, "best_params", STEPS, signal.SIGTERM),  # before the scores at the end
        other(training, "score_before", 0, signal.SIGINT),
        other(training, "turns", 0, signal.SIGINT),
        other(ending, "best_params", STEPS, signal.SIGINT),
    ],
)
def test_a_signal_before_or_after_training_ends_it_at_once(
    whole, tmp_path, number, owner, name, saved
):
    assert stopped(tmp_path, [], number, owner, name, 1, number) == saved
    assert_goes_on(tmp_path, whole, saved)


@contextmanager
def compiling_for_ever(kind, after, number):
    """Get a signal while a program of a kind is compiled, which does not end.

    Those ``after`` programs of the kind, as they come.
    """
    original, released, seen = Compiler._compile, threading.Event(), []

    def compile(self, lowered):
        name = lowered.as_text().partition("@")[2].partition(" ")[0]
        seen.extend([name] if name == kind else [])
        if name == kind and len(seen) > after:
            signal.raise_signal(number)
            assert released.wait(60)
            return  # nobody wants it any more
        original(self, lowered)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiler, "_compile", compile)
        yield released
        released.set()


@pytest.mark.parametrize(
    ("kind", "after", "saved", "changes"),
    [
        ("jit_step", 1, 2, {"train__phases": "head@2steps,all", "model__scan": True}),
        ("jit_run", 0, 3, {"evaluate__at_start": False}),
    ],
    ids=["phase", "evaluation"],
)
def test_a_signal_while_a_program_is_compiled_does_not_wait_for_it(
    tmp_path, kind, after, saved, changes
):
    made = config(**SMALL | changes | {"checkpoint__every_steps": 100})
    train(made, tmp_path / "whole", say=quietly)
    workdir, said = tmp_path / "run", []
    with compiling_for_ever(kind, after, signal.SIGTERM) as released:
        with pytest.raises(SystemExit):
            train(made, workdir, say=said.append)
        assert not released.is_set()
    assert f"stopped and saved at step {saved} of {STEPS}; started" in said[-1]
    assert json.loads((workdir / "status.json").read_text())["step"] == saved
    train(made, workdir, say=said.append)
    assert f"resuming from step {saved} of {STEPS}" in said
    assert arrays(workdir, STEPS) == arrays(tmp_path / "whole", STEPS)
    assert f"train {saved}" in lines(workdir)


@pytest.mark.parametrize("number", [signal.SIGINT, other(signal.SIGTERM)])
def test_a_second_signal_does_not_wait_and_loses_no_checkpoint(whole, tmp_path, number):
    moment = (Checkpoints, "save", 3, number, number)  # of step 4
    assert stopped(tmp_path, [], number, *moment) == 4
    assert_goes_on(tmp_path, whole, 3)


def test_who_started_anew_is_told_a_command_that_deletes_nothing(
    tmp_path, monkeypatch, capsys
):
    overrides = [
        f"--config.{key.replace('__', '.')}={value}" for key, value in SMALL.items()
    ]
    own = [f"--config={NER}", f"--workdir={tmp_path / 'a run'}", *overrides]
    signal_at(monkeypatch, training, "score_before", 1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        main.main([own[0], "--overwrite", *own[1:], "--config.data.test="])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"to go on: python -m jaxlm.main --config={NER} '--workdir=")
    assert "--overwrite" not in last and "a run'" in last


def test_an_interrupt_before_the_run_began_tells_no_command(
    tmp_path, monkeypatch, capsys
):
    signal_at(monkeypatch, training, "prepare", 1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        main.main([f"--config={NER}", f"--workdir={tmp_path}"])
    assert "to go on" not in capsys.readouterr().out
