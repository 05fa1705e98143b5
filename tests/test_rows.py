"""Other layouts, by rows and by rules: the run is the same and lies as it should."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.config import resolve
from jaxlm.core.errors import UserError
from jaxlm.core.trees import flatten
from jaxlm.experiment import ExperimentConfig, training
from jaxlm.experiment.training import train
from jaxlm.experiment.workdir import claim


def config(**changes):
    overrides = {
        "data.train": "sample:ner[:24]",
        "data.validation": "",
        "data.test": "",
        "data.max_length": 32,
        "model.dropout": 0.1,
        "model.scan": True,
        "train.batch_size": 3,
        "train.steps": 6,
        "train.log_every_steps": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return resolve(ExperimentConfig, "configs/ner.py:tiny", flags).config


def losses(workdir, **changes):
    train(config(**changes), workdir, say=lambda _: None)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses on one device."""
    return losses(tmp_path_factory.mktemp("alone"), mesh__data=1)


def test_three_rows_on_eight_devices_train_as_on_one(alone, tmp_path):
    # Dropout is on: it draws each element by its index, rows first, so rows of
    # padding behind the others do not disturb it.
    eight = losses(tmp_path, mesh__data=8)
    np.testing.assert_allclose(eight, alone, rtol=1e-5)


SIZES = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
RULES = {
    "mesh__rules__batch": "data",
    "mesh__rules__width": "fsdp,tensor",
    "mesh__rules__mlp": "fsdp",
    "mesh__rules__vocab": "",
    "mesh__rules__layers": "data",
}
SPLIT = {
    "embeddings/tokens/embedding": (None, ("fsdp", "tensor")),
    "layers/attention/query/kernel": ("data", ("fsdp", "tensor"), None),
    "layers/attention/output/kernel": ("data", "tensor", "fsdp"),
    "layers/mlp/down/kernel": ("data", "fsdp", "tensor"),
    "layers/mlp/up/bias": ("data", "fsdp"),
}


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    """A run by other rules: its workdir, losses and last state."""
    workdir, states = tmp_path_factory.mktemp("ruled"), []

    def fit(*arguments, **options):
        states.append(original(*arguments, **options))
        return states[-1]

    original = training.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", fit)
        found = losses(workdir, **SIZES, **RULES)
    return workdir, found, states[0]


def test_other_rules_train_as_one_device(alone, ruled):
    np.testing.assert_allclose(ruled[1], alone, rtol=1e-5)


def test_parameters_and_moments_lie_by_the_rules(ruled):
    state = ruled[2]
    adam = [
        part
        for part in jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(part, "mu")
    ][0]
    for tree in (state.trainable, adam.mu, adam.nu):
        leaves = flatten(tree)
        for name, spec in SPLIT.items():
            leaf = leaves[f"backbone/{name}"]
            wanted = NamedSharding(leaf.sharding.mesh, PartitionSpec(*spec))
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), name


def test_the_rules_are_written_in_the_workdir_s_config(ruled):
    written = json.loads((ruled[0] / "config.json").read_text())["config"]["mesh"]
    assert written["rules"] == {
        "batch": ["data"],
        "sequence": ["context"],
        "width": ["fsdp", "tensor"],
        "vector": [],
        "heads": ["tensor"],
        "head_size": [],
        "mlp": ["fsdp"],
        "vocab": [],
        "layers": ["data"],
    }


def test_a_run_goes_on_by_other_rules(ruled):
    said = []
    with claim(ruled[0], config(**SIZES), overwrite=False, say=said.append):
        pass
    assert "config.mesh.rules.width was ['fsdp', 'tensor'], now ['fsdp']" in said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mesh__rules__heads": "data,tensor", "mesh__data": 4, "mesh__tensor": 2},
            "config.mesh.data x config.mesh.tensor: 8 devices cannot split heads=4 of"
            " the model evenly; a divisor of 4, or another config.mesh.rules.heads",
        ),
        (
            {"mesh__rules__layers": "data", "mesh__data": 8},
            "config.mesh.data: 8 devices cannot split layers=2 of backbone/layers/",
        ),
        (
            {"mesh__rules__layers": "data", "mesh__data": 2, "model__scan": False},
            "config.mesh.rules.layers: data would split stacks of layers, which"
            " config.model.scan=true makes",
        ),
    ],
)
def test_rules_that_do_not_fit_the_model_are_told_before_training(
    tmp_path, changes, message
):
    with pytest.raises(UserError) as caught:
        train(config(**changes), tmp_path, say=lambda _: None)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []
