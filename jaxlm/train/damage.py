"""What keeps damage of a checkpoint's files from going unnoticed, or from shouting."""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

CHECKSUM = "checksum"


def with_checksum(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that are numbers, and a checksum of them; empty where none are."""
    plain: dict[str, Any] = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float | np.number)
    }
    return {**plain, CHECKSUM: _checksum(plain)} if plain else {}


def metrics_problem(path: Path) -> str | None:
    """What is wrong with the file of metrics that was written ``with_checksum``."""
    try:
        metrics = json.loads(path.read_bytes())
    except FileNotFoundError:  # deleted meanwhile by the process that saves
        return None
    except ValueError:
        return "its metrics are not JSON"
    if not isinstance(metrics, dict) or metrics.get(CHECKSUM) != _checksum(metrics):
        return "its metrics changed on disk"
    return None


def _checksum(metrics: Mapping[str, float]) -> int:
    rest = {name: metrics[name] for name in metrics if name != CHECKSUM}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def attempt(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What ``read`` gives, or in a line why it failed.

    Orbax's other reads shout by the page when one of them fails; what they say is kept
    quiet, and what is left of them is collected here.

    Raises:
      MemoryError, JaxRuntimeError: the trouble is this machine's, not the files'.
    """
    with _quiet():
        try:
            return read(), None
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as problem:  # Orbax and TensorStore raise many kinds
            reason = brief(problem)
        gc.collect()
    return None, reason


@contextmanager
def _quiet() -> Iterator[None]:
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
        sys.unraisablehook = hook


def brief(problem: BaseException) -> str:
    """One line about an exception: the first of its causes."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:160]}"
