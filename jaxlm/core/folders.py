"""Folders that are written whole: in a temporary one beside, renamed when done."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlm.core.door import writable_directory
from jaxlm.core.errors import UserError

Ours = Callable[[str], bool]
"""Whether a file of this name is one that the writer of the folder writes."""


def check_free(folder: Path, overwrite: bool, ours: Ours) -> None:
    """Refuse a folder that is in use, unless it may be overwritten and is one of ours.

    Raises:
      UserError: it holds anything, or with ``overwrite`` what no such writer wrote.
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
    for path in there:
        if not path.is_file() or not ours(path.name):
            raise UserError(
                f"{folder}: --overwrite replaces an export alone, and {path.name} is of"
                " none; name another folder"
            )


@contextmanager
def whole_folder(folder: Path, overwrite: bool, ours: Ours) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of ``folder`` at the end.

    What fails leaves all as it was.

    Raises:
      UserError: as ``check_free``, or nothing can be written there.
    """
    check_free(folder, overwrite, ours)
    folder = Path(os.path.realpath(folder))
    writable_directory(folder.parent)
    mark = secrets.token_hex(6)
    made = folder.with_name(f".{folder.name}.{mark}.tmp")
    old = folder.with_name(f".{folder.name}.{mark}.old")
    made.mkdir()
    try:
        yield made
        check_free(folder, overwrite, ours)  # still
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
