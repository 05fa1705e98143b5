"""A data set as the trainer sees it: records, their windows, and their lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from jaxlm.core.types import Features, Record


@dataclass(frozen=True)
class Dataset:
    """Records and the windows that they were encoded to."""

    records: Sequence[Record]
    windows: Sequence[Features]
    lengths: np.ndarray = field(repr=False)
    truncated: int = 0

    @property
    def tokens(self) -> int:
        """Real tokens of all windows."""
        return int(self.lengths.sum())

    @cached_property
    def digest(self) -> str:
        """A sha256 of what reaches the model: equal digests train alike."""
        sha = hashlib.sha256(self.lengths.tobytes())
        for window in self.windows:
            for fields in (window.tokens, window.example):
                for name in sorted(fields):
                    value = np.asarray(fields[name])
                    sha.update(f"{name} {value.dtype.str} {value.shape}".encode())
                    sha.update(value.tobytes())
        return sha.hexdigest()


def encode(
    records: Sequence[Record],
    encode_one: Callable[[Record, int], Iterable[Features]],
) -> Dataset:
    """Encode every record by the task's ``encode``; counts what was truncated."""
    windows: list[Features] = []
    truncated = 0
    for index, record in enumerate(records):
        mine = list(encode_one(record, index))
        truncated += any(window.host.get("truncated") for window in mine)
        windows.extend(mine)
    lengths = np.array([window.length for window in windows], dtype=np.int64)
    return Dataset(records, windows, lengths, truncated)


def by_example(windows: Sequence[Features]) -> Iterator[tuple[int, list[int]]]:
    """The places of each example's windows, in order of examples."""
    groups: dict[int, list[int]] = {}
    for place, window in enumerate(windows):
        groups.setdefault(window.host["index"], []).append(place)
    yield from sorted(groups.items())
