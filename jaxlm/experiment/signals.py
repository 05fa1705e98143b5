"""SIGTERM and Ctrl-C as a wish to stop at the next step, saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

from jaxlm.core.hosts import here

EVERY = 16
"""Batches after which the processes of an evaluation agree whether to go on."""

TICK_SECONDS = 0.2


class Stop:
    """Whether a signal asked to stop, and which; of several processes, any of them."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked = 0

    def __call__(self, step: int) -> bool:
        """Whether to stop after so many steps."""
        return here().stops(step, self.number)

    def between(self) -> bool:
        """Whether to stop between two batches of an evaluation.

        Several processes ask one another now and then, which takes a while.
        """
        self._asked += 1
        if here().count == 1:
            return self.number is not None
        return self._asked % EVERY == 0 and self.agreed()

    def while_waiting(self, future: Future[Any] | None) -> bool:
        """Whether to stop, until a future is done; a signal ends the waiting.

        All processes wait together, each for its own; or, for None, none does.
        """
        if future is None:
            return False
        while not future.done() and not here().heard(self.number):
            wait([future], TICK_SECONDS)
        return self.agreed()

    def agreed(self) -> bool:
        """Whether to stop, on all processes alike, each of which asks."""
        self.number = here().asked(self.number)
        return self.number is not None

    def error(self) -> BaseException:
        """What ends the process as the signal would have, for launchers to see."""
        if self.number == signal.SIGINT:
            return KeyboardInterrupt()
        return SystemExit(128 + (self.number or 0))


@contextmanager
def signals() -> Iterator[Stop]:
    """Note the first SIGTERM or Ctrl-C; a second one of the kind does as it always did.

    Outside the main thread, where Python handles no signals, none is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}

    def ask(number: int, frame: Any) -> None:
        stop.number = number
        signal.signal(number, before[signal.Signals(number)])

    for name in names:
        signal.signal(name, ask)
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
