"""Parquet files to records, by batches, and never more than such a file should hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.types import Record
from jaxlm.data.columns import Columns, class_names, record, resolve

VALUES, LEAST_VALUES = 50, 2**22
"""Values that a byte of a file may hold, and those that any file may.

Parquet writes a value that is repeated once, so that a file of some kilobytes can be a
column of a billion rows.
"""
BYTES, LEAST_BYTES = 200, 2**28
"""Bytes that a byte of a file may be decoded to, and those that any file may."""


def read_parquet(path: Path, columns: Columns) -> Iterator[Record]:
    """Read the rows of a Parquet file; their numbers count from 1.

    Raises:
        UserError: the file is unsound, or decodes to far more than its size.
    """
    import pyarrow
    from pyarrow import parquet

    columns = {field: str(column) for field, column in columns.items()}
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            chosen = resolve(schema.names, columns, str(path))
            for name in chosen.values():
                if schema.names.count(name) > 1:
                    raise UserError(f"{path}: two columns have the name {name!r}")
            names = [str(name) for name in chosen.values()]
            classes = class_names(_features(schema.metadata or {}))
            number = 0
            for batch in _batches(path, file, names):
                for row in batch.to_pylist():
                    number += 1
                    yield record(row, chosen, f"{path}:{number}", classes)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a sound Parquet file: {reason}") from error


def _batches(path: Path, file: Any, names: list[str]) -> Iterator[Any]:
    """The batches of some columns, while they stay within bounds."""
    size = path.stat().st_size
    most = max(LEAST_BYTES, BYTES * size)
    most_values = max(LEAST_VALUES, VALUES * size)
    of = tuple(f"{name}." for name in names)  # as in "tokens.list.element"
    chunks = [
        group.column(place)
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups))
        for place in range(group.num_columns)
        if f"{group.column(place).path_in_schema}.".startswith(of)
    ]
    packed = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    values = sum(chunk.num_values for chunk in chunks)
    _check_size(path, values, most_values, "values")
    _check_size(path, packed, most, "bytes")
    total = 0
    # No value is longer than its column: so many rows of it are within bounds, too.
    rows = min(max(most // max(packed, 1), 1), 2**16)
    for batch in file.iter_batches(batch_size=rows, columns=names):
        total += batch.nbytes
        _check_size(path, total, most, "bytes")
        yield batch


def _check_size(path: Path, found: int, most: int, what: str) -> None:
    if found > most:
        raise UserError(
            f"{path}: its {path.stat().st_size:,} bytes decode to {found:,} {what} or"
            f" more; at most {most:,} are read: a decompression bomb?"
        )


def _features(metadata: Mapping[bytes, bytes]) -> Any:
    """What ``datasets`` wrote beside its table; None where it is of another form."""
    found: Any = json.loads(metadata.get(b"huggingface", b"{}"))
    for name in ("info", "features"):
        found = found.get(name) if isinstance(found, dict) else None
    return found
