"""Runs that take seconds: their config, and what they wrote."""

import json
from pathlib import Path

import numpy as np

from jaxlm.core.config import resolve
from jaxlm.experiment import ExperimentConfig

STEPS = 20
NER, CLASSIFY = "configs/ner.py:tiny", "configs/classify.py:tiny"
ONE_LAYER = f"random:{Path(__file__).parent / 'one_layer'}"
"""The tiny model with one layer, for runs where nothing hangs on its depth."""
SMALL = {
    "data.train": "sample:ner[:60]",
    "data.validation": "",
    "data.test": "",
    "data.max_length": 32,
    "train.batch_size": 8,
    "train.steps": STEPS,
    "train.log_every_steps": 1,
    "optimizer.learning_rate": 1e-3,
    "evaluate.every_epochs": 1,
    "model.dropout": 0.1,
    "mesh.data": 8,
}


def config(file=NER, **changes):
    changes = {**SMALL, **{key.replace("__", "."): changes[key] for key in changes}}
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    return resolve(ExperimentConfig, file, overrides).config


def quietly(text):
    """Say nothing."""


def lines(workdir, split="train"):
    text = (workdir / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [line for line in found if line["split"] == split]


def losses(workdir):
    return np.array([line["loss"] for line in lines(workdir)])
