"""Inputs that look wrong and are not: they read as a clean file does.

``CLEAN`` is that file; each of ``SAME`` holds the same sentences.
"""

from __future__ import annotations

from pathlib import Path

CLEAN = b"Ada\tB-PER\nleft\tO\n\nNew\tB-LOC\nYork\tI-LOC\n"

SAME = {
    "a byte-order mark": b"\xef\xbb\xbf" + CLEAN,
    "CRLF": CLEAN.replace(b"\n", b"\r\n"),
    "a byte-order mark and CRLF": b"\xef\xbb\xbf" + CLEAN.replace(b"\n", b"\r\n"),
    "no end of the last line": CLEAN.rstrip(b"\n"),
    "blanks for tabs": CLEAN.replace(b"\t", b"  "),
    "blanks at the ends of lines": CLEAN.replace(b"\n", b" \t\n"),
    "empty sentences": b"\n\n" + CLEAN.replace(b"\n\n", b"\n \n\n\t\n\n") + b"\n\n\n",
    "comments": b"# id = 1\n" + CLEAN.replace(b"\n\n", b"\n\n# id = 2 of 2\n"),
    "an entity that begins with I": CLEAN.replace(b"B-PER", b"I-PER"),
    "an entity that goes on as another": CLEAN.replace(b"B-LOC", b"I-LOC"),
    "BIOES": CLEAN.replace(b"B-PER", b"S-PER").replace(b"I-LOC", b"E-LOC"),
}

TABLE = b"text,label\nAda left.,x\nNew York.,y\n"
SAME_TABLE = {
    "a byte-order mark": b"\xef\xbb\xbf" + TABLE,
    "CRLF": TABLE.replace(b"\n", b"\r\n"),
    "quotes": TABLE.replace(b"Ada left.", b'"Ada left."'),
    "empty lines": TABLE.replace(b"\n", b"\n\n"),
    "names in capitals": TABLE.replace(b"text,label", b"Text,LABEL"),
    "other columns": b"n,text,label\n1,Ada left.,x\n2,New York.,y\n",
}

WORDS = 100_000
LONG = b"Ada B-PER\n" + b"sleeps O\n" * (WORDS - 1)
"""One sentence: it is cut into windows."""


def write_oddities(folder: Path) -> str:
    """A data source of all that is harmless, the long sentence too."""
    for number, content in enumerate([*SAME.values(), LONG]):
        (folder / f"{number}.conll").write_bytes(content)
    return f"{folder}/*.conll"
