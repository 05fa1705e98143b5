"""Source strings to records: samples, files, the hub, mixtures and slices of them."""

from __future__ import annotations

import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.types import Record
from jaxlm.data import formats, hub, tags
from jaxlm.data.columns import Columns, parse_columns, record, resolve, show

SAMPLE = files("jaxlm.data") / "sample"
"""Where the sample data lies: ``{train,validation,test}.jsonl``."""

_SAMPLES: dict[str, Columns] = {
    "ner": {"id": "id", "tokens": "tokens", "labels": "labels"},
    "topics": {"id": "id", "text": "text", "label": "register"},
    "text": {"id": "id", "text": "text", "label": "register"},
}
LONGEST = 4096
"""Characters of a source string."""
_SPLITS = ("train", "validation", "test")
_SLICE = re.compile(r"(.*)\[(-?\d{1,18})?:(-?\d{1,18})?\]", re.DOTALL)
_WEIGHTED = re.compile(
    r"(.+)@([+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan))", re.DOTALL
)
_RECURSIVE = re.compile(r"(^/?|/)\*\*(?:/|$)")
"""``**`` as a whole part of a path."""


def load(
    source: str | Sequence[Mapping[str, Any]],
    split: str,
    *,
    format: str = "auto",
    columns: str = "",
    scheme: str = "auto",
    running: bool = False,
) -> list[Record]:
    """Load the records of one data set.

    ``source`` is a sequence of dicts, or a string:

    - ``sample:ner``, ``sample:topics``, ``sample:text``, each with ``:split`` or not;
    - ``hf:name[/subset][@revision][:split]`` (see `hub.from_hub`);
    - a path or a glob, ``~`` expanded, files in sorted order; or a directory that
      ``save_to_disk`` of ``datasets`` wrote;
    - ``a@0.7,b@0.3``: two or more of these mixed (see `mix`). A comma separates only
      where every part ends in ``@<number>``;
    - any of these with ``[start:stop]`` at its end, as Python slices a list. It binds
      to the whole mixture at the end of one, to a part before the part's weight.

    ``split`` is used where the string names none; files have no splits. ``format``,
    ``columns`` and ``scheme`` are those of `DataConfig` and hold for every part;
    ``running``: see `formats.read`.

    Every record has ``source``, either ``tokens`` or ``text``, and a unique ``id``: its
    own where it has one, else its place (from 0) in its set before slicing. If two
    records of a set or of a mixture have the same id, all of it is numbered by place.
    Labels of tokens are IOB2 (`tags.normalise`, over the set before slicing).

    Raises:
        UserError: a source that is not there, is unsound or is empty.
    """
    loader = _Loader(split, format, parse_columns(columns), scheme, running)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str):
        return loader.load(source)
    if isinstance(source, Mapping) or not isinstance(source, Sequence):
        raise UserError(
            f"a data source must be a string or a list of dicts, not {show(source)}"
        )
    return loader.finish(_from_memory(source, loader.columns), "the list of records")


def mix(sources: Sequence[Sequence[Record]], weights: Sequence[float]) -> list[Record]:
    """Interleave records in proportion to positive weights, without randomness.

    The next record always comes from the source that is furthest behind its share,
    the earlier one of equals. No record is used twice: the mixture ends when the source
    whose turn it is has none left, and what the others still have is left out.
    """
    total = sum(weights)
    taken = [0] * len(sources)
    mixed: list[Record] = []
    while True:
        behind = [
            weight / total * (len(mixed) + 1) - count
            for weight, count in zip(weights, taken, strict=True)
        ]
        # Rounded, so that equal shares tie however their sums round.
        turn = max(range(len(sources)), key=lambda i: (round(behind[i], 9), -i))
        if taken[turn] == len(sources[turn]):
            return mixed
        mixed.append(sources[turn][taken[turn]])
        taken[turn] += 1


def describe(records: Sequence[Record]) -> str:
    """Summarise records in a line: how many, and how often each label."""
    parts = [f"{len(records):,} examples"]
    counts: Counter[str] = Counter()
    if any("tokens" in item for item in records):
        parts.append(f"{sum(len(item['tokens']) for item in records):,} tokens")
        for item in records:
            counts.update(kind for kind, _, _ in tags.spans(item.get("labels", ())))
        what = f"{sum(counts.values()):,} entities"
    else:
        counts.update(item["label"] for item in records if "label" in item)
        what = f"{len(counts):,} labels"
    if not any("labels" in item or "label" in item for item in records):
        letters = sum(len(item.get("text", "")) for item in records)
        return ", ".join([*parts, f"{letters:,} characters"] if letters else parts)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{label} {count:,}" for label, count in ranked[:10]]
    if len(ranked) > 10:
        listed.append(f"{len(ranked) - 10:,} more")
    return ", ".join([*parts, what]) + (": " + ", ".join(listed) if listed else "")


class _Loader:
    """Loads any source string; slices and mixtures are loaded part by part."""

    def __init__(
        self, split: str, format: str, columns: Columns, scheme: str, running: bool
    ):
        self.split, self.format, self.running = split, format, running
        self.columns, self.scheme = columns, scheme

    def load(self, source: str) -> list[Record]:
        source = source.strip()
        if len(source) > LONGEST:
            raise UserError(
                f"{source[:60]}...: a source of {len(source):,} characters; at most"
                f" {LONGEST:,}"
            )
        if found := _SLICE.fullmatch(source):
            whole = self.load(found[1])
            start, stop = (int(end) if end else None for end in found.groups()[1:])
            if not (part := whole[start:stop]):
                raise UserError(f"{source}: leaves nothing of {len(whole)} records")
            return part
        if parts := _weighted(source):
            sets = _number_documents([self.load(name) for name, _ in parts])
            return _finish_ids(_uniform(mix(sets, [weight for _, weight in parts])))
        return self.finish(self._read(source), source)

    def finish(self, records: list[Record], source: str) -> list[Record]:
        if not records:
            raise UserError(f"{source}: holds no examples")
        _uniform(records)
        if "labels" in records[0]:
            places = [item["source"] for item in records]
            labels = [item["labels"] for item in records]
            labels = tags.normalise(labels, self.scheme, places)
            for item, normal in zip(records, labels, strict=True):
                item["labels"] = normal
        return _finish_ids(records)

    def _read(self, source: str) -> list[Record]:
        if source.startswith("sample:"):
            return _sample(source, self.split)
        if source.startswith("hf:"):
            return hub.from_hub(source, self.split, self.columns)
        paths = _paths(source)
        if hub.is_saved(paths[0]):
            return hub.from_disk(paths[0], self.split, self.columns)
        sets = [
            list(formats.read(path, self.format, self.columns, running=self.running))
            for path in paths
        ]
        return [item for records in _number_documents(sets) for item in records]


def _weighted(source: str) -> list[tuple[str, float]]:
    """Split ``a@0.7,b@0.3``; empty where this is not a weighted list."""
    parts = [_WEIGHTED.fullmatch(part.strip()) for part in source.split(",")]
    if len(parts) < 2 or not all(parts):
        return []
    weights = [(part[1], float(part[2])) for part in parts if part]
    for name, weight in weights:
        if not 0 < weight < math.inf:
            raise UserError(
                f"{source}: weight {weight:g} of {name} must be a positive number"
            )
    return weights


def _sample(source: str, split: str) -> list[Record]:
    _, name, *rest = source.split(":")
    split = rest[0] if rest else split
    if name not in _SAMPLES or split not in _SPLITS or len(rest) > 1:
        allowed = ", ".join(f"sample:{known}" for known in _SAMPLES)
        raise UserError(
            f"{source}: no such sample{f' (split {split!r})' * (not rest)}; use one of "
            f"{allowed}, with a split or not: " + ", ".join(_SPLITS)
        )
    with as_file(SAMPLE / f"{split}.jsonl") as path:
        records = list(formats.read(path, "jsonl", _SAMPLES[name]))
    if name == "text":
        for item in records:
            del item["label"]
    return records


def _paths(source: str) -> list[Path]:
    if not source:
        raise UserError(
            "a data source is empty; give a path, sample:ner or hf:org/name"
        )
    if "\0" in source:
        raise UserError(f"{source!r}: a path cannot hold a NUL character")
    expanded = os.path.expanduser(source)
    if os.path.lexists(expanded) or not glob.has_magic(expanded):
        if not os.path.lexists(expanded) and "," in source and "@" in source:
            raise UserError(
                f"{source}: no such file; in a mixture every part needs a weight, as in"
                " a.jsonl@0.7,b.jsonl@0.3"
            )
        return [Path(expanded)]
    found = sorted(_matches(expanded))
    if not (paths := [Path(name) for name in found if os.path.isfile(name)]):
        raise UserError(f"{source}: no file has a name like that")
    return paths


def _matches(pattern: str) -> set[str]:
    """What a glob finds; its ``**`` goes into a folder once, however links lead there.

    Python's own follows a link to a folder above until the system refuses: forty copies
    of every file, and with two such links no end.
    """
    if (recursive := _RECURSIVE.search(pattern)) is None:
        return set(glob.glob(pattern))
    head, tail = pattern[: recursive.start()], pattern[recursive.end() :]
    found = set()
    for start in glob.glob(f"{head}/") if head else [recursive[1] or "./"]:
        for folder in _folders(start):
            found |= _matches(os.path.join(glob.escape(folder), tail or "*"))
    return {name.removeprefix("./") for name in found}


def _folders(start: str) -> Iterator[str]:
    """A folder and those in it, through links too, each once; none that is hidden."""
    seen: set[str] = set()
    for folder, names, _ in os.walk(start, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield folder


def _from_memory(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[Record]:
    columns = {field: str(column) for field, column in columns.items()}
    made = []
    for number, row in enumerate(rows):
        source = f"record {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{source}: must be a dict, not {show(row)}")
        made.append(record(row, resolve(list(row), columns, source), source))
    return made


def _uniform(records: list[Record]) -> list[Record]:
    """Refuse a set whose records do not all have the same fields."""
    fields = ("tokens", "labels", "text", "text_pair", "label")
    for item in records:
        for field in fields:
            if (field in item) != (field in records[0]):
                has, lacks = item["source"], records[0]["source"]
                if field not in item:
                    has, lacks = lacks, has
                raise UserError(
                    f"{lacks}: has no {field!r}, but {has} has; all records of a data "
                    "set need the same fields"
                )
    return records


def _finish_ids(records: list[Record]) -> list[Record]:
    ids = [item.get("id", str(place)) for place, item in enumerate(records)]
    if len(set(ids)) < len(ids):
        ids = [str(place) for place in range(len(records))]
    return [item | {"id": name} for name, item in zip(ids, records, strict=True)]


def _number_documents(sets: list[list[Record]]) -> list[list[Record]]:
    """Count documents on from set to set; each set counts its own from 0."""
    passed = 0
    for records in sets:
        last = max((item.get("document", -1) for item in records), default=-1)
        for item in records:
            if "document" in item:
                item["document"] += passed
        passed += last + 1
    return sets
