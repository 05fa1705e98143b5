"""Event files for TensorBoard, written at once and without a thread.

The writer of tensorboardX has a thread and a queue of ten events: where the disk is
full the thread dies, and the eleventh event is waited for until the end of days.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
        records = [
            _record(step=step, summary=_tensorboard().scalar(tag, value))
            for tag, value in scalars.items()
        ]
        append_bytes(self.path, self._start + b"".join(records))
        self._start = b""


def _start_at(step: int) -> bytes:
    log = _tensorboard().protos.SessionLog
    return _record(step=step, session_log=log(status=log.START))


class _Tensorboard(NamedTuple):
    """What we use of tensorboardX; Any, as its messages are made at import."""

    protos: Any
    scalar: Any
    masked_crc32c: Any


@cache
def _tensorboard() -> _Tensorboard:
    """Imported late, and without torch, which it would import where that is installed.

    That would take 180 MB, for tensors that we do not have.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an ImportError, to it
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
        from tensorboardX.summary import scalar
    finally:
        if hidden:
            del sys.modules["torch"]
    return _Tensorboard(event_pb2, scalar, masked_crc32c)


def _record(**fields: object) -> bytes:
    """An event in TensorFlow's format of records: a length, the bytes, checksums."""

    def checked(content: bytes) -> bytes:
        return content + struct.pack("<I", _tensorboard().masked_crc32c(content))

    event = _tensorboard().protos.Event(wall_time=time.time(), **fields)
    content = event.SerializeToString()
    return checked(struct.pack("<Q", len(content))) + checked(content)
