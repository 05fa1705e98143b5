"""What evaluate and predict are asked, of a run that is sound."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.cases import Case, flags


def data(name: str, content: bytes | str, *more: str) -> Callable[[Path], list[str]]:
    """A file for ``evaluate --data``."""

    def make(folder: Path) -> list[str]:
        text = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(text)
        return [f"--data={folder / name}", *more]

    return make


def lines(content: bytes | str) -> Callable[[Path], list[str]]:
    """A file for ``predict --input``."""

    def make(folder: Path) -> list[str]:
        text = content.encode() if isinstance(content, str) else content
        (folder / "a.txt").write_bytes(text)
        return [f"--input={folder / 'a.txt'}"]

    return make


def endless(folder: Path) -> list[str]:
    (folder / "a.txt").touch()
    os.truncate(folder / "a.txt", 2**40)
    return [f"--input={folder / 'a.txt'}"]


EVALUATE = [
    ("an unknown label",
     data("a.jsonl", '{"tokens": ["a"], "labels": ["O"]}\n'
                     '{"tokens": ["a"], "labels": ["B-X"]}'),
     "{folder}/a.jsonl:2: unknown label 'B-X'"),
    ("no labels", data("a.conll", "Ada\n"), "{folder}/a.conll:1: no labels"),
    ("texts", data("a.csv", "text,label\na,b\n"), "{folder}/a.csv:2: no labels"),
    ("a wrong format", data("a.conll", "a O\n", "--format=parquet"), "not a sound"),
    ("an unknown format", data("a.conll", "a O\n", "--format=xml"), "--format"),
    ("absent columns", data("a.jsonl", "{}", "--columns=tokens=x"), "a.jsonl:1: no"),
    ("no such file", flags("--data={folder}/none.conll"), "No such file"),
    ("no such sample", flags("--data=sample:no"), "sample:ner"),
    ("nothing", flags("--data= "), "--data is empty"),
    ("half a path", flags("--data=\udcff"), "is not UTF-8"),
    ("a format of no data", flags("--format=csv"), "--format describes --data"),
    ("an unknown split", flags("--split=dev"), "--split"),
    ("an empty split", flags("--split=test"), "config.data.test is empty"),
    ("an unknown step", flags("--step=many"), "allowed: best, last"),
    ("an absent step", flags("--step=99"), "99"),
    ("a key of the config", flags("--config.seed=1"), "reads the config of --workdir"),
]  # fmt: skip
PREDICT = [
    ("broken JSON", lines('Ada\n{"text": '), "{folder}/a.txt:2: starts with { but"),
    ("no text", lines('{"txt": "a"}'), "{folder}/a.txt:1: an object needs text"),
    ("a number for a text", lines('{"text": 3}'), "{folder}/a.txt:1: text must be"),
    ("a string of tokens", lines('{"tokens": "a b"}'), "{folder}/a.txt:1: tokens must"),
    ("half a character", lines('{"text": "\\ud800"}'), "{folder}/a.txt:1: not valid"),
    ("endless nesting", lines('{"text": ' + "[" * 100_000), "{folder}/a.txt:1: starts"),
    ("latin-1", lines("Ada\ncafé".encode("latin-1")), "{folder}/a.txt:2: not UTF-8"),
    ("no end of a line", endless, "{folder}/a.txt:1: a line of more than"),
    ("no such file", flags("--input={folder}/none"), "No such file"),
    ("a folder", flags("--input={folder}"), "Is a directory"),
    ("no end", flags("--input=/dev/zero"), "/dev/zero:1: a line of more than"),
    ("nothing", flags(), "--text"),
    ("text and input", flags("--text=a", "--input=b"), "not allowed with"),
    ("half a text", flags("--text=\udcff"), "is not UTF-8"),
    ("all steps", flags("--text=a", "--step=all"), "one checkpoint predicts"),
]  # fmt: skip

CASES = [
    *(
        Case(f"evaluate: {name}", make, (word,), door="evaluate")
        for name, make, word in EVALUATE
    ),
    *(
        Case(f"predict: {name}", make, (word,), door="predict")
        for name, make, word in PREDICT
    ),
]
