"""What keeps damage of a checkpoint's files from going unnoticed, or from shouting."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.core.errors import OS_ERROR, UserError
from jaxlm.core.files import CHECKSUM, checksum
from jaxlm.core.grouping import named

DAMAGED = "damaged"
"""The folder of a workdir to which damaged checkpoints are moved."""
SETTLE_SECONDS = 0.2
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""Errors of the operating system that the files themselves are to blame for."""
LOOP_CLOSED = "Event loop is closed"
STATUS = re.compile(r"\b(?:RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE)\b")


class Unreadable(UserError):
    """This machine could not read; nothing is known of what the files hold."""


def numbers_with_checksum(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are numbers, and a checksum of them; empty where none are."""
    plain = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float | np.number)
    }
    return {**plain, CHECKSUM: checksum(plain)} if plain else {}


def metrics_problem(path: Path) -> str | None:
    """What is wrong with the file of metrics that was written with a checksum."""
    try:
        metrics = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        time.sleep(SETTLE_SECONDS)  # the run may be deleting the whole checkpoint
        return "its metrics are gone" if path.parent.is_dir() else None
    except ValueError:
        return "its metrics are not JSON"
    if not isinstance(metrics, dict) or metrics.get(CHECKSUM) != checksum(metrics):
        return "its metrics changed on disk"
    return None


def layout_difference(found: Any, wanted: Any) -> str | None:
    """The first array that two trees do not have alike: its name, shapes and dtypes."""
    there, here = _layout(found), _layout(wanted)
    for name in [*here, *there]:
        if there.get(name) != here.get(name):
            return f"{name} is {there.get(name, 'absent')}, not {here.get(name, '')}"
    return None


def _layout(tree: Any) -> dict[str, str]:
    return {
        name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for name, leaf in named(tree).items()
        if hasattr(leaf, "shape")
    }


def attempt(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What ``read`` gives, or in a line why it failed.

    Raises:
      MemoryError, JaxRuntimeError, Unreadable: the trouble is this machine's, not the
        files'.
    """
    with quietly():
        try:
            return read(), None
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as problem:  # Orbax and TensorStore raise many kinds
            reason = brief(problem)
            trouble = next(filter(_is_machine, _causes(problem)), None)
            if trouble is not None:
                raise Unreadable(
                    f"a checkpoint cannot be read ({brief(trouble)}); nothing was moved"
                    " or deleted; mend this and start again"
                ) from problem
        settle_down()
    return None, reason


def machine_reason(problem: BaseException) -> str | None:
    """The operating system's word for why a write failed; None: it gave none.

    That a folder could not be emptied afterwards counts only where nothing else does.
    """
    numbers = []
    for each in _causes(problem):
        if isinstance(each, OSError) and each.errno is not None:
            numbers.append(each.errno)
        elif found := OS_ERROR.search(str(each)):
            numbers.append(int(found[1]))
    numbers.sort(key=lambda number: number == errno.ENOTEMPTY)  # stable
    return os.strerror(numbers[0]) if numbers else None


def _causes(problem: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = problem
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _is_machine(problem: BaseException) -> bool:
    """Whether a failed read tells of the machine: too many files, no permission."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno not in GONE
    text = str(problem)
    numbers = [int(each) for each in OS_ERROR.findall(text)]
    return bool(STATUS.search(text)) or any(each not in GONE for each in numbers)


@contextmanager
def quietly() -> Iterator[None]:
    """While Orbax reads or writes: what fails there shouts by the page.

    ``PastLate`` stays, for what shouts afterwards.
    """
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "never awaited"
            yield
    finally:
        log.setLevel(level)
        sys.unraisablehook = hook if isinstance(hook, PastLate) else PastLate(hook)


class PastLate:
    """A hook for unraisable exceptions that passes over those of a closed event loop.

    Where one array cannot be read, Orbax closes its event loop on the others, which
    TensorStore goes on to read; each then shouts that its loop is closed. How late, the
    machine decides; so this hook stays.
    """

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        problem = unraisable.exc_value
        if not isinstance(problem, RuntimeError) or str(problem) != LOOP_CLOSED:
            self._hook(unraisable)


def settle_down() -> None:
    """Give what Orbax had under way beside a failure a moment to end, ``quietly``.

    Its exception must be gone, which keeps alive what shouts as it is collected.
    """
    time.sleep(SETTLE_SECONDS)
    gc.collect()


def brief(problem: BaseException) -> str:
    """One line about an exception: the first of its causes."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:160]}"
