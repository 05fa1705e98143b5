"""What failed reads of Orbax leave behind."""

import asyncio
import errno
import sys

from jaxlm.train.damage import attempt, machine_reason


class Late:
    """What raises as it is collected, where nothing can catch it."""

    def __init__(self, problem):
        self.problem = problem

    def __del__(self):
        self.problem()


def closed_loop():
    loop = asyncio.new_event_loop()
    loop.close()
    loop.call_soon_threadsafe(print)


def other():
    raise RuntimeError("something else")


def test_a_read_that_ends_after_its_loop_is_closed_is_not_shouted_about(monkeypatch):
    heard = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda each: heard.append(str(each.exc_value))
    )
    for _ in range(2):
        assert attempt(lambda: 1 / 0) == (None, "ZeroDivisionError: division by zero")
    Late(closed_loop)
    assert heard == []
    Late(other)
    assert heard == ["something else"]


def test_a_folder_that_cannot_be_emptied_hides_no_full_disk():
    full = OSError(errno.ENOSPC, "full")
    after = OSError(errno.ENOTEMPTY, "not empty")
    assert machine_reason(after) == "Directory not empty"
    after.__context__ = full
    assert machine_reason(after) == "No space left on device"
    written = ValueError("[os_error_code='28'] writing")
    assert machine_reason(written) == "No space left on device"
    assert machine_reason(ValueError("other")) is None
