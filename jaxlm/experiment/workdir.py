"""Whose a workdir is: claimed by one process and one config, or emptied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from jaxlm.core import config as configs
from jaxlm.core.door import writable_directory
from jaxlm.core.errors import UserError
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.train.records import read_status

OURS = (
    "config.json", "data.json", "model", "checkpoints", "damaged", "metrics.jsonl",
    "tensorboard", "results", "predictions", "status.json", "report.html",
)  # fmt: skip
"""All that a run writes in its workdir, hence all that ``--overwrite`` deletes."""


@contextmanager
def claim(workdir: Path, config: ExperimentConfig, overwrite: bool) -> Iterator[None]:
    """Hold the workdir for this process, if it is new or of the same config.

    The hold is the operating system's, on the directory: it ends with the process,
    however that ends.

    Raises:
      UserError: another process trains there, or it holds a run of another config.
    """
    writable_directory(workdir)
    handle = os.open(workdir, os.O_RDONLY)
    try:
        if jax.process_index() == 0:
            _lock(handle, workdir)
        if not overwrite:
            configs.refuse_difference(workdir, config)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, workdir: Path) -> None:
    import fcntl  # no such thing on Windows, where jax trains on no accelerator

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = (read_status(workdir) or {}).get("pid", "unknown")
        raise UserError(
            f"{workdir}: another process (pid {pid}) is training there; wait for it or"
            " name another --workdir"
        ) from error
    except OSError:
        pass  # a file system without locks


def empty(workdir: Path, say: Callable[[str], None]) -> None:
    """Delete all that a run wrote, and say what."""
    there = [workdir / name for name in OURS if (workdir / name).exists()]
    if there:
        say(f"--overwrite deletes {', '.join(str(path) for path in there)}")
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
