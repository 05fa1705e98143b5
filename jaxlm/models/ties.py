"""Whether a checkpoint's last kernel is its table of tokens, as its files have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.safetensors import Tensors
from jaxlm.core.trees import BACKBONE
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import Family, Weight

ROWS = 4096
"""Compared at a time: a large table is not read whole."""
TABLE = "embeddings/tokens/embedding"
KERNEL, BIAS = "language/kernel", "language/bias"


def settle_tie(
    where: Path, family: Family, config: TransformerConfig, files: Tensors
) -> TransformerConfig:
    """The config of a checkpoint, untied where its files hold another last kernel.

    Files win over ``tie_word_embeddings=true``, as in transformers 5: a kernel that
    equals the table is the table, and one that differs is the model's own.

    Raises:
      UserError: one half of an encoder-decoder has a table of its own, as none of those
        that were published has.
    """
    check_copies(where, family, files)
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


def check_copies(where: Path, family: Family, files: Tensors) -> None:
    """Refuse a copy of the table of tokens that is no copy; transformers 5 reads it."""
    names = {family.canonical(name): name for name in files.names}
    table = next(row.theirs for row in family.weights if row.ours == TABLE)
    for copy in family.copies:
        if {copy, table} <= names.keys() and not same(files, names[copy], names[table]):
            raise UserError(
                f"{where}: {names[copy]} differs from {names[table]}: a table of tokens"
                " for one half alone is not supported; take a model that has one table"
            )


def stored_rows(
    family: Family, table: dict[str, Weight], tied: bool, files: Tensors
) -> dict[str, Weight]:
    """A table whose rows have those of their names that are in the files.

    As in transformers 5, a tied table of tokens may be there as the last kernel alone,
    and the last bias under the kernel's name, which wins where they differ.
    """
    names = {family.canonical(name): name for name in files.names}
    apart = {row.ours: row.theirs for row in family.untied}
    rows, ours = dict(table), f"{BACKBONE}/{TABLE}"
    if tied and ours in rows:
        spelt = [rows[ours].theirs, *([apart[KERNEL]] if KERNEL in apart else [])]
        there = [name for name in (*spelt, *family.copies) if name in names]
        rows[ours] = replace(rows[ours], theirs=(there or spelt)[0])
    if BIAS in rows and BIAS in apart:
        head = {row.ours: row.theirs for row in family.heads["language"]}
        there = [name for name in (apart[BIAS], head[BIAS]) if name in names]
        if len(there) == 2 and tied and same(files, *(names[name] for name in there)):
            there.reverse()
        if there:
            rows[BIAS] = replace(rows[BIAS], theirs=there[0])
    return rows


def same(files: Tensors, one: str, other: str) -> bool:
    """Whether two tensors have the same values."""
    if files.shape(one) != files.shape(other):
        return False
    if not files.shape(one):
        return np.array_equal(files.read(one), files.read(other))
    return all(
        np.array_equal(files.read(one, part), files.read(other, part))
        for start in range(0, files.shape(one)[0], ROWS)
        for part in [slice(start, start + ROWS)]
    )
