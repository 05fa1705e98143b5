"""What a user asks predictions for, as records without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.schema import show
from jaxlm.core.types import Record
from jaxlm.data.columns import identity
from jaxlm.data.words import split_words

FIELDS = ("id", "source", "text", "tokens")
"""What a prediction reads of an input that is a record."""


def as_records(inputs: Any, content: str) -> list[Record]:
    """Texts, lists of words or records, as records; ``content`` is what a task reads.

    Raises:
      UserError: an input is none of these, or lacks what the task reads.
    """
    if hasattr(inputs, "iterrows"):  # a DataFrame would give its columns' names
        raise UserError(
            "inputs are a table; give a list of its texts, as table['text'].tolist()"
        )
    try:
        found = list(inputs)
    except TypeError:
        raise UserError(
            f"inputs must be a list of texts, lists of words or records, not"
            f" {show(inputs)}"
        ) from None
    return [as_record(each, place, content) for place, each in enumerate(found)]


def as_record(given: Any, place: int, content: str) -> Record:
    """An input as a record without labels; of its own fields only known ones."""
    record: Record = {"id": str(place), "source": f"input {place + 1}"}
    if isinstance(given, Mapping):
        known = {name: given.get(name) for name in FIELDS}
        record |= {name: known[name] for name in FIELDS if known[name] is not None}
        record["source"] = str(record["source"])
    elif isinstance(given, str):
        record["text"] = given
    elif isinstance(given, Sequence) or hasattr(given, "tolist"):
        record["tokens"] = given
    else:
        raise UserError(
            f"{record['source']}: must be a text, a list of words or a record, not"
            f" {show(given)}"
        )
    where, text = record["source"], record.get("text")
    record["id"] = identity(record["id"], where)
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: text must be a string, not {show(text)}")
    if content == "tokens" and "tokens" not in record and text is not None:
        found = split_words(text)
        record["tokens"] = [word for word, _, _ in found]
        record["offsets"] = [(start, stop) for _, start, stop in found]
    words = record.get("tokens", ())
    words = words.tolist() if hasattr(words, "tolist") else words
    is_list = isinstance(words, Sequence) and not isinstance(words, str | bytes)
    if not is_list or not all(isinstance(word, str) for word in words):
        raise UserError(f"{where}: tokens must be strings, not {show(words)}")
    if "tokens" in record:
        record["tokens"] = list(words)
    if content not in record:
        wanted = "text or tokens" if content == "tokens" else "text"
        raise UserError(f"{where}: has no {wanted}, which this model reads")
    try:
        " ".join([text or "", *record.get("tokens", ())]).encode()
    except UnicodeEncodeError as problem:
        raise UserError(f"{where}: not valid Unicode text") from problem
    return record
