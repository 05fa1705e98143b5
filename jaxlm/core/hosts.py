"""The processes of a run: how they come together, decide as one, wait and part.

Everything here is called by all of them, in the same order. A process that runs alone
is a ``Hosts`` too, to which all of it is trivial; so nobody asks how many there are.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax
import numpy as np

from jaxlm.core.cluster import LOST_SECONDS
from jaxlm.core.door import writable_directory
from jaxlm.core.errors import Lost, UserError
from jaxlm.core.schema import show
from jaxlm.core.watch import Watch

T = TypeVar("T")
WAIT_MS = 1000
LEAST_SHARED = 1024


class Hosts:
    """A process on its own; see ``Group`` for one of several."""

    index, count = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes what the run shares."""
        return self.index == 0

    def decide(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on process 0, as JSON holds it, on all of them."""
        return make()

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, as JSON holds it, on all of them."""
        return [value]

    def barrier(self) -> None:
        """Until all are here."""
        self.gather(None)

    def same(self, what: str, value: str) -> None:
        """Refuse what is not the same everywhere.

        Raises:
          UserError: another process has another value.
        """
        found = self.gather(value)
        other = [index for index, each in enumerate(found) if each != found[0]]
        if other:
            raise UserError(
                f"{what}: process {other[0]} of {self.count} has another content than"
                " process 0; give all hosts the same files"
            )

    def alike(self, what: Mapping[str, Any]) -> None:
        """Refuse flags or config values that differ: they would wait for ever.

        ``what``: their values, which JSON holds, by their names. How many processes
        there are is always among them.

        Raises:
          UserError: another process has another value.
        """
        found = self.gather({"--processes": self.count, **what})
        for index, each in enumerate(found):
            for name in found[0] | each:
                own, first = each.get(name), found[0].get(name)
                if own != first:
                    raise UserError(
                        f"{name}: process {index} of {self.count} has {show(own)},"
                        f" process 0 {show(first)}; start all of them by one command"
                    )

    def share(self, content: bytes | None) -> bytes:
        """The bytes that process 0 gives, on all of them."""
        return content or b""

    def stops(self, step: int, asked: int | None) -> bool:
        """Whether all stop after ``step`` steps; ``asked``: by a signal, this one."""
        return asked is not None

    def heard(self, asked: int | None) -> bool:
        """Whether any was asked to stop, as far as is known here; waits for nobody."""
        return asked is not None

    def asked(self, number: int | None) -> int | None:
        """The signal by which any was asked to stop, who all do so now."""
        return next((each for each in self.gather(number) if each is not None), None)

    def cause(self, problem: BaseException) -> BaseException:
        """Why this process ends: the problem, or what became of another process."""
        return problem

    def last_words(self, write: Callable[[str], None]) -> None:
        """What is done with the reason, where this process must end at once."""

    def log_to(self, folder: Path, prefix: str = "", out: TextIO | None = None) -> None:
        """Write what others print to ``folder/process-N.log``; ``out`` is told so."""


class Group(Hosts):
    """One process of several, by the client of jax's coordination service."""

    def __init__(self, client: Any, index: int, count: int, lost_seconds: float):
        self._client, self.index, self.count = client, index, count
        self._keys = (f"jaxlm/said/{number}" for number in itertools.count())
        self._watch = Watch(client, index, count, lost_seconds)
        self.stopping = False
        self._own: BaseException | None = None

    def decide(self, make: Callable[[], T]) -> T:
        key = next(self._keys)
        if self.first:
            self._client.key_value_set(key, _json(make()))
        return json.loads(self._wait(key))

    def gather(self, value: Any) -> list[Any]:
        key = next(self._keys)
        self._client.key_value_set(f"{key}/{self.index}", _json(value))
        if self.first:
            parts = [self._wait(f"{key}/{index}") for index in range(self.count)]
            self._client.key_value_set(f"{key}-all", f"[{','.join(parts)}]")
        return json.loads(self._wait(f"{key}-all"))

    def share(self, content: bytes | None) -> bytes:
        """By the devices: the store is for small things."""
        from jax.experimental import multihost_utils

        size = self.decide(lambda: len(content or b""))
        room = max(LEAST_SHARED, 1 << size.bit_length())  # few sizes, few programs
        buffer = np.zeros(room, np.uint8)
        if self.first and content:
            buffer[:size] = np.frombuffer(content, np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(buffer))[:size].tobytes()

    def stops(self, step: int, asked: int | None) -> bool:
        return self._watch.stops(step, asked)

    def heard(self, asked: int | None) -> bool:
        return self._watch.heard(asked)

    def asked(self, number: int | None) -> int | None:
        found = super().asked(number)
        self.stopping = found is not None
        return found

    def cause(self, problem: BaseException) -> BaseException:
        devices = isinstance(problem, jax.errors.JaxRuntimeError)
        if not devices or problem is self._own or "RESOURCE_EXHAUSTED" in str(problem):
            return problem
        self._own = problem  # unless another is found now
        return self._watch.cause() or problem

    def last_words(self, write: Callable[[str], None]) -> None:
        self._watch.last_words = write

    def log_to(self, folder: Path, prefix: str = "", out: TextIO | None = None) -> None:
        if self.first:
            where = folder / f"{prefix}process-N.log"
            text = f"process 0 of {self.count}; the others write to {where}"
            print(text, file=out or sys.stdout, flush=True)
            if out is not None:  # gloo prints, too: not among what a program reads
                sys.stdout.flush()
                own = os.dup(1)
                os.dup2(2, 1)
                sys.stdout = open(own, "w", encoding=sys.stdout.encoding)
            return
        path = writable_directory(folder) / f"{prefix}process-{self.index}.log"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(handle, number)  # what is not written by Python, too
        os.close(handle)
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError):  # of a stream that is not Python's own
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def part(self) -> None:
        """The end that all came to, in order."""
        self.barrier()
        self._watch.close()
        jax.distributed.shutdown()

    def fail(self, problem: BaseException) -> None:
        """The end of this process, which the others are told."""
        text, code = f"ended: {type(problem).__name__}: {problem}", 1
        if isinstance(problem, UserError):
            text, code = f"ended: {problem}", 2
        elif isinstance(problem, Lost):
            text, code = str(problem), problem.code
        elif isinstance(problem, KeyboardInterrupt):
            text, code = "was interrupted", 130
        elif isinstance(problem, SystemExit) and isinstance(problem.code, int):
            number = problem.code - 128
            known = number in {each.value for each in signal.Signals}
            name = signal.Signals(number).name if known else f"code {problem.code}"
            text, code = f"was ended by {name}", problem.code
        with suppress(jax.errors.JaxRuntimeError):  # the store is gone: they know
            self._watch.end(text, code)
        self._watch.close()

    def _wait(self, key: str) -> str:
        while True:
            if self._watch.problem:
                raise self._watch.problem
            try:
                return self._client.blocking_key_value_get(key, WAIT_MS)
            except jax.errors.JaxRuntimeError as problem:
                if "DEADLINE_EXCEEDED" not in str(problem):
                    raise self.cause(problem) from problem


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda each: each.tolist())  # numpy's


_here: Hosts = Hosts()


def here() -> Hosts:
    """This process among those of its run."""
    if _here.count == 1 and jax.distributed.is_initialized():  # by join, or a user
        return form(LOST_SECONDS)
    return _here


def form(lost_seconds: float) -> Hosts:
    """This process among those that ``jax.distributed`` has joined it to."""
    global _here
    from jax._src import distributed  # no public name; Orbax takes the same client

    state = distributed.global_state
    if state.num_processes > 1:
        _here = Group(state.client, state.process_id, state.num_processes, lost_seconds)
    return _here


def dissolve() -> None:
    """This process is on its own again."""
    global _here
    _here = Hosts()
