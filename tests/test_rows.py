"""Fewer rows than devices: the batch is padded and nothing else changes."""

import json

import numpy as np
import pytest

from jaxlm.core.config import resolve
from jaxlm.core.mesh import make_mesh
from jaxlm.experiment import ExperimentConfig
from jaxlm.experiment.training import train
from jaxlm.experiment.wiring import rows_on_mesh


@pytest.mark.parametrize(
    ("rows", "devices", "accumulation", "expected"),
    [(4, 8, 1, 8), (8, 8, 1, 8), (12, 8, 1, 16), (4, 1, 2, 4), (12, 2, 3, 12)],
)
def test_rows_are_rounded_up_to_the_devices_and_microbatches(
    rows, devices, accumulation, expected
):
    sizes = {"data": devices, "fsdp": 1, "tensor": 1, "context": 1}
    assert rows_on_mesh(rows, make_mesh(sizes)[0], accumulation) == expected


def losses(workdir, devices):
    overrides = {
        "data.train": "sample:ner[:24]",
        "data.validation": "",
        "data.test": "",
        "data.max_length": 32,
        "model.dropout": 0.1,
        "train.batch_size": 3,
        "train.steps": 6,
        "train.log_every_steps": 1,
        "mesh.data": devices,
    }
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    config = resolve(ExperimentConfig, "configs/ner.py:tiny", flags).config
    train(config, workdir, say=lambda _: None)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def test_three_rows_on_eight_devices_train_as_on_one(tmp_path):
    # Dropout is on: threefry draws each element by its index, rows first, so rows of
    # padding behind the others do not disturb it.
    one, eight = losses(tmp_path / "one", 1), losses(tmp_path / "eight", 8)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
