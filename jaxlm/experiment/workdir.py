"""Whose a workdir is: claimed by one process and one config, or emptied."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxlm.core import config as configs
from jaxlm.core.door import writable_directory
from jaxlm.core.errors import UserError
from jaxlm.core.files import remove_half_written
from jaxlm.core.hosts import here
from jaxlm.core.schema import show
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.train.recorded import read_object, read_status

OURS = (
    "status.json", "checkpoints", "damaged", "metrics.jsonl", "tensorboard", "results",
    "predictions", "report.html", "data.json", "model", configs.FILE,
)  # fmt: skip
"""All that a run writes in its workdir, hence all that ``--overwrite`` deletes.

In this order: what is left by an interrupted one still tells whose it is, and has
nothing to resume from.
"""
FOLDERS = ("model", "results", "predictions")
"""Those of them whose files are written by us rather than by Orbax."""
MAY_CHANGE = (
    "mesh", "mesh.rules", "checkpoint", "data.workers", "train.log_every_steps",
    "model.scan", "model.remat", "model.attention", "model.attention_block",
)  # fmt: skip
"""What a resumed run may change: it is the same experiment."""
LOCK_SECONDS = 1.0


@contextmanager
def claim(
    workdir: Path,
    config: ExperimentConfig,
    overwrite: bool,
    say: Callable[[str], None] = print,
) -> Iterator[None]:
    """Hold the workdir for this process, if it is new or of the same config.

    The hold is the operating system's, on the directory: it ends with the process,
    however that ends. Of several processes the first holds it for all.

    Raises:
      UserError: another process trains there, or it holds a run of another config, or
        files that are no run's.
    """
    hosts = here()
    if not hosts.first:
        hosts.barrier()
        yield
        return
    made = [each for each in (workdir, *workdir.parents) if not each.exists()]
    writable_directory(workdir)
    handle = os.open(workdir, os.O_RDONLY)
    try:
        _lock(handle, workdir)
        _check_ours(workdir)
        for folder in (workdir, *(workdir / name for name in FOLDERS)):
            remove_half_written(folder)
        # Also without need of it: it refuses a config.json that no run wrote.
        found = configs.changes(workdir, config)
        if not overwrite:
            configs.refuse_difference(workdir, config, MAY_CHANGE)
            _check_facts(workdir)
            if found:
                changed = [
                    f"config.{key} was {show(old)}, now {show(new)}"
                    for key, old, new in found
                ]
                say(f"{workdir} goes on with another config: {'; '.join(changed)}")
        hosts.barrier()
        yield
    finally:
        with suppress(OSError):  # of those that hold something
            for each in made:  # by what was refused: nothing was begun
                each.rmdir()
        os.close(handle)


def _check_ours(workdir: Path) -> None:
    """Refuse names that a run would write, where no run's config stands beside them."""
    there = [name for name in OURS if os.path.lexists(workdir / name)]
    if there and configs.FILE not in there:
        raise UserError(
            f"{workdir} holds {', '.join(there)} but no {configs.FILE} of a run; name"
            " another --workdir"
        )


def _check_facts(workdir: Path) -> None:
    """Refuse a data.json that no run wrote, before anyone reads it."""
    path = workdir / "data.json"
    if path.exists() and not all(
        isinstance(facts, dict) for facts in read_object(path).values()
    ):
        raise UserError(f"{path}: does not describe data by split; delete the file")


def _lock(handle: int, workdir: Path) -> None:
    import fcntl  # no such thing on Windows, where jax trains on no accelerator

    until = time.monotonic() + LOCK_SECONDS
    try:
        while True:  # a reader that asks whether we live holds it for a moment
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.02)
    except BlockingIOError as error:
        pid = (read_status(workdir) or {}).get("pid", "unknown")
        raise UserError(
            f"{workdir}: another process (pid {pid}) is training there; wait for it or"
            " name another --workdir"
        ) from error
    except OSError:
        pass  # a file system without locks


def empty(workdir: Path, say: Callable[[str], None]) -> None:
    """Delete all that a run wrote, and say what; config.json last.

    Nothing where no config.json is: then nothing there is a run's.
    """
    if not (workdir / configs.FILE).is_file():
        return
    there = [workdir / name for name in OURS if (workdir / name).exists()]
    if there:
        say(f"--overwrite deletes {', '.join(str(path) for path in there)}")
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
