"""Event files for TensorBoard, written at once and without a thread.

The writer of tensorboardX has a thread and a queue of ten events: where the disk is
full the thread dies, and the eleventh event is waited for until the end of days.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.core.files import append_bytes


class Events:
    """One event file; scalars from ``purge_step`` on in older ones are hidden."""

    def __init__(self, directory: Path, purge_step: int | None = None):
        # Names carry seconds only: without the rest, a run that is stopped and resumed
        # within one second would go on in the file of before.
        place = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        count = len(list(directory.glob("events.*")))
        self.path = directory / f"events.out.tfevents.{place}.{count}"
        self._start = _record(file_version="brain.Event:2")
        if purge_step is not None:
            self._start += _start_at(purge_step)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write some scalars of a step by tag, all of them or, in an OSError, none."""
        from tensorboardX.summary import scalar

        records = [
            _record(step=step, summary=scalar(tag, value))
            for tag, value in scalars.items()
        ]
        append_bytes(self.path, self._start + b"".join(records))
        self._start = b""


def _start_at(step: int) -> bytes:
    start = _protos().SessionLog.START
    return _record(step=step, session_log=_protos().SessionLog(status=start))


def _protos() -> Any:
    """Made at import, so that a type checker sees no names in it."""
    from tensorboardX.proto import event_pb2

    return event_pb2


def _record(**fields: object) -> bytes:
    """An event in TensorFlow's format of records: a length, the bytes, checksums."""
    # Imported late: tensorboardX imports torch where that happens to be installed.
    from tensorboardX.record_writer import masked_crc32c

    def checked(content: bytes) -> bytes:
        return content + struct.pack("<I", masked_crc32c(content))

    event = _protos().Event(wall_time=time.time(), **fields).SerializeToString()
    return checked(struct.pack("<Q", len(event))) + checked(event)
