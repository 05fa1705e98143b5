"""One process of several watches the others: they end together and stop together.

What a process has to say stands in the key-value store of jax's coordination service,
which process 0 holds. A thread reads and writes it, because the main thread may wait
for devices, and for ever where another process is gone.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxlm.core.errors import Lost

TICK_SECONDS, BEAT_SECONDS = 0.2, 1.0
TROUBLE_SECONDS = 10.0
"""The silence that is enough where something failed already."""
GRACE_SECONDS = 5.0
"""Time for the main thread to end the process in order, and for others to read why."""
AGAIN = "start all of them again: a run goes on from its last checkpoint"


class Watch:
    """The thread of one process, and what it found.

    ``problem`` is why this process must end, if it must. ``last_words`` is called with
    it where the main thread does not end the process itself.
    """

    def __init__(self, client: Any, index: int, count: int, lost_seconds: float):
        self._client, self.index, self.count = client, index, count
        self._lost_seconds = lost_seconds
        self.problem: Lost | None = None
        self.last_words: Callable[[str], None] = lambda text: None
        self._asked: int | None = None  # by which signal
        self._number = 0
        self._hold: int | None = None
        self._limit: int | None = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._heard: dict[str, tuple[str, float]] = {}
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no more; what this process waits for has come."""
        self._closed.set()
        self._thread.join(GRACE_SECONDS)

    def end(self, text: str, code: int) -> None:
        """Tell the others why this process ends, unless one has told before.

        From the main thread, to which the end is left from now on.
        """
        self._closed.set()
        self._put("ended", {"process": self.index, "text": text, "code": code}, True)
        self._put(f"left/{self.index}", True)
        if self.index == 0:  # and the store with it, once they have read it
            until = time.monotonic() + 2 * GRACE_SECONDS
            gone = (self._get("ended") or {}).get("process")
            wait = {str(index) for index in range(self.count) if index != gone}
            while wait - set(self._all("left")) and time.monotonic() < until:
                time.sleep(TICK_SECONDS)

    def cause(self) -> Lost | None:
        """Why devices failed here, if another process ended; waits to be told."""
        self._put("trouble", self.index)
        until = time.monotonic() + self._patience(True) + 3 * BEAT_SECONDS
        while self.problem is None and time.monotonic() < until:
            time.sleep(TICK_SECONDS)
        return self.problem

    def stops(self, number: int, asked: int | None) -> bool:
        """Whether all stop after ``number`` steps, because one of them was asked to.

        ``asked`` is the signal by which this one was.

        The main threads run ahead of one another. So each, once it knows of the wish,
        promises a step that it will not pass before all have promised; the greatest is
        where all stop. Promises are the threads' to make: a main thread may be waiting
        for a step that another has yet to begin.
        """
        with self._changed:
            self._number = number
            self._asked = self._asked or asked
            while self._hold is not None and self._limit is None:
                if number < self._hold or self.problem:
                    break
                self._changed.wait(TICK_SECONDS)
            if self.problem:
                raise self.problem
            return self._limit is not None and number >= self._limit

    def heard(self, asked: int | None) -> bool:
        """Whether any was asked to stop, as far as this one knows; tells the others."""
        with self._changed:
            self._asked = self._asked or asked
            if self.problem:
                raise self.problem
            return self._asked is not None

    def _run(self) -> None:
        due = 0.0
        while not self._closed.wait(TICK_SECONDS):
            try:
                if time.monotonic() >= due or self._asked or self._hold is not None:
                    self._agree_to_stop()
                if time.monotonic() >= due:
                    due = time.monotonic() + BEAT_SECONDS
                    self._beat()
            except jax.errors.JaxRuntimeError as problem:
                if not jax.distributed.is_initialized():  # it ended, by its user's wish
                    return
                self._found(0, f"its store is not reached: {problem}", Lost("").code)
            if self.problem:
                return self._end()

    def _beat(self) -> None:
        self._beats += 1
        mine = [self._beats, socket.gethostname(), os.getpid()]
        self._put(f"alive/{self.index}", mine)
        if self.index == 0:
            self._look_for_silence()
        if ended := self._get("ended"):
            if ended["process"] != self.index:
                self._found(ended["process"], ended["text"], ended["code"])

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        limit = self._patience(self._get("trouble") is not None)
        left = self._all("left")
        for name, beat in self._all("alive").items():
            if self._heard.get(name, ("", 0.0))[0] != beat:
                self._heard[name] = (beat, now)
            silent = now - self._heard[name][1]
            if silent > limit and name not in left:
                text = f"is gone: nothing was heard of it for {silent:.0f} s"
                ended = {"process": int(name), "text": text, "code": Lost("").code}
                self._put("ended", ended, True)

    def _patience(self, trouble: bool) -> float:
        return min(self._lost_seconds, TROUBLE_SECONDS if trouble else float("inf"))

    def _found(self, process: int, text: str, code: int) -> None:
        _, host, pid = self._get(f"alive/{process}", quiet=True) or (0, "?", "?")
        who = f"process {process} of {self.count} (host {host}, pid {pid})"
        again = f"; {AGAIN}" if code == Lost("").code else ""
        self.problem = Lost(f"{who} {' '.join(text.split())}{again}", code)
        with self._changed:
            self._changed.notify_all()

    def _end(self) -> None:
        """End the process, where its main thread does not: it may wait for ever."""
        problem = self.problem
        if problem is None or self._closed.wait(GRACE_SECONDS):
            return
        self.last_words(str(problem))
        print(f"error: {problem}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        self._put(f"left/{self.index}", True)
        os._exit(problem.code)

    def _agree_to_stop(self) -> None:
        if self._limit is not None:
            return
        if self._asked is not None:
            self._put("stop/asked", self._asked, True)
        asked = self._get("stop/asked")
        if asked is None:
            return
        self._asked = asked
        if self._hold is None:
            with self._changed:
                self._hold = self._number + 1
            self._put(f"stop/holds/{self.index}", self._hold)
        holds = self._all("stop/holds") if self.index == 0 else {}
        if len(holds) == self.count:
            self._put("stop/limit", max(json.loads(each) for each in holds.values()))
        limit = self._get("stop/limit")
        if limit is not None:
            with self._changed:
                self._limit = limit
                self._changed.notify_all()

    def _put(self, key: str, value: Any, once: bool = False) -> None:
        try:
            self._client.key_value_set(_room(key), json.dumps(value), not once)
        except jax.errors.JaxRuntimeError as problem:
            if "ALREADY_EXISTS" not in str(problem):
                self._gone(problem)

    def _get(self, key: str, quiet: bool = False) -> Any:
        try:
            return json.loads(self._client.key_value_try_get(_room(key)))
        except jax.errors.JaxRuntimeError as problem:
            if "NOT_FOUND" not in str(problem) and not quiet:
                self._gone(problem)
            return None

    def _all(self, folder: str) -> dict[str, str]:
        found = self._client.key_value_dir_get(_room(folder) + "/")
        return {key.rpartition("/")[2]: value for key, value in found}

    def _gone(self, problem: Exception) -> None:
        if threading.current_thread() is self._thread:
            raise problem


def _room(key: str) -> str:
    return f"jaxlm/{key}"
