"""The built-in tiny model under a task, and batches of encoded records."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxlm.core.trees import flatten


@pytest.fixture(scope="session")
def tiny():
    """The architecture and the tokenizer of random:tiny."""
    from jaxlm.data.tokenizer import Tokenizer
    from jaxlm.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint("random:tiny")
    return SimpleNamespace(
        config=checkpoint.config, tokenizer=Tokenizer(checkpoint.directory)
    )


@pytest.fixture(scope="session")
def check_packing(tiny):
    """Loss and gradients of records in packed rows against those in padded ones.

    The two sum the same fp32 numbers in another order: 1e-7 an operation, a few hundred
    operations deep; 1e-5 of a parameter's gradient stands above that. The floor is for
    gradients that are zero but for rounding, such as the bias of the keys.
    """
    from jaxlm.data.packing import collate
    from jaxlm.data.plan import pack
    from jaxlm.models.functional import functional
    from jaxlm.models.transformer import Transformer

    def check(task, records):
        def make(rngs):
            config = replace(tiny.config, pooler=task.pooler, initializer_range=0.1)
            return task.build(Transformer(config, rngs), rngs)

        model = functional(make)
        windows = [
            window
            for index, record in enumerate(records)
            for window in task.encode(record, index)
        ]
        lengths = np.array([window.length for window in windows])
        order = np.arange(len(windows))
        packed_rows = pack(lengths, order, 64)
        assert max(len(row) for row in packed_rows) > 1
        layouts = {
            int(lengths.max()): [(int(index),) for index in order],
            64: packed_rows,
        }

        def loss(params, batch):
            [(name, found)] = task.losses(model.apply(params, batch), batch).items()
            return found.total / found.weight, found.weight

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        params = jax.jit(model.init)(jax.random.key(0))
        found = []
        for length, rows in layouts.items():
            batch = collate(
                [[windows[index] for index in row] for row in rows],
                like=windows[0],
                length=length,
                segments=max(len(row) for row in rows),
                batch_size=len(rows) + 1,
                fills=task.fills,
            )
            found.append(step(params, batch))
        ((padded, weight), gradients), ((packed, packed_weight), others) = found
        assert weight == packed_weight
        np.testing.assert_allclose(packed, padded, rtol=1e-6)
        gradients, others = flatten(gradients), flatten(others)
        norms = {name: np.linalg.norm(value) for name, value in gradients.items()}
        floor = 1e-7 * np.sqrt(sum(norm**2 for norm in norms.values()))
        for name, value in gradients.items():
            difference = np.linalg.norm(np.asarray(value) - np.asarray(others[name]))
            assert difference <= 1e-5 * norms[name] + floor, name

    return check
