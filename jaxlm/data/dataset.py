"""A data set as the trainer sees it: records, a table of lengths, and windows.

Windows are made when they are asked for, so that a process encodes the rows that it
trains on and no others, once the table is known.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.hosts import here
from jaxlm.core.types import Features, Record
from jaxlm.data.lengths import (
    Table,
    cache_file,
    from_bytes,
    measure,
    read_table,
    to_bytes,
    write_table,
)

KEPT_BYTES = 512 * 2**20
"""Memory for the encoded records of a data set: small data is encoded only once."""
UNSEEN = ("source", "id")
"""Fields of a record that say where it is from, not what is learned from it."""

EncodeOne = Callable[[Record, int], Iterable[Features]]


class Dataset:
    """Records, the table of their windows' lengths, and the windows.

    ``encode_one`` is the task's ``encode``; ``encoding`` names, as a digest does, how
    it makes windows of records. ``cached`` takes the table from the cache on disk, or
    leaves it there; else every record is encoded now. Of several processes, the first
    does so, and the others are given its table; their records must be the same.

    Raises:
      UserError: another process has other records.
    """

    def __init__(
        self,
        records: Sequence[Record],
        encode_one: EncodeOne,
        *,
        encoding: str = "",
        cached: bool = False,
    ):
        self.records, self.encoding = records, encoding
        encoded = Encoded(records, encode_one)
        file = cache_file(self.content) if cached else None
        hosts = here()
        if hosts.count > 1:
            source = records[0].get("source", "") if records else "nothing"
            hosts.same(f"the data from {source} on", self.content)
        if hosts.first:
            self.table = self._find_table(encoded, file)
        if hosts.count > 1:
            content = to_bytes(self.content, self.table) if hosts.first else None
            self.table = from_bytes(hosts.share(content), self.content, len(records))
        self.windows = Windows(encoded, self.table, file)

    def _find_table(self, encoded: Encoded, file: Path | None) -> Table:
        table = read_table(file, self.content, len(self.records)) if file else None
        if table is None:
            table = measure(encoded(place) for place in range(len(self.records)))
            if file:
                write_table(file, self.content, table)
        return table

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every window, i32[W]."""
        return self.table.lengths

    @property
    def truncated(self) -> int:
        """How many records were cut off."""
        return self.table.truncated

    @property
    def tokens(self) -> int:
        """Real tokens of all windows."""
        return int(self.lengths.sum(dtype=np.int64))

    @cached_property
    def digest(self) -> str:
        """A sha256 of content and lengths: equal digests are planned alike."""
        sha = hashlib.sha256(self.content.encode())
        sha.update(self.lengths.tobytes() + self.table.examples.tobytes())
        return sha.hexdigest()

    @cached_property
    def content(self) -> str:
        """A sha256 of the records and of how they become windows."""
        sha = hashlib.sha256(f"{self.encoding}\n".encode())
        # One encoder for all records: json.dumps makes one for each, which costs half
        # as much again.
        plain = json.JSONEncoder(sort_keys=True, check_circular=False, default=str)
        for record in self.records:
            content = {name: record[name] for name in record if name not in UNSEEN}
            sha.update(f"{plain.encode(content)}\n".encode())
        return sha.hexdigest()


class Encoded:
    """The windows of each record, encoded when asked for, by any thread.

    The newest are kept, up to ``KEPT_BYTES``.
    """

    def __init__(self, records: Sequence[Record], encode_one: EncodeOne):
        self.records, self._encode_one = records, encode_one
        self._kept: OrderedDict[int, tuple[list[Features], int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, place: int) -> list[Features]:
        """The windows of the record at a place."""
        with self._lock:
            kept = self._kept.get(place)
        if kept is not None:
            return kept[0]
        windows = list(self._encode_one(self.records[place], place))
        self._keep(place, windows)
        return windows

    def _keep(self, place: int, windows: list[Features]) -> None:
        size = sum(map(bytes_of, windows))
        with self._lock:
            if place in self._kept:  # another thread was faster
                return
            self._kept[place] = (windows, size)
            self._bytes += size
            while self._bytes > KEPT_BYTES:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed


def bytes_of(window: Features) -> int:
    """About how much memory a window takes; of short ones most is not their tokens."""
    fields = (window.tokens, window.example, window.host)
    values = [value for group in fields for value in group.values()]
    return sum(map(sys.getsizeof, (window, vars(window), *fields, *values)))


class Windows(Sequence[Features]):
    """The windows that a table lists, in its order; ``file`` is where it was kept.

    Raises:
      UserError: a record is encoded to other windows than the table says.
    """

    def __init__(self, encoded: Encoded, table: Table, file: Path | None):
        self._encoded, self._table, self._file = encoded, table, file

    def __len__(self) -> int:
        return len(self._table.lengths)

    def __iter__(self) -> Iterator[Features]:
        # Not that of Sequence, which takes an IndexError of the task for the end.
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Features:
        place = range(len(self))[place]
        example = int(self._table.examples[place])
        start, stop = self._table.starts[example : example + 2].tolist()
        windows = self._encoded(example)
        if len(windows) != stop - start:
            raise self._stale(example)
        window = windows[place - start]
        if window.length != self._table.lengths[place]:
            raise self._stale(example)
        return window

    def _stale(self, example: int) -> Exception:
        source = self._encoded.records[example].get("source", f"record {example}")
        if self._file is None:
            return ValueError(f"{source}: each time encoded to other windows")
        return UserError(
            f"{self._file}: the lengths in this file are not those that {source} has"
            " now; delete the file"
        )
