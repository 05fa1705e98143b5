"""Pretraining runs, masked and causal, end to end: learned, scored and laid out."""

import math

import numpy as np
import pytest

from jaxlm.core.files import read_json
from jaxlm.experiment.training import train
from tests.small_runs import config, losses, quietly

pytestmark = pytest.mark.usefixtures("compiled_once")
CONFIGS = {
    "masked": "configs/pretrain_bert.py:tiny",
    "causal": "configs/pretrain_gpt.py:tiny",
}
STEPS = 8
LAYOUTS = {
    "whole rows": {"data": 2, "fsdp": 2, "tensor": 2, "context": 1},
    "split rows": {"data": 2, "fsdp": 1, "tensor": 2, "context": 2},
}


def made(objective, **sizes):
    return config(
        CONFIGS[objective],
        **{f"mesh__{axis}": size for axis, size in sizes.items()},
        data__train="sample:text[:48]",
        data__validation="sample:text[:8]",
        data__max_length=64,
        train__steps=STEPS,
        model__dropout=0.0,
    )


@pytest.fixture(scope="module", params=CONFIGS)
def alone(request, tmp_path_factory):
    """A run on one device."""
    workdir = tmp_path_factory.mktemp(request.param)
    train(made(request.param, data=1), workdir, say=quietly)
    return request.param, workdir


def scores(workdir):
    return read_json(workdir / "results" / f"validation-{STEPS}.json")


def predictions(workdir):
    return (workdir / "predictions" / f"validation-{STEPS}.jsonl").read_text()


def test_a_model_learns_and_its_scores_are_those_of_its_tokens(alone):
    objective, workdir = alone
    found = losses(workdir)
    assert found[-1] < found[0] - 0.05
    results = scores(workdir)
    assert results["perplexity"] == pytest.approx(math.exp(results["loss"]), rel=1e-5)
    counted = sum(line.count('"tokens"') for line in predictions(workdir).splitlines())
    assert counted == results["examples"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_trains_and_scores_as_one_device(alone, tmp_path, layout):
    """Where rows are split, the masked head is asked at all places."""
    objective, workdir = alone
    train(made(objective, **LAYOUTS[layout]), tmp_path, say=quietly)
    np.testing.assert_allclose(losses(tmp_path), losses(workdir), rtol=1e-5)
    for name in ("loss", "perplexity", "accuracy"):
        assert scores(tmp_path)[name] == pytest.approx(scores(workdir)[name], rel=1e-5)
