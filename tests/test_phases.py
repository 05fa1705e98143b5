"""Whole runs in phases: what is frozen stays, and a border is crossed to the bit."""

import json
import shutil

import numpy as np
import pytest

from jaxlm import api
from jaxlm.core.config import resolve
from jaxlm.core.errors import UserError
from jaxlm.core.files import with_checksum
from jaxlm.core.trees import flatten
from jaxlm.experiment import ExperimentConfig
from jaxlm.experiment.runs import Run
from jaxlm.experiment.training import train

pytestmark = pytest.mark.usefixtures("compiled_once")
WRITTEN = "head@1epoch,head+layers[1:]@2steps,all"
SMALL = {
    "data.train": "sample:ner[:24]",
    "data.validation": "sample:ner[:8]",
    "data.test": "",
    "data.max_length": 32,
    "train.epochs": 3,
    "train.batch_size": 8,
    "train.log_every_steps": 1,
    "train.phases": WRITTEN,
    "optimizer.learning_rate": 1e-3,
    "evaluate.at_start": False,
    "model.dropout": 0.1,
    "model.scan": True,
    "checkpoint.every_steps": 1,
    "checkpoint.keep_last": 99,
    "mesh.data": 2,
    "mesh.fsdp": 2,
}


def config(**changes):
    values = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return resolve(ExperimentConfig, "configs/ner.py:tiny", overrides).config


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory, said):
    workdir = tmp_path_factory.mktemp("whole")
    train(config(), workdir, say=said.append)
    return workdir


def params_of(run, step):
    """The parameters by name, those of each layer apart: ``layers[1:2]``."""
    found = {}
    for name, leaf in flatten(run.params(step)).items():
        stack, layers, rest = name.partition("/layers/")
        parts = np.array(leaf) if layers else [np.array(leaf)]
        for number, part in enumerate(parts):
            layer = f"{stack}/layers[{number}:{number + 1}]/{rest}"
            found[layer if layers else name] = part
    return found


def moved(run, before, after):
    """The parts of names below the backbone that moved between two checkpoints."""
    old, new = params_of(run, before), params_of(run, after)
    names = [name for name in old if not np.array_equal(old[name], new[name])]
    return {"/".join(name.split("/")[:2]) for name in names}


def lines(workdir):
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["split"] == "train"]


def test_each_phase_moves_what_it_names_and_nothing_else(whole):
    run = Run(whole)
    first = run.checkpoints.steps()[0]
    phases = {line["step"]: line["phase"] for line in lines(whole)}
    ends = [max(step for step in phases if phases[step] == each) for each in (1, 2, 3)]
    assert ends[1] - ends[0] == 2
    head = {"classifier/kernel", "classifier/bias"}
    assert moved(run, first, ends[0]) == head
    assert moved(run, ends[0], ends[1]) == head | {"backbone/layers[1:2]"}
    last = {"backbone/embeddings", "backbone/layers[0:1]", "backbone/layers[1:2]"}
    assert moved(run, ends[1], ends[2]) == head | last


def test_phases_are_said_before_training_and_when_they_begin(whole, said):
    before = [line for line in said if line.startswith("phase ")]
    assert len(before) == 3
    assert before[0].startswith("phase 1 of 3 trains head: 585 parameters, from step 1")
    assert "phase 2 of 3 trains head, layers[1:]: " in before[1]


@pytest.mark.parametrize("border", [0, 1])
def test_a_run_goes_on_over_a_border_with_the_same_bits(whole, tmp_path, border):
    """Killed right at the last step of a phase, before the next has begun."""
    phases = [line["phase"] for line in lines(whole)]
    end = phases.index(border + 2)
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > end:
            shutil.rmtree(path)
    status = json.loads((workdir / "status.json").read_text())
    running = with_checksum(status | {"state": "running"})
    (workdir / "status.json").write_text(json.dumps(running))
    said = []
    train(config(), workdir, say=said.append)
    assert f"resuming from step {end} of {len(phases)}" in said
    ended, other = (
        params_of(Run(whole), len(phases)),
        params_of(Run(workdir), len(phases)),
    )
    assert all(np.array_equal(ended[name], other[name]) for name in ended)
    assert [line["loss"] for line in lines(workdir)] == [
        line["loss"] for line in lines(whole)
    ]


def test_a_run_in_phases_is_scored_as_while_it_trained(whole, tmp_path):
    """Its checkpoints are cut at layers, which other doors have in one stack."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    run = Run(workdir)
    step = run.checkpoints.steps()[-1]
    assert "layers" in run.params(step)["backbone"]
    path = workdir / "results" / f"validation-{step}.json"
    before = json.loads(path.read_text())
    path.unlink()
    after = run.evaluate(run.dataset("validation"), "validation", step).metrics
    # Of the same parameters, but in a program that may add in another order.
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)
    assert after["f1"] == before["f1"]


def test_a_run_in_phases_predicts(whole):
    (prediction,) = api.predict(whole, ["Ann lives in Rome ."])
    assert prediction["tokens"] == ["Ann", "lives", "in", "Rome", "."]


def test_phases_give_the_same_losses_on_one_device_unrolled(whole, tmp_path):
    alone = config(mesh__data=1, mesh__fsdp=1, model__scan=False)
    train(alone, tmp_path, say=lambda text: None)
    ours = [line["loss"] for line in lines(tmp_path)]
    # The same sums in another order, as for every layout (tests/test_training.py).
    np.testing.assert_allclose(ours, [line["loss"] for line in lines(whole)], rtol=1e-5)


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ("head@9epochs,all", "config.train.phases: 'head@9epochs' is too long"),
        ("layers[5:6]", r"the model has 2 layers, layers\[0:2\]"),
        ("heads@1epoch,all", "'heads' in 'heads@1epoch' names no parameter; nearest"),
    ],
)
def test_phases_that_do_not_fit_are_one_line_before_training(tmp_path, phases, words):
    with pytest.raises(UserError, match=words):
        train(config(train__phases=phases), tmp_path, say=lambda text: None)
    assert not (tmp_path / "checkpoints").exists()


def test_another_list_of_phases_is_another_run(whole):
    with pytest.raises(UserError, match="config.train.phases was"):
        train(config(train__phases="head"), whole, say=lambda text: None)
