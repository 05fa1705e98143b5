"""UTF-8 text files, line by line, with the line to blame."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from jaxlm.core.errors import UserError

_MAGIC = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"\xff\xfe": "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    b"PAR1": "is Parquet; read it with --config.data.format=parquet",
}
_BOM = b"\xef\xbb\xbf"
LONGEST = 2**26
"""Bytes of a line: what has no end of line is not read into memory whole."""


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read a text file as (number from 1, line with its end).

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8 text.
    """
    try:
        with open(path, "rb") as file:
            # Only \n ends a line: U+2028, U+0085 and the like are parts of tokens.
            for number, raw in bounded(file, str(path)):
                if number == 1:
                    raw = raw.removeprefix(_BOM)
                    for magic, problem in _MAGIC.items():
                        if raw.startswith(magic):
                            raise UserError(f"{path}: {problem}")
                    if b"\r" in raw and not raw.endswith(b"\n"):
                        raise UserError(
                            f"{path}: its lines end in CR alone, as on an old Mac;"
                            " convert it: tr '\\r' '\\n'"
                        )
                yield number, _decode(raw, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def bounded(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """The lines of an open file as (number from 1, bytes with their end).

    Raises:
        UserError: a line is longer than `LONGEST`.
    """
    for number, raw in enumerate(iter(partial(file.readline, LONGEST + 1), b""), 1):
        if len(raw) > LONGEST:
            raise UserError(
                f"{name}:{number}: a line of more than {LONGEST:,} bytes; is this a"
                " text file with an example, or a word, on each line?"
            )
        yield number, raw


def _decode(raw: bytes, where: str) -> str:
    if b"\0" in raw:
        raise UserError(f"{where}: holds a NUL byte, so this is not a text file")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: is not UTF-8: byte 0x{raw[error.start]:02x} at offset "
            f"{error.start} of the line; convert the file, as in: iconv -f LATIN1 -t "
            "UTF-8"
        ) from None
