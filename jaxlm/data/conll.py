"""CoNLL files: a token a line, its label in a column, a blank line after a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlm.core.errors import UserError
from jaxlm.core.types import Record
from jaxlm.data.columns import Columns
from jaxlm.data.lines import lines

_DOCUMENT = "-DOCSTART-"
_ENTITY_LABEL = re.compile(r"O$|[BIESLUM]-.")


def read_conll(path: Path, columns: Columns) -> Iterator[Record]:
    """Read sentences; the token is the first column, the label the last.

    ``columns`` may place them elsewhere. A file of one column has no labels. A line
    that starts with ``#`` and a space, and has another number of columns than the
    tokens, is a comment, as in CoNLL-U.
    """
    texts = [text.rstrip("\r\n") for _, text in lines(path)]
    layout = Layout.of(texts, _places(columns, path))
    layout.check(path)
    for number, text in enumerate(texts, 1):
        if "\r" in text:
            raise UserError(f"{path}:{number}: a CR inside a line; lines end in LF")
    has_documents = any(text.startswith(_DOCUMENT) for text in texts)
    # Most files mark the start of every document, Wikigold the border between two.
    first = next((text for text in texts if text.strip()), "")
    document = -1 if first.startswith(_DOCUMENT) else 0
    rows: list[tuple[str, ...]] = []
    start = 0
    for number, text in enumerate([*texts, ""], 1):
        if _is_token(text):
            row = layout.split(text)
            if len(row) == layout.width or not text.startswith("# "):
                start = start if rows else number
                rows.append(layout.cells(row, f"{path}:{number}"))
            continue
        if rows:
            made: Record = {"tokens": [row[0] for row in rows]}
            if layout.label is not None:
                made["labels"] = [row[1] for row in rows]
            if has_documents:
                made["document"] = document
            yield made | {"source": f"{path}:{start}"}
            rows = []
        document += text.startswith(_DOCUMENT)


def looks_like_conll(texts: Sequence[str], columns: Columns) -> bool:
    """Tell CoNLL by its first lines: equally many columns, labels such as O or B-X."""
    places = {name: at for name, at in columns.items() if isinstance(at, int)}
    layout = Layout.of(texts, places)
    rows = [
        layout.split(text)
        for text in texts
        if _is_token(text) and not text.startswith("# ")
    ]
    if layout.label is None or any(len(row) != layout.width for row in rows):
        return False
    return layout.label < layout.width and any(
        _ENTITY_LABEL.match(row[layout.label]) for row in rows
    )


class Layout(NamedTuple):
    """How the lines of one file are cut, as its first line with a token says."""

    tabs: bool
    width: int
    token: int
    label: int | None

    @classmethod
    def of(cls, texts: Sequence[str], places: dict[str, int]) -> Layout:
        tokens = [text for text in texts if _is_token(text)]
        # "# O" may be a token and "# text = ..." is not: another line decides.
        plain = (text for text in tokens if not text.startswith("# "))
        first = next(plain, tokens[0] if tokens else "")
        tabs = "\t" in first.rstrip()
        width = len(cls(tabs, 0, 0, None).split(first))
        last = width - 1 if width > 1 else None
        label = places.get("labels", places.get("label", last))
        return cls(tabs, width, places.get("tokens", 0), label)

    def check(self, path: Path) -> None:
        for column in (self.token, self.label):
            if self.width and column is not None and column >= self.width:
                raise UserError(
                    f"{path}: no column {column}; its lines have {self.width}, counted "
                    "from 0; name them, as in --config.data.columns='token=0,label=1'"
                )

    def split(self, text: str) -> list[str]:
        """Cut at tabs, or at runs of blanks; never at other white space (U+00A0)."""
        text = text.rstrip(" \t\r\n")
        return text.split("\t") if self.tabs else re.findall(r"[^ \t]+", text)

    def cells(self, row: Sequence[str], where: str) -> tuple[str, ...]:
        """Take (token, label), or (token,) where there are no labels."""
        if len(row) != self.width:
            raise UserError(
                f"{where}: {len(row)} columns where the first line with a token has "
                f"{self.width}"
            )
        wanted = [self.token] if self.label is None else [self.token, self.label]
        for column in wanted:
            if not row[column]:
                raise UserError(f"{where}: column {column} is empty")
        return tuple(row[column] for column in wanted)


def _is_token(text: str) -> bool:
    return bool(text.strip()) and not text.startswith(_DOCUMENT)


def _places(columns: Columns, path: Path) -> dict[str, int]:
    places = {}
    for field, column in columns.items():
        if field not in ("tokens", "labels", "label") or not isinstance(column, int):
            raise UserError(
                f"{path}: config.data.columns has {field}={column}, but CoNLL columns"
                " are told by their place, as in 'token=0,label=3'"
            )
        places[field] = column
    return places
