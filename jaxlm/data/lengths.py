"""How long every window is: what the order of data is planned from, kept on disk."""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

import jaxlm
from jaxlm.core.files import atomic_write_bytes, cache_directory
from jaxlm.core.types import Features

BROKEN = (
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for a file that is damaged or of another kind."""


@dataclass(frozen=True, eq=False)
class Table:
    """The windows of a data set, in order, without their content.

    ``lengths i32[W]`` in tokens; ``examples i64[W]``, the place of the record that a
    window is of: from 0 up, none left out. ``truncated`` counts the records that do not
    fit and were cut off.
    """

    lengths: np.ndarray
    examples: np.ndarray
    truncated: int

    @cached_property
    def starts(self) -> np.ndarray:
        """i64[N + 1]: record n has the windows ``starts[n]`` to ``starts[n + 1]``."""
        count = int(self.examples[-1]) + 1 if len(self.examples) else 0
        return np.searchsorted(self.examples, np.arange(count + 1))


def measure(encoded: Iterable[Sequence[Features]]) -> Table:
    """The table of all records' windows; goes over each record once.

    Raises:
      ValueError: a record has no window.
    """
    lengths: list[int] = []
    counts: list[int] = []
    truncated = 0
    for place, windows in enumerate(encoded):
        if not windows:
            raise ValueError(f"record {place} was encoded to no window")
        lengths.extend(window.length for window in windows)
        counts.append(len(windows))
        truncated += any(window.host.get("truncated") for window in windows)
    examples = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return Table(np.array(lengths, np.int32), examples, truncated)


def cache_file(digest: str) -> Path | None:
    """Where the table of the data set of this digest is kept; None: nowhere.

    Apart by version: another may measure other lengths of the same data.
    """
    version = f"jaxlm-{jaxlm.__version__}-tokenizers-{tokenizers.__version__}"
    try:
        return cache_directory() / "lengths" / version / f"{digest}.npz"
    except RuntimeError:  # a user without a home directory
        return None


def read_table(file: Path, digest: str, records: int) -> Table | None:
    """What ``write_table`` wrote for the data set, or None where there is no such file.

    A file that is damaged, or is not of this data set, is none either, which is said.
    """
    try:
        return from_bytes(file.read_bytes(), digest, records)
    except OSError:
        return None
    except BROKEN as problem:
        print(
            f"{file}: not the lengths of this data set ({problem}); measured again",
            file=sys.stderr,
        )
        return None


def from_bytes(content: bytes, digest: str, records: int) -> Table:
    """What ``to_bytes`` made of the table of this data set; else one of ``BROKEN``."""
    found = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError("is one array")
    return _checked(found, digest, records)


def _checked(found: Mapping[str, Any], digest: str, records: int) -> Table:
    """The arrays of a file as a table; ValueError where they do not fit."""
    if str(found["digest"]) != digest:
        raise ValueError("of another data set")
    names = ("lengths", "examples", "truncated")
    lengths, examples, truncated = (np.asarray(found[name]) for name in names)
    kinds = (lengths.dtype, examples.dtype, truncated.dtype.kind, truncated.shape)
    if kinds != (np.int32, np.int64, "i", ()):
        raise ValueError("of another kind")
    if lengths.ndim != 1 or lengths.shape != examples.shape:
        raise ValueError("of another shape")
    places, counts = np.unique(examples, return_counts=True)
    whole = np.array_equal(places, np.arange(records))
    if not whole or (lengths < 0).any() or not 0 <= truncated <= records:
        raise ValueError("of other records")
    if not np.array_equal(examples, np.repeat(places, counts)):
        raise ValueError("out of order")
    return Table(lengths, examples, int(truncated))


def write_table(file: Path, digest: str, table: Table) -> None:
    """Keep a table, whole or not at all; where it cannot be kept, do without."""
    with contextlib.suppress(OSError):  # read-only or full: the next run measures again
        atomic_write_bytes(file, to_bytes(digest, table))


def to_bytes(digest: str, table: Table) -> bytes:
    """A table and whose it is, for a file or for another process."""
    stream = io.BytesIO()
    np.savez(
        stream,
        lengths=table.lengths,
        examples=table.examples,
        truncated=np.int64(table.truncated),
        digest=np.array(digest),
    )
    return stream.getvalue()
