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
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from jaxlm.core.files import (
    append_bytes,
    atomic_write_json,
    atomic_write_text,
    to_plain,
    with_checksum,
)
from jaxlm.train.events import Events
from jaxlm.train.figures import is_score
from jaxlm.train.recorded import read_metrics

State = Literal["running", "finished", "failed", "stopped"]
REWOUND = ("train", "validation")
"""The splits whose lines a resumed run writes again."""


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
        return read_metrics(self.workdir) if self.enabled else []

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


def _ends_torn(path: Path) -> bool:
    """Whether a file's last line lacks its line end."""
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _line(record: Mapping[str, Any]) -> str:
    plain = to_plain(dict(record))
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"
