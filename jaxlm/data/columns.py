"""From a row of named columns to a record: which column is what, and is it sound."""

from __future__ import annotations

import math
import numbers
import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.types import Record

Columns = Mapping[str, str | int]
"""Field of a record -> the column that holds it: a name, or a place counted from 0."""

USUAL = {
    "id": ("id", "guid", "idx"),
    "tokens": ("tokens", "words"),
    "labels": ("labels", "ner_tags", "tags"),
    "text": ("text", "sentence", "sentence1", "review", "content", "utterance"),
    "text_pair": ("text_pair", "sentence2"),
    "label": ("label", "category", "intent", "class", "sentiment", "topic", "labels"),
}
"""The column names that need no configuration, in order of preference; any case."""

_TOKEN_FIELDS = {"tokens", "labels"}
_TEXT_FIELDS = {"text", "text_pair", "label"}


def show(value: object) -> str:
    """Write a value for a one-line message: quoted, escaped and not long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return " ".join(short.repr(value).split())


def parse_columns(columns: str) -> dict[str, str | int]:
    """Read ``text=review,label=stars`` or ``text=1,label=0``.

    Fields are the keys of `USUAL`; ``token`` is accepted for ``tokens``, and with it
    ``label`` for ``labels``.
    """
    parsed: dict[str, str | int] = {}
    for part in filter(None, (part.strip() for part in columns.split(","))):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        field = "tokens" if field == "token" else field
        if not equals or not column or field not in USUAL or field in parsed:
            raise UserError(
                f"config.data.columns={columns!r}: {part!r} is not understood; write"
                f" each of {', '.join(USUAL)}"
                " at most once, as 'text=review,label=stars'"
            )
        parsed[field] = int(column) if re.fullmatch("[0-9]{1,9}", column) else column
    if "tokens" in parsed and "label" in parsed and "labels" not in parsed:
        parsed["labels"] = parsed.pop("label")
    if _TOKEN_FIELDS & set(parsed) and _TEXT_FIELDS & set(parsed):
        raise UserError(
            f"config.data.columns={columns!r} mixes fields of token records (tokens,"
            " labels) and of text records (text, text_pair, label); name one kind"
        )
    if len({type(column) for column in parsed.values()}) > 1:
        raise UserError(
            f"config.data.columns={columns!r} mixes names and numbers; use names for a"
            " file with a header line, numbers for one without"
        )
    return parsed


def resolve(
    names: Collection[str | int], columns: Columns, where: str
) -> dict[str, str | int]:
    """Choose the column of every field that rows with these column names have.

    Columns named by the user come first, then the `USUAL` names. A row with both tokens
    and text is a token record where it also has labels for the tokens, else a text
    record; naming a field in ``columns`` decides it.
    """
    spelled = {str(name).strip().lower(): name for name in reversed(list(names))}
    found = dict(columns)
    for field, usual in USUAL.items():
        free = (spelled[name] for name in usual if name in spelled)
        free = (name for name in free if name not in columns.values())
        if field not in found and (name := next(free, None)) is not None:
            found[field] = name
    if set(columns) & (_TOKEN_FIELDS | _TEXT_FIELDS):
        kind = "tokens" if set(columns) & _TOKEN_FIELDS else "text"
    else:
        is_tokens = "labels" in found or "text" not in found
        kind = "tokens" if "tokens" in found and is_tokens else "text"
    absent = [name for name in columns.values() if name not in names]
    if absent or kind not in found:
        raise UserError(_missing(names, columns, absent, where))
    fields = {"id"} | (_TOKEN_FIELDS if kind == "tokens" else _TEXT_FIELDS)
    return {field: name for field, name in found.items() if field in fields}


def record(
    row: Mapping[Any, Any],
    chosen: Columns,
    source: str,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Record:
    """Build a checked record of one row; ``classes`` names integer labels by column.

    An empty or null label or id counts as absent.
    """
    values = {field: row.get(column) for field, column in chosen.items()}
    names = {field: (classes or {}).get(str(name)) for field, name in chosen.items()}
    made: Record = {}
    if values.get("id") not in (None, ""):
        made["id"] = identity(values["id"], source)
    if "tokens" in chosen:
        made["tokens"] = _tokens(values["tokens"], source)
        if values.get("labels") is not None:
            labels = _labels(values["labels"], names["labels"], source)
            if len(labels) != len(made["tokens"]):
                raise UserError(
                    f"{source}: {len(made['tokens'])} tokens but {len(labels)} labels; "
                    "every token needs one"
                )
            made["labels"] = labels
    else:
        made["text"] = _text(values["text"], "text", source)
        if values.get("text_pair") is not None:
            made["text_pair"] = _text(values["text_pair"], "text_pair", source)
        if (label := _label(values.get("label"), names.get("label"), source)) != "":
            made["label"] = label
    made["source"] = source
    return made


def class_names(features: Any) -> dict[str, list[str]]:
    """Find the names behind integer labels in ``datasets.Features.to_dict()``.

    The same JSON lies in the metadata of Parquet files that ``datasets`` wrote; what is
    not of its form has no names.
    """
    found = {}
    if not isinstance(features, Mapping):
        return found
    for column, feature in features.items():
        # Sequence(ClassLabel) is {"feature": {...}} or, in older files, a bare list.
        inner = feature[0] if isinstance(feature, list) and feature else feature
        if isinstance(inner, Mapping):
            inner = inner.get("feature", inner)
        if isinstance(inner, Mapping) and inner.get("_type") == "ClassLabel":
            names = inner.get("names")
            if isinstance(names, list) and all(isinstance(n, str) for n in names):
                found[column] = names
    return {column: names for column, names in found.items() if names}


def _missing(
    names: Collection[str | int],
    columns: Columns,
    absent: Sequence[str | int],
    where: str,
) -> str:
    # Without a header line these are the first line's values, however long.
    cells = (str(name)[:40] for name in names)
    shown = (cell if cell.isprintable() else show(cell) for cell in cells)
    there = ", ".join(shown) or "none"
    if absent and all(isinstance(column, int) for column in columns.values()):
        what = f"no column {absent[0]} (config.data.columns counts from 0)"
    elif absent:
        what = f"no column {str(absent[0])!r}, which config.data.columns names"
    else:
        what = "no column of tokens or text"
    return (
        f"{where}: {what}; there are: {there}; name them, as in "
        "--config.data.columns='text=review,label=stars' (tokens=, labels= for token "
        "labels; 'text=1,label=0' where a file has no header line)"
    )


def identity(value: Any, source: str) -> str:
    """An id of a record as a string, checked."""
    if isinstance(value, bool) or not isinstance(value, str | numbers.Integral):
        raise UserError(f"{source}: id {show(value)} must be a string or whole number")
    return _unicode(str(value), "id", source)


def _text(value: Any, field: str, source: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{source}: {field} {show(value)} must be a non-empty string")
    return _unicode(value, field, source)


def _tokens(value: Any, source: str) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(
            f"{source}: tokens {show(value)} must be a non-empty list of strings"
            " (JSONL and Parquet hold lists; CoNLL has one token a line)"
        )
    for token in value:
        if not isinstance(token, str) or not token:
            raise UserError(f"{source}: token {show(token)} must be a non-empty string")
        _unicode(token, "token", source)
    return list(value)


def _labels(value: Any, names: Sequence[str] | None, source: str) -> list[str]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{source}: labels {show(value)} must be a list, one a token")
    labels = [_label(label, names, source) for label in value]
    if "" in labels:
        raise UserError(f"{source}: token {labels.index('')} has an empty label")
    return labels


def _label(value: Any, names: Sequence[str] | None, source: str) -> str:
    """A label as a string; empty where there is none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)  # pandas writes a column of integers with gaps as floats
    if isinstance(value, int) and names is not None:
        if value == -1:  # the Hub's mark for "not labelled", as in the tests of GLUE
            return ""
        if not 0 <= value < len(names):
            raise UserError(f"{source}: label {value} is none of 0..{len(names) - 1}")
        return names[value]
    if not isinstance(value, str | int):
        raise UserError(
            f"{source}: label {show(value)} must be a string or a whole number"
        )
    return _unicode(str(value), "label", source)


def _unicode(text: str, field: str, source: str) -> str:
    # JSON can spell half a surrogate pair, which no tokenizer can encode.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{source}: {field} {show(text)} holds half a surrogate pair, which is not "
            "Unicode text; remove it"
        ) from None
    return text
