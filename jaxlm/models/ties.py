"""Whether a checkpoint's last kernel is its table of tokens, as its files have it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxlm.core.safetensors import Tensors
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import Family

ROWS = 4096
"""Compared at a time: a large table is not read whole."""
TABLE, KERNEL = "embeddings/tokens/embedding", "language/kernel"


def settle_tie(
    family: Family, config: TransformerConfig, files: Tensors
) -> TransformerConfig:
    """The config of a checkpoint, untied where its files hold another last kernel.

    Files win over ``tie_word_embeddings=true``, as in transformers 5: a kernel that
    equals the table is the table, and one that differs is the model's own.
    """
    language = (config.decoder or config).language
    if language is None or not language.tied:
        return config
    names = {family.canonical(name): name for name in files.names}
    rows = {
        row.ours: names.get(row.theirs) for row in (*family.weights, *family.untied)
    }
    table, kernel = rows.get(TABLE), rows.get(KERNEL)
    if table is None or kernel is None or same(files, table, kernel):
        return config
    language = replace(language, tied=False)
    decoder = config.decoder and replace(config.decoder, language=language)
    return replace(config, language=language, decoder=decoder)


def same(files: Tensors, one: str, other: str) -> bool:
    """Whether two tensors have the same values."""
    if files.shape(one) != files.shape(other):
        return False
    return all(
        np.array_equal(files.read(one, part), files.read(other, part))
        for start in range(0, files.shape(one)[0], ROWS)
        for part in [slice(start, start + ROWS)]
    )
