"""Rows of windows as arrays: segment ids, restarted positions, per-example fields.

Loss and gradients of a packed batch equal those of the padded one: attention is held
inside a segment, positions restart, and losses are sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxlm.core.types import Features


def collate(
    rows: Sequence[Sequence[Features]],
    *,
    like: Features,
    length: int,
    segments: int,
    batch_size: int,
    fills: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """Rows of windows to one batch of ``batch_size`` rows.

    ``like`` is any window of the data set: it names the fields and their dtypes.
    ``segments`` is P, the places for per-example fields; ``fills`` gives the padding
    value of every field that is not padded with 0. Missing rows are padding throughout.
    Returns the fields of ``jaxlm.core.types.Batch``.
    """
    shape = (batch_size, length)
    batch: dict[str, np.ndarray] = {
        "mask": np.zeros(shape, bool),
        "segments": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "starts": np.zeros((batch_size, segments), np.int32),
        "example_mask": np.zeros((batch_size, segments), bool),
    }
    for name, value in like.tokens.items():
        batch[name] = np.full(shape, fills.get(name, 0), value.dtype)
    for name, value in like.example.items():
        kind = np.asarray(value).dtype
        batch[name] = np.full((batch_size, segments), fills.get(name, 0), kind)
    for number, row in enumerate(rows):
        start = 0
        for place, window in enumerate(row):
            stop = start + window.length
            batch["mask"][number, start:stop] = True
            batch["segments"][number, start:stop] = place + 1
            batch["positions"][number, start:stop] = np.arange(window.length)
            batch["starts"][number, place] = start
            batch["example_mask"][number, place] = True
            for name, value in window.tokens.items():
                batch[name][number, start:stop] = value
            for name, value in window.example.items():
                batch[name][number, place] = value
            start = stop
    return batch


def cut(
    outputs: Mapping[str, np.ndarray], row: int, place: int, start: int, length: int
) -> dict[str, np.ndarray]:
    """One window's part of a batch of outputs.

    ``outputs`` hold per-token fields under ``tokens/`` names ([B, S, ...]) and
    per-example fields under ``example/`` names ([B, P, ...]).
    """
    part = {}
    for name, value in outputs.items():
        kind, _, field = name.partition("/")
        if kind == "tokens":
            part[field] = value[row, start : start + length]
        else:
            part[field] = value[row, place]
    return part
