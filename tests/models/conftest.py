"""Batches, models and checkpoints for the tests of models."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def make_batch():
    """``make_batch(rows, length, side)``; a row is a list of (ids, types) segments.

    ``side`` is where the padding goes: "right", "left" or "both".
    """

    def make(rows, length, side="right"):
        places = max(len(row) for row in rows)
        batch = {
            name: np.zeros((len(rows), length), np.int32)
            for name in ("tokens", "types", "segments", "positions")
        }
        batch["starts"] = np.zeros((len(rows), places), np.int32)
        batch["example_mask"] = np.zeros((len(rows), places), bool)
        for number, row in enumerate(rows):
            free = length - sum(len(ids) for ids, _ in row)
            start = {"right": 0, "left": free, "both": free // 2}[side]
            for place, (ids, types) in enumerate(row):
                part = np.s_[number, start : start + len(ids)]
                batch["tokens"][part], batch["types"][part] = ids, types
                batch["segments"][part] = place + 1
                batch["positions"][part] = np.arange(len(ids))
                batch["starts"][number, place] = start
                batch["example_mask"][number, place] = True
                start += len(ids)
        batch["mask"] = batch["segments"] > 0
        return batch

    return make


@pytest.fixture(scope="session")
def open_model():
    """``open_model(source, head)``: a checkpoint's backbone, its loaded params.

    ``pooler`` and the keywords of ``Transformer`` may be given.
    """
    from jaxlm.models.checkpoint import open_checkpoint
    from jaxlm.models.functional import functional
    from jaxlm.models.transformer import Transformer
    from jaxlm.models.weights import load_weights

    def load(directory, pooler=False, splits=(), **options):
        checkpoint = open_checkpoint(str(directory))
        config = replace(checkpoint.config, pooler=pooler, splits=splits)
        checkpoint = replace(checkpoint, config=config)
        model = functional(partial(Transformer, config, **options))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placed = jax.tree.map(lambda _: device, model.shapes)
        params = load_weights(
            checkpoint, {"backbone": model.shapes}, {"backbone": placed}
        )["backbone"]
        return SimpleNamespace(
            checkpoint=checkpoint, config=config, params=params, **vars(model)
        )

    return load


@pytest.fixture(scope="session")
def tiny_config():
    """A model that compiles fast."""
    from jaxlm.models.architecture import TransformerConfig

    return TransformerConfig(
        vocab_size=50,
        width=32,
        layers=2,
        heads=4,
        mlp_width=48,
        max_positions=40,
        type_vocab_size=2,
        pooler=True,
        initializer_range=0.1,
    )
