"""More rows in the table of tokens: new tokens, and padding that devices divide."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import TransformerConfig

LEAVES = (
    "backbone/embeddings/tokens/embedding",
    "language/kernel",
    "language/bias",
)
"""The leaves of a model whose first dimension is the vocabulary."""


def resize(
    config: TransformerConfig, vocab_size: int | None = None, multiple: int = 1
) -> TransformerConfig:
    """An architecture with so many tokens, its tables padded to a ``multiple``.

    Raises:
      UserError: there are less than it has.
    """
    size = config.vocab_size if vocab_size is None else vocab_size
    if size < config.vocab_size:
        raise UserError(
            f"config.model.vocab_size: {size} is not allowed; the model has"
            f" {config.vocab_size} tokens, and none are taken away: at least that many"
        )
    rows = -(-size // multiple) * multiple
    decoder = config.decoder
    if decoder is not None:
        decoder = replace(decoder, vocab_size=size, vocab_rows=rows)
    return replace(config, vocab_size=size, vocab_rows=rows, decoder=decoder)


def read_grown(
    name: str,
    index: tuple[slice, ...],
    shape: tuple[int, ...],
    old: int,
    config: TransformerConfig,
    seed: int,
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> np.ndarray:
    """A part of a leaf of ``shape`` whose checkpoint has its first ``old`` rows.

    These are read. New tokens are drawn with ``initializer_range``, each row from
    the seed, its name and its number, hence the same on any mesh; a bias is 0, and so
    is padding.
    """
    rows, *rest = index
    start, stop, _ = rows.indices(shape[0])
    sizes = [len(range(shape[1])[each]) for each in rest]
    found = np.zeros((stop - start, *sizes), np.float32)
    have = max(min(stop, old) - start, 0)
    if have:
        found[:have] = read((slice(start, start + have), *rest))
    if len(shape) == 1:
        return found
    salt = zlib.crc32(name.encode())
    for row in range(max(start, old), min(stop, config.vocab_size)):
        random = np.random.default_rng([seed, salt, row])
        drawn = random.standard_normal(shape[1], np.float32)
        found[row - start] = drawn[rest[0]] * np.float32(config.initializer_range)
    return found
