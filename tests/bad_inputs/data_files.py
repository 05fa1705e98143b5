"""Data files of every format: what is in them, and what stands where one should."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from tests.bad_inputs.cases import NER, TOPICS, Case, flags


def file(name: str, content: bytes | str, *more: str) -> Callable[[Path], list[str]]:
    """A file that the config names as training data."""

    def make(folder: Path) -> list[str]:
        text = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(text)
        return [f"--config.data.train={folder / name}", *more]

    return make


def table(columns: Any, **options: Any) -> Callable[[Path], list[str]]:
    """A Parquet file of columns, or of what is called to make them."""

    def make(folder: Path) -> list[str]:
        made = pyarrow.table(columns() if callable(columns) else columns)
        parquet.write_table(made, folder / "a.parquet", **options)
        return [f"--config.data.train={folder / 'a.parquet'}"]

    return make


def one_list(length: int) -> pyarrow.Array:
    """A single sentence of so many words, all of them null."""
    ends = pyarrow.array([0, length], pyarrow.int32())
    return pyarrow.ListArray.from_arrays(ends, pyarrow.nulls(length, pyarrow.string()))


def long_texts(count: int) -> pyarrow.Array:
    """One text of 256 KiB, so many times."""
    places = pyarrow.array([0] * count, pyarrow.int32())
    return pyarrow.DictionaryArray.from_arrays(places, pyarrow.array(["a" * 2**18]))


def sparse(name: str) -> Callable[[Path], list[str]]:
    """A terabyte of nothing, which takes no room on the disk."""

    def make(folder: Path) -> list[str]:
        (folder / name).touch()
        os.truncate(folder / name, 2**40)
        return [f"--config.data.train={folder / name}"]

    return make


def linked(target: str | None) -> Callable[[Path], list[str]]:
    """A link: to another place, or (None) to itself."""

    def make(folder: Path) -> list[str]:
        (folder / "a.csv").symlink_to(target or folder / "a.csv")
        return [f"--config.data.train={folder / 'a.csv'}"]

    return make


def damaged(folder: Path) -> list[str]:
    """What ``save_to_disk`` wrote, cut off."""
    (folder / "state.json").write_text("{")
    return [f"--config.data.train={folder}"]


def unknown_label(folder: Path) -> list[str]:
    """Validation data with a label that the training data lacks."""
    (folder / "v.jsonl").write_text(json.dumps({"tokens": ["a"], "labels": ["B-X"]}))
    given = f"--config.data.validation={folder / 'v.jsonl'}"
    return ["--config.data.train=sample:ner[:9]", given]


CONLL = [
    ("a column too few", "a O\nb\n", ":2: 1 columns where the first line with a token"),
    ("a column too many", "a O\nNew York B-LOC\n", ":2: 3 columns"),
    ("a tab too many", "a\tO\nb\t\tO\n", ":2: 3 columns where"),
    ("no token before the tab", "a\tO\n\tO\n", ":2: column 0 is empty"),
    ("a token without a label", "Ada B-PER\nleft O\n\nParis\n", ":4: 1 columns"),
    ("an unknown prefix", "Ada B-PER\nleft X-LOC\n", ":1: label 'X-LOC'"),
    ("a prefix without a type", "Ada B-\n", ":1: label 'B-' names no entity type"),
    ("a type without a prefix", "Ada B-PER\nleft LOC\n", ":1: label 'LOC'"),
    ("a prefix behind", "Ada PER-B\nleft O\n", "as it needs to be"),
    ("an underscore", "Ada B_PER\n", ":1: label 'B_PER' is not written as B-PER"),
    ("numbers for labels", "Ada 3\nleft 0\n", ""),
    ("only one label", "Ada O\nleft O\n", "at least 1"),
    ("no labels at all", "Ada\nleft\n", ":1: no labels"),
    ("a CR inside a line", "Ada B-PER\r\nx O\ry O\n", ":2: a CR inside a line"),
    ("CR alone", "Ada B-PER\rx O\r\rNew B-LOC\r", ": its lines end in CR alone"),
    ("nothing", "", ": is empty"),
    ("blank lines alone", "\n\n \n", ": is empty"),
    ("latin-1", "café B-PER\n".encode("latin-1"), ":1: is not UTF-8: byte 0xe9 at"),
    ("UTF-16", "a O\n".encode("utf-16"), ": is UTF-16; convert it: iconv"),
    ("a NUL byte", "a O\n\0 O\n", ":2: holds a NUL byte"),
    ("binary", b"Ada B-PER\n\x00\x9f\xff\n", ":2: "),
    ("gzip", b"\x1f\x8b\x08junk", ": is compressed with gzip; unpack it"),
    ("zip", b"PK\x03\x04junk", ": is a zip archive; unpack it"),
    ("Parquet", b"PAR1junk", ": is Parquet"),
]  # fmt: skip
JSONL = [
    ("no value", '{"text": "a"}\n{"text": }', ":2: broken JSON: Expecting value at"),
    ("cut off", '{"tokens":["a"],"labels":["O"]}\n{"tok', ":2: broken JSON"),
    ("an array", '[{"text": "a"}]', ":1: a JSON array; write one object a line"),
    ("a string", '"a"', ":1: a JSON object is needed, not 'a'"),
    ("endless nesting", '{"text": ' + "[" * 100_000, ":1: broken JSON"),
    ("endless digits", '{"text": ' + "9" * 5000, ":1: broken JSON"),
    ("a misspelt column", '{"txt": "a"}', ":1: no column of tokens or text; there are"),
    ("an empty text", '{"text": ""}', ":1: text '' must be a non-empty string"),
    ("a number for a text", '{"text": 3}', ":1: text 3 must be"),
    ("half a character", '{"text": "\\ud800"}', ":1: text '\\ud800' holds half"),
    ("a list for a label", '{"text": "a", "label": [1]}', ":1: label [1] must be"),
    ("a fraction for a label", '{"text": "a", "label": 1.5}', ":1: label 1.5 must be"),
    ("a string of tokens", '{"tokens": "a b"}', ":1: tokens 'a b' must be a non-empty"),
    ("an empty sentence", '{"tokens": []}', ":1: tokens [] must be"),
    ("an empty token", '{"tokens": ["a", ""]}', ":1: token '' must be a non-empty"),
    ("a number for a token", '{"tokens": [1]}', ":1: token 1 must be"),
    ("a label too few", '{"tokens": ["a"], "tags": []}', ":1: 1 tokens but 0 labels"),
    ("no label", '{"tokens": ["a"], "tags": [null]}', ":1: token 0 has an empty label"),
    ("a sentence for labels", '{"tokens": ["a"], "tags": "O"}', ":1: labels 'O' must"),
    ("labels that are missing", '{"tokens": ["a"]}', ":1: no labels"),
    ("texts for words", '{"text": "a", "label": "b"}', ":1: no labels"),
    ("labels in some lines", '{"tokens":["a"],"labels":["O"]}\n{"tokens":["a"]}',
     ":2: has no 'labels', but"),
    ("a list for an id", '{"id": [1], "tokens": ["a"], "labels": ["O"]}', ":1: id [1]"),
    ("nothing", "", ": is empty"),
    ("binary", bytes(range(256)) * 9, ":1: "),
    ("UTF-16", '{"text": "a"}'.encode("utf-16"), ": is UTF-16"),
    ("CR alone", '{"text": "a"}\r{"text": "b"}\r', ": its lines end in CR alone"),
]  # fmt: skip
CSV = [
    ("a field too many", "text,label\na,b,c\n", ":2: 3 fields where the first line"),
    ("a field too few", "text,label\n\na\n", ":3: 1 fields"),
    ("an open quote", 'text,label\na,b\n"c,d\n\n', ":3: broken CSV: unexpected end"),
    ("semicolons", "a;b\n1;2\n", ":1: no column of tokens or text; there are: a;b"),
    ("two columns of a name", "text,text\na,b\n", ":1: two columns of one name"),
    ("a header alone", "text,label\n", ": is empty"),
    ("an empty text", "text,label\n ,b\n", ":2: text ' ' must be a non-empty string"),
    ("an empty label", "text,label\na,\nb,x\n", ":2: "),
    ("a list for words", 'tokens,labels\n"[a, b]","[O, O]"\n', ":2: tokens '[a, b]'"),
    ("a NUL byte", "text,label\na\0,b\n", ":2: holds a NUL byte"),
    ("latin-1", "text,label\ncafé,x\n".encode("latin-1"), ":2: is not UTF-8"),
    ("one label", "text,label\na,x\nb,x\n", "only the label 'x'"),
    ("nothing", "", ": is empty"),
]  # fmt: skip
TSV = [
    ("commas", "text,label\na,b\n", ":1: no column of tokens or text"),
    ("a field too many", "text\tlabel\na\tb\tc\n", ":2: 3 fields"),
    ("blanks for tabs", "text label\na b\n", ":1: no column of tokens or text"),
    ("UTF-16", "text\tlabel\n".encode("utf-16"), ": is UTF-16"),
]  # fmt: skip
COLUMNS = [
    ("a.csv", "text,y\na,b\n", "label=stars", ":1: no column 'stars', which config."),
    ("a.csv", "text,label\n", "text=2", ":1: no column 2 (config.data.columns counts"),
    ("a.conll", "a O\n", "label=3", ": no column 3; its lines have 2"),
    ("a.conll", "a O\n", "label=ner", "told by their place"),
    ("a.jsonl", '{"text": "a"}', "text=review", ":1: no column 'review'"),
]
WORDS, OUTSIDE = pyarrow.array([["a", "b"]]), pyarrow.array([["O", "O"]])
MANY = 2**25  # of what Parquet writes once
PARQUET = [
    ("junk", file("a.parquet", bytes(range(256))), "not a sound Parquet file"),
    ("a name alone", file("a.parquet", "PAR1 nothing"), "not a sound Parquet file"),
    ("a misspelt column", table({"tokenz": WORDS}), "no column of tokens or text"),
    ("labels that are missing", table({"tokens": WORDS}), ":1: no labels"),
    ("a label too few", table({"tokens": WORDS, "tags": [["O"]]}), ":1: 2 tokens but"),
    ("a null", table({"tokens": [["a", None]], "tags": OUTSIDE}), ":1: token None"),
    ("numbers for words", table({"tokens": [[1, 2]], "tags": OUTSIDE}), ":1: token 1"),
    ("no rows", table({"tokens": WORDS[:0], "tags": OUTSIDE[:0]}), "is empty"),
    ("a bomb of rows", table(lambda: {"text": pyarrow.nulls(MANY, pyarrow.string())}),
     "33,554,432 values or more; at most 4,194,304 are read"),
    ("a bomb of words", table(lambda: {"tokens": one_list(MANY)}),
     "values or more; at most 4,194,304 are read"),
    ("a bomb of one long text",
     table(lambda: {"text": long_texts(2**12)}, store_schema=False),
     "bytes or more; at most 268,435,456 are read"),
]  # fmt: skip
PLACES = [
    ("no such file", flags("--config.data.train={folder}/none.csv"), "No such file"),
    ("a folder", flags("--config.data.train={folder}"), "is a directory"),
    ("a device", flags("--config.data.train=/dev/zero"), "not a regular file"),
    ("a link to itself", linked(None), "a.csv: cannot be read: Too many levels"),
    ("a link to nothing", linked("/nowhere"), "a.csv: cannot be read: No such file"),
    ("a link to a device", linked("/dev/zero"), "not a regular file"),
    ("a name too long", flags("--config.data.train=" + "a" * 300), "name too long"),
    ("a source without end", flags("--config.data.train=" + "a[:9]" * 2000), "4,096"),
    ("a glob of nothing", flags("--config.data.train={folder}/**/*.csv"), "no file"),
    ("a sparse CoNLL file", sparse("a.conll"), "a.conll:1: a line of more than"),
    ("a sparse JSONL file", sparse("a.jsonl"), "a.jsonl:1: a line of more than"),
    ("a sparse CSV file", sparse("a.csv"), "a.csv:1: a line of more than"),
    ("a sparse Parquet file", sparse("a.parquet"), "not a sound Parquet file"),
    ("an unknown sample", flags("--config.data.train=sample:pos"), "sample:ner"),
    ("an empty slice", flags("--config.data.train=sample:ner[9:9]"), "leaves nothing"),
    ("a weight of nothing",
     flags("--config.data.train=sample:ner@0,sample:ner@1"), "weight 0 of"),
    ("a part without a weight", flags("--config.data.train=a.csv,b.csv@1"), "a weight"),
    ("a damaged data set", damaged, "cannot be loaded as a save_to_disk directory"),
    ("an unknown label in validation", unknown_label, "v.jsonl:1: unknown label 'B-X'"),
    ("a sentence beyond the row",
     file("a.conll", "Ada B-PER\n\n" + "x O\n" * 200, "--config.data.overflow=error"),
     "a.conll:3: "),
]  # fmt: skip


def placed(name: str, problem: str) -> str:
    """A message's words: what starts with a colon follows the file's name."""
    return f"{{folder}}/{name}{problem}" if problem.startswith(":") else problem


def texts(ending: str, rows: list[tuple], config: str) -> Iterator[Case]:
    """The cases of one text format."""
    name = f"a.{ending}"
    for what, text, problem in rows:
        words = (placed(name, problem),)
        yield Case(f"{ending}: {what}", file(name, text), words, config=config)


CASES = [
    *texts("conll", CONLL, NER),
    *texts("jsonl", JSONL, NER),
    *texts("csv", CSV, TOPICS),
    *texts("tsv", TSV, TOPICS),
    *(
        Case(
            f"columns {columns}: {name}",
            file(name, text, f"--config.data.columns={columns}"),
            (placed(name, problem),),
        )
        for name, text, columns, problem in COLUMNS
    ),
    *(
        Case(f"parquet: {name}", make, ("{folder}/a.parquet", problem))
        for name, make, problem in PARQUET
    ),
    *(Case(f"data: {name}", make, (problem,)) for name, make, problem in PLACES),
]
