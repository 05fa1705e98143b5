"""What a run writes down: metric lines, event files, results, predictions, status.

Each file is written by one process (the first of a run) and may be read by any other at
any time: all but ``metrics.jsonl`` are replaced atomically, and a reader of that one
leaves out a last line that is only half there. Where a file cannot be written, as on a
full disk, an OSError names it, unless the run is to go on.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from jaxlm.core.errors import UserError
from jaxlm.core.files import (
    CHECKSUM,
    append_bytes,
    atomic_write_json,
    atomic_write_text,
    checksum,
    read_json,
    to_plain,
    with_checksum,
)
from jaxlm.train.events import Events
from jaxlm.train.figures import is_score

Results = Sequence[Mapping[str, Any]]
State = Literal["running", "finished", "failed", "stopped"]
REWOUND = ("train", "validation")
"""The splits whose lines a resumed run writes again."""
STATUS = {
    "state": str,
    "step": int,
    "total_steps": int | None,
    "pid": int | None,
    "host": str | None,
}
"""What may stand in status.json; None: the key may lack."""


class RunRecords:
    """The records of one run under its workdir; a context manager that closes them.

    One that is not ``enabled``, of a further process, reads and writes nothing.
    ``facts`` of the run stand in every status. With ``go_on``, what cannot be written
    is said and left out; but lines of metrics.jsonl wait until they can be. Event files
    hold nothing of their own: where they cannot be written, that is always only said.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        enabled: bool = True,
        facts: Mapping[str, Any] | None = None,
        *,
        go_on: bool = False,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ):
        self.workdir, self.enabled = Path(workdir), enabled
        self.facts = dict(facts or {})
        self.go_on, self.say = go_on, say
        self._lines = ""  # not on disk yet
        self._events: Events | None = None
        self._purge_step: int | None = None
        self._told: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def append(self, step: int, split: str, **scalars: Any) -> None:
        """Add one line to metrics.jsonl and the same figures to the event files.

        NaN and infinities become null in the line and are left out of the event files.
        """
        if not self.enabled:
            return
        record = to_plain({"step": step, "split": split, **scalars})
        self._lines += _line(record)
        self._write(self.workdir / "metrics.jsonl", self._append_lines)
        self._append_events(record)

    def rewind(self, step: int) -> None:
        """Forget what training and validation wrote after a step.

        Called before a run goes on from that step, so that no line stands twice.
        TensorBoard is told to hide the same steps.
        """
        self._lines, self._events = "", None
        self._purge_step = step + 1
        if self.enabled and (self.workdir / "metrics.jsonl").exists():
            self._rewrite(
                record
                for record in self.read()
                if record["split"] not in REWOUND or record["step"] <= step
            )

    def read(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl, oldest first."""
        return read_metrics(self.workdir)

    def write_results(self, split: str, step: int, metrics: Mapping[str, Any]) -> Path:
        """Write every figure of one evaluation to results/<split>-<step>.json.

        ``metrics`` is flat, but for an optional ``confusion`` of the form
        ``{"labels": [...], "matrix": [[...]]}`` (rows are true labels), which goes to
        results/<split>-<step>.confusion.json.
        """
        path = self.workdir / "results" / f"{split}-{step}.json"
        if not self.enabled:
            return path
        flat = {name: metrics[name] for name in metrics if name != "confusion"}

        def write() -> None:
            if confusion := metrics.get("confusion"):
                beside = path.with_suffix(".confusion.json")
                atomic_write_json(beside, with_checksum(confusion))
            result = {"step": step, "split": split, **flat}
            atomic_write_json(path, with_checksum(result))

        self._write(path, write)
        return path

    def write_predictions(
        self, split: str, step: int, predictions: Iterable[Mapping[str, Any]]
    ) -> Path:
        """Write predictions/<split>-<step>.jsonl, one prediction a line."""
        path = self.workdir / "predictions" / f"{split}-{step}.jsonl"
        if self.enabled:
            text = "".join(_line(each) for each in predictions)
            self._write(path, lambda: atomic_write_text(path, text))
        return path

    def write_status(
        self,
        state: State,
        step: int,
        total_steps: int | None,
        reason: str | None = None,
        **more: Any,
    ) -> None:
        """Replace status.json: where the run stands, for launchers and ``--watch``."""
        if not self.enabled:
            return
        status = {"state": state, "step": step, "total_steps": total_steps}
        process = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = self.workdir / "status.json"
        more = {"reason": reason, **self.facts, **more}
        status |= {**more, **process}
        self._write(path, lambda: atomic_write_json(path, with_checksum(status)))

    def close(self) -> None:
        """Try once more to write the lines that wait, if the run was to go on."""
        if self._lines and self.go_on:
            self._write(self.workdir / "metrics.jsonl", self._append_lines)

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
            self._told.discard(path)
        except OSError as problem:
            if not self.go_on:
                raise
            self._tell(path, problem, "training goes on")

    def _tell(self, path: Path, problem: OSError, what: str) -> None:
        """Say that a file is not written; again only after it once was."""
        if path not in self._told:
            self.say(f"{path} is not written: {problem.strerror}; {what}")
        self._told.add(path)

    def _append_lines(self) -> None:
        path = self.workdir / "metrics.jsonl"
        if _ends_torn(path):
            self._rewrite(self.read())
        append_bytes(path, self._lines.encode())
        self._lines = ""

    def _rewrite(self, records: Iterable[dict[str, Any]]) -> None:
        text = "".join(_line(record) for record in records)
        atomic_write_text(self.workdir / "metrics.jsonl", text)

    def _append_events(self, record: dict[str, Any]) -> None:
        scalars = {
            f"{record['split']}/{name}": value
            for name, value in record.items()
            if name != "step" and value is not None and is_score(value)
        }
        folder = self.workdir / "tensorboard"
        self._events = self._events or Events(folder, self._purge_step)
        try:
            self._events.add(record["step"], scalars)
            self._told.discard(folder)
        except OSError as problem:
            self._tell(folder, problem, "its figures are in metrics.jsonl; it goes on")


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


def _ends_torn(path: Path) -> bool:
    """Whether a file's last line lacks its line end."""
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


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


def _line(record: Mapping[str, Any]) -> str:
    plain = to_plain(dict(record))
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"
