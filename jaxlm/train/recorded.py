"""What a run has written down, read back: metric lines, results, status.

Any process may read while the run writes: see ``jaxlm.train.records``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.files import CHECKSUM, checksum, read_json
from jaxlm.train.figures import is_score

Results = Sequence[Mapping[str, Any]]
STATUS = {
    "state": str,
    "step": int,
    "total_steps": int | None,
    "pid": int | None,
    "host": str | None,
}
"""What may stand in status.json; None: the key may lack."""


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every whole line of a run's metrics.jsonl; none where there is no file.

    Raises UserError for a broken line, unless it is the last and lacks its line end:
    that is what a killed process leaves behind.
    """
    path = Path(workdir) / "metrics.jsonl"
    return list(_parse_lines(path)) if path.exists() else []


def read_status(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What status.json says, or None where a run has not begun.

    Raises UserError for one that no run wrote.
    """
    path = Path(workdir) / "status.json"
    if not path.exists():
        return None
    status = read_object(path)
    for key, kinds in STATUS.items():
        value = status.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(
                f"{path}: {key} is {value!r}, so it is not the status of a run; delete"
                " the file"
            )
    return status


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of ours, which is one object; UserError where it is anything else."""
    try:
        value = read_json(path)
    except UserError as problem:
        if isinstance(problem.__cause__, OSError):  # it may be whole
            raise
        raise UserError(f"{problem}; delete the file") from problem
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; delete the file")
    if CHECKSUM in value and value.pop(CHECKSUM) != checksum(value):
        raise UserError(f"{path}: changed since it was written; delete the file")
    return value


def read_results(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every results/<split>-<step>.json, sorted by split and step."""
    found = []
    for path in (Path(workdir) / "results").glob("*.json"):
        split, dash, step = path.stem.rpartition("-")
        if dash and step.isdecimal():
            result = read_object(path) | {"split": split, "step": int(step)}
            if wrong := [name for name in result if not _is_figure(name, result)]:
                raise UserError(
                    f"{path}: {wrong[0]} is {result[wrong[0]]!r}, not a number; delete"
                    " the file"
                )
            found.append(result)
    return sorted(found, key=lambda result: (result["split"], result["step"]))


def read_confusion(
    workdir: str | os.PathLike[str], split: str, step: int
) -> dict[str, Any] | None:
    """``{"labels", "matrix"}`` beside a result, rows being true labels, or None."""
    path = Path(workdir) / "results" / f"{split}-{step}.confusion.json"
    if not path.exists():
        return None
    found = read_object(path)
    if not _is_confusion(found.get("labels"), found.get("matrix")):
        raise UserError(f"{path}: is not a confusion matrix; delete the file")
    return found


def _is_confusion(labels: Any, matrix: Any) -> bool:
    if not isinstance(labels, list) or not isinstance(matrix, list):
        return False
    return len(matrix) == len(labels) and all(
        isinstance(row, list)
        and len(row) == len(labels)
        and all(type(count) is int for count in row)
        for row in matrix
    )


def first_and_last(
    results: Results, split: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A split's result of step 0, if there is a later one too, and its last result.

    ``results`` as ``read_results`` gives them; either is empty where there is none.
    """
    own = [result for result in results if result["split"] == split]
    first = own[0] if len(own) > 1 and own[0]["step"] == 0 else {}
    return first, own[-1] if own else {}


def _parse_lines(path: Path) -> Iterator[dict[str, Any]]:
    *whole, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*whole, last], start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if record is not None and _is_record(record):
            yield record
        elif number > len(whole):
            return
        else:
            raise UserError(
                f"{path}:{number}: not a JSON object of a step, a split and numbers;"
                " delete this line"
            )


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("step")) is int
        and isinstance(value.get("split"), str)
        and all(_is_figure(name, value) for name in value)
    )


def _is_figure(name: str, record: Mapping[str, Any]) -> bool:
    """Whether a field of a line or a result is what it should be: a number or null."""
    return name == "split" or is_score(record[name])
