"""Files to records: CoNLL, JSONL, CSV, TSV, Parquet and running text."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.types import Record
from jaxlm.data.columns import Columns, record, resolve, show
from jaxlm.data.conll import looks_like_conll, read_conll
from jaxlm.data.lines import LONGEST, lines
from jaxlm.data.parquet import read_parquet

FORMATS = ("conll", "jsonl", "csv", "tsv", "parquet", "text")

_ENDINGS = {
    ".conll": "conll",
    ".iob": "conll",
    ".bio": "conll",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


def read(
    path: Path,
    format: str = "auto",
    columns: Columns | None = None,
    *,
    running: bool = False,
) -> Iterator[Record]:
    """Read one file, UTF-8 with or without a byte-order mark; lines end in LF or CRLF.

    ``format`` is one of `FORMATS` or ``auto`` (see `guess`); where ``running`` text is
    wanted, ``auto`` takes a file whose ending says nothing for that. ``columns`` is
    what `parse_columns` gives. Labels come as they are written; ids only where the file
    has them. CoNLL records of a file with ``-DOCSTART-`` lines have ``document``,
    counted from 0 over the file.

    Raises:
        UserError: a file that cannot be read, has nothing in it, or is unsound
            somewhere; with the file and, where there is one, the line.
    """
    _check_regular(path)
    columns = columns or {}
    if format == "auto":
        plain = running and path.suffix.lower() not in _ENDINGS
        format = "text" if plain and _head(path) != b"PAR1" else guess(path, columns)
    if format not in _READERS:
        raise UserError(
            f"config.data.format={format!r} is not known; use auto,"
            f" {', '.join(FORMATS)}"
        )
    empty = True
    for item in _READERS[format](path, columns):
        empty = False
        yield item
    if empty:
        raise UserError(f"{path}: is empty: no examples in it (read as {format})")


def guess(path: Path, columns: Columns | None = None) -> str:
    """Name the format of a file by its ending, or by its first lines.

    Lines of equally many columns of which the label column holds O, B-X and the like
    are CoNLL; a JSON object in the first line is JSONL.
    """
    ending = _ENDINGS.get(path.suffix.lower())
    if ending and ending != "tsv":
        return ending
    if _head(path) == b"PAR1":
        return "parquet"
    first = [text.rstrip("\r\n") for _, text in islice(lines(path), 500)]
    is_conll = looks_like_conll(first, columns or {})
    if ending == "tsv":  # many are CoNLL by another name, as BioBERT's
        has_sentences = any(not text.strip() for text in first)
        return "conll" if is_conll and has_sentences else "tsv"
    if not any(text.strip() for text in first):
        raise UserError(f"{path}: is empty: no examples in it")
    if next(text for text in first if text.strip()).lstrip().startswith("{"):
        return "jsonl"
    if is_conll:
        return "conll"
    raise UserError(
        f"{path}: the format cannot be told from the name or the first lines; name it: "
        f"--config.data.format={'|'.join(FORMATS)} (--format for evaluate's --data)"
    )


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _check_regular(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from error
    if stat.S_ISDIR(mode):
        raise UserError(
            f"{path}: is a directory; name a file, or a glob such as {path / '*.jsonl'}"
        )
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is not a regular file")


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Record]:
    columns = {field: str(column) for field, column in columns.items()}
    resolved: dict[tuple[str, ...], Columns] = {}
    for number, text in lines(path):
        if not text.strip():
            continue
        where = f"{path}:{number}"
        row = _parse_json(text, where)
        keys = tuple(row)
        if keys not in resolved:
            resolved[keys] = resolve(keys, columns, where)
        yield record(row, resolved[keys], where)


def _parse_json(text: str, where: str) -> dict[str, Any]:
    text = text.rstrip("\r\n")  # else what lacks at its end is at column 1
    if text.lstrip().startswith("["):
        raise UserError(
            f"{where}: a JSON array; write one object a line, as in: jq -c '.[]'"
        )
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at column {error.colno}"
        raise UserError(
            f"{where}: broken JSON: {problem}; one object a line is needed"
        ) from None
    except (ValueError, RecursionError) as error:  # endless digits, endless nesting
        raise UserError(f"{where}: broken JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON object is needed, not {show(row)}")
    return row


def _read_csv(path: Path, columns: Columns) -> Iterator[Record]:
    return _read_table(path, columns, csv.reader(_texts(path), strict=True))


def _read_tsv(path: Path, columns: Columns) -> Iterator[Record]:
    rows = csv.reader(_texts(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    return _read_table(path, columns, rows)


def _texts(path: Path) -> Iterator[str]:
    return (text for _, text in lines(path))


def _read_table(path: Path, columns: Columns, rows: Any) -> Iterator[Record]:
    names: list[str | int] = []
    chosen: Columns = {}
    for number, row in _rows(path, rows):
        where = f"{path}:{number}"
        if not names:
            is_header = not any(isinstance(place, int) for place in columns.values())
            names = list(row) if is_header else list(range(len(row)))
            chosen = resolve(names, columns, where)
            if len(set(names)) < len(names):
                raise UserError(f"{where}: two columns of one name: {', '.join(row)}")
            if is_header:
                continue
        if len(row) != len(names):
            raise UserError(
                f"{where}: {len(row)} fields where the first line has {len(names)}; "
                "a field that holds the separator needs quotes (CSV only)"
            )
        yield record(dict(zip(names, row, strict=True)), chosen, where)


def _rows(path: Path, rows: Any) -> Iterator[tuple[int, list[str]]]:
    """Number rows by their first line; quoted fields may run over several."""
    while True:
        start = rows.line_num + 1
        # The default refuses texts over 131,072 bytes; it is the whole process's, so
        # it is put back before anyone else reads.
        before = csv.field_size_limit(LONGEST)
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{start}: broken CSV: {error}") from None
        finally:
            csv.field_size_limit(before)
        if len(row) > 1 or any(cell.strip() for cell in row):  # no blank lines
            yield start, row


def _read_text(path: Path, columns: Columns) -> Iterator[Record]:
    if os.stat(path).st_size > LONGEST:
        raise UserError(
            f"{path}: {os.stat(path).st_size:,} bytes are too many for one text; at"
            f" most {LONGEST:,}: split it, as in: split -C {LONGEST >> 20}m"
        )
    text = "".join(line for _, line in lines(path))
    if text.strip():
        yield {"text": text, "source": str(path)}


_READERS = {
    "conll": read_conll,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": read_parquet,
    "text": _read_text,
}
