"""Folders that are written whole: in a temporary one beside, renamed when done.

A list of its files in each says that it is ours, to be replaced.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlm.core.door import writable_directory
from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_json, read_json

LIST = "jaxlm_export.json"
"""The list of what we wrote: ``{"files": [...]}``."""


def check_apart(folder: Path, others: Iterable[Path]) -> None:
    """Refuse a folder that is one of the ``others``, in it or around it.

    Raises:
      UserError: it is.
    """
    own = Path(os.path.realpath(folder))
    for other in others:
        place = Path(os.path.realpath(other))
        if own == place:
            raise UserError(f"{folder}: is the source itself; name another folder")
        if own in place.parents or place in own.parents:
            where = "lies in" if place in own.parents else "holds"
            raise UserError(
                f"{folder}: {where} the source {other}; name another folder"
            )


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that is in use, unless it may be overwritten and is one of ours.

    Raises:
      UserError: it holds anything, or with ``overwrite`` what we did not write.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: a file stands there; name another folder")
    there = sorted(folder.iterdir())
    if there and not overwrite:
        raise UserError(
            f"{folder}: is not empty; name another folder, or --overwrite to replace it"
        )
    ours = written(folder) if there else set()
    for path in there:
        if path.is_symlink() or not path.is_file() or path.name not in ours:
            raise UserError(
                f"{folder}: --overwrite replaces what an export wrote, as its {LIST}"
                f" says, and {path.name} is not of that; name another folder"
            )


def written(folder: Path) -> set[str]:
    """The names of what we wrote into a folder, none where it is not ours."""
    path = folder / LIST
    found = read_json(path) if path.is_file() else {}
    names = found.get("files") if isinstance(found, dict) else None
    names = names if isinstance(names, list) else []
    return {name for name in names if isinstance(name, str)}


@contextmanager
def whole_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of ``folder`` at the end.

    What fails leaves all as it was.

    Raises:
      UserError: as ``check_free``, or nothing can be written there.
    """
    check_free(folder, overwrite)
    folder = Path(os.path.realpath(folder))
    writable_directory(folder.parent)
    mark = secrets.token_hex(6)
    made = folder.with_name(f".{folder.name}.{mark}.tmp")
    old = folder.with_name(f".{folder.name}.{mark}.old")
    made.mkdir()
    try:
        yield made
        names = sorted([LIST, *(path.name for path in made.iterdir())])
        atomic_write_json(made / LIST, {"files": names})
        check_free(folder, overwrite)  # still
        if folder.exists():
            folder.rename(old)
        try:
            made.rename(folder)
        except BaseException:  # Ctrl-C, too
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
